"""Which towers of a model are exported, by their names."""

from __future__ import annotations

from typing import Any

from naflex_export.errors import RequestError

IMAGE, WITH_TEXT = ("image",), ("image", "text")


def check_towers(towers: Any) -> tuple[str, ...]:
    """Return the towers to export, from a list of their names, or a text with a comma between them.

    Args:
        towers: "image", or "image,text".

    Raises:
        RequestError: it is neither.
    """
    given = tuple(name.strip() for name in towers.split(",")) if isinstance(towers, str) else tuple(towers)
    if given not in (IMAGE, WITH_TEXT, WITH_TEXT[::-1]):
        raise RequestError(
            f"towers={','.join(map(str, given))!r}: expected image, or image,text; a text tower goes beside its image "
            "tower"
        )
    return WITH_TEXT if len(given) == 2 else IMAGE
