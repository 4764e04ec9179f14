"""How photos are to be prepared, as a caller gives it in place of what a model says: values, a file or a processor."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from naflex_export.embed.preprocessing import Preprocessing
from naflex_export.errors import RequestError

PHOTO_CHANNELS = 3

GIVEN = "what the export was given"
"""In a manifest's `settings_from`."""

FILES = ("preprocessor_config.json", "processor_config.json", "config.json")
"""Of a folder that was given: transformers' two, alone or with a tokenizer's, and timm's."""

_INSIDE = ("image_processor", "pretrained_cfg")
"""Under which such files hold the settings among others."""


def how_to_give(what: str) -> str:
    """Return how a user gives settings, for messages."""
    return f"give {what} with preprocessing=... (--preprocessing FILE)"


def settings_of(given: Any) -> dict[str, Any]:
    """Return what a caller gave for preprocessing as plain values.

    Args:
        given: a mapping of settings, a JSON file of them, a folder that holds one of `FILES`, or an image processor.

    Raises:
        RequestError: it is none of these, or cannot be read.
    """
    if isinstance(given, str | Path):
        return _read(Path(given))
    if not isinstance(given, Mapping) and hasattr(given, "to_json_string"):
        given = json.loads(given.to_json_string())
    if not isinstance(given, Mapping):
        raise RequestError(
            f"preprocessing is a {type(given).__qualname__}: expected a mapping of settings, an image processor, or "
            "the path of a JSON file or of a folder that holds one"
        )
    if not given:
        raise RequestError("preprocessing is empty: expected settings, such as mean and std")
    return dict(given)


def given_in(said: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return what an export was given, from what its manifest says of preprocessing; None where it was given nothing.

    Args:
        said: a manifest's `preprocessing`.
    """
    if said.get("settings_from") != GIVEN:
        return None
    if "image_mean" in said:  # an image processor's settings, beside what is said of all libraries alike
        ours = {"settings_from", "channels", *Preprocessing.__dataclass_fields__}
        return {name: value for name, value in said.items() if name not in ours}
    return {name: said[name] for name in ("mean", "std", "interpolation")}


def _read(path: Path) -> dict[str, Any]:
    found = path
    if path.is_dir():
        there = [path / name for name in FILES if (path / name).is_file()]
        if not there:
            raise RequestError(f"preprocessing {str(path)!r} is a folder without a {' or a '.join(FILES)}")
        found = there[0]
    try:
        settings = json.loads(found.read_text(encoding="utf-8"))
    except OSError as error:
        raise RequestError(f"preprocessing {str(found)!r} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise RequestError(f"preprocessing {str(found)!r} is no JSON: {error}") from error
    for name in _INSIDE:
        if isinstance(settings, dict) and isinstance(settings.get(name), dict):
            settings = settings[name]
            if name == "pretrained_cfg":
                names = ("mean", "std", "interpolation")
                settings = {key: settings[key] for key in names if settings.get(key)}
    if not isinstance(settings, dict) or not settings:
        raise RequestError(
            f"preprocessing {str(found)!r} holds no settings: expected an object, with mean and std, say"
        )
    return settings
