"""Which towers of a model are exported, by their names."""

from __future__ import annotations

from typing import Any

from naflex_export.errors import RequestError

IMAGE, WITH_TEXT = ("image",), ("image", "text")


def check_towers(towers: Any) -> tuple[str, ...]:
    """Return the towers to export, from a list of their names, or a text with a comma between them, in any case.

    Args:
        towers: "image", or "image,text".

    Raises:
        RequestError: it is neither.
    """
    names = towers.split(",") if isinstance(towers, str) else towers if isinstance(towers, list | tuple) else ()
    given = tuple(str(name).strip().lower() for name in names)
    if given not in (IMAGE, WITH_TEXT, WITH_TEXT[::-1]):
        said = ",".join(map(str, towers)) if isinstance(towers, list | tuple) else towers
        raise RequestError(f"towers={said!r}: expected image, or image,text; a text tower goes beside its image tower")
    return WITH_TEXT if len(given) == 2 else IMAGE
