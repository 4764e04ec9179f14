"""How timm prepares photos for a model: what was given for it, what its `pretrained_cfg` says, or timm's defaults."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from timm.data.config import resolve_data_config
from timm.data.transforms import str_to_interp_mode

from naflex_export.errors import RequestError, UnsupportedModelError
from naflex_export.models.preprocessing import GIVEN, PHOTO_CHANNELS, how_to_give

SETTINGS = ("mean", "std", "interpolation")

_NOT_FOR_NAFLEX = ("input_size", "crop_pct", "crop_mode", "crop_border_pixels")
"""What timm's settings have besides: NaFlex's transform resizes to a number of patches, and crops nothing."""

DEFAULTS = "timm's defaults"

UNKNOWN = "nothing that says it"
"""Where images have other channels than photos, and nobody said how they are prepared."""


class PhotoSettings(NamedTuple):
    """How photos are prepared.

    Attributes:
        mean, std: of each channel; empty where nobody says it of images that are no photos.
        interpolation: of the resize, by timm's name.
        origin: where that was said.
        assumed: the settings that nobody said, which are timm's defaults.
    """

    mean: list[float]
    std: list[float]
    interpolation: str
    origin: str
    assumed: tuple[str, ...]

    @property
    def caution(self) -> str:
        """What a user must know of it; empty where all was said."""
        if not self.assumed:
            return ""
        found = ", ".join(f"{name} {getattr(self, name)}" for name in self.assumed)
        return (
            f"the model does not say how photos are prepared for it (no {', '.join(self.assumed)} in its "
            f"pretrained_cfg): the manifest has timm's defaults, {found}. Check that they are the model's, or "
            f"{how_to_give('mean, std and interpolation')}"
        )


def pretrained_cfg_of(model: Any) -> dict[str, Any]:
    """Return what a model says of its pretraining; nothing where it was made without, as `NaFlexVit(cfg)` is.

    Raises:
        UnsupportedModelError: it is neither a dict nor timm's dataclass.
    """
    found = getattr(model, "pretrained_cfg", None)
    if dataclasses.is_dataclass(found) and not isinstance(found, type):
        found = dataclasses.asdict(found)
    if found is not None and not isinstance(found, Mapping):
        raise UnsupportedModelError(
            f"model.pretrained_cfg is a {type(found).__qualname__}: expected a dict, as timm.create_model makes it"
        )
    return dict(found or {})


def photo_settings(model: Any, given: Mapping[str, Any] | None) -> PhotoSettings:
    """Return how photos are prepared for a model.

    Args:
        model: a NaFlexVit.
        given: in place of what the model says; what is not in it is the model's.

    Raises:
        RequestError: what was given is not possible.
        UnsupportedModelError: what the model says is not.
    """
    if given is not None and (unknown := set(given) - {*SETTINGS, *_NOT_FOR_NAFLEX}):
        raise RequestError(f"preprocessing has {min(unknown)!r}: expected {', '.join(SETTINGS)}")
    channels, own = model.embeds.in_chans, pretrained_cfg_of(model)
    said = {name: _first_said((given or {}).get(name), own.get(name)) for name in SETTINGS}
    assumed = tuple(name for name in SETTINGS if said[name] is None) if channels == PHOTO_CHANNELS else ()
    found = resolve_data_config(args={"in_chans": channels}, pretrained_cfg=said)
    values: dict[str, list[float]] = {}
    for name in ("mean", "std"):
        from_caller = _first_said((given or {}).get(name)) is not None
        is_unsaid = channels != PHOTO_CHANNELS and not from_caller and not _fits(said[name], channels)
        values[name] = [] if is_unsaid else _per_channel(name, found[name], channels, from_caller)
    interpolation = found["interpolation"]
    try:
        str_to_interp_mode(interpolation)
    except Exception as error:  # of a look-up in timm's table: whatever the name is
        kind = RequestError if (given or {}).get("interpolation") else UnsupportedModelError
        raise kind(
            f"interpolation {interpolation!r} is not known to timm: expected 'bilinear' or 'bicubic', say"
        ) from error
    known = [name for name in SETTINGS if name not in assumed]
    origin = GIVEN if given else ("the model's pretrained_cfg" if known else DEFAULTS)
    if assumed and known:
        origin += f", and {DEFAULTS} of {', '.join(assumed)}"
    if not values["mean"] and not values["std"]:
        origin = UNKNOWN
    return PhotoSettings(values["mean"], values["std"], interpolation, origin, assumed)


def _first_said(*values: Any) -> Any:
    """Return the first value that says something, one number as that of all channels; None where none does."""
    for value in values:
        if value is not None and not (isinstance(value, str | tuple | list) and not value):
            return (value,) if isinstance(value, int | float) else value
    return None


def _fits(value: Any, channels: int) -> bool:
    """Whether a model's own value can be of images of so many channels: those of photos are inherited by any model."""
    return isinstance(value, tuple | list) and len(value) == channels


def _per_channel(name: str, value: Any, channels: int, from_caller: bool) -> list[float]:
    """Return a value for each channel: one number is that of all."""
    values = list(value) if isinstance(value, tuple | list) else [value]
    is_right = len(values) in (1, channels) and all(
        isinstance(one, int | float) and not isinstance(one, bool) and math.isfinite(one) for one in values
    )
    is_right = is_right and (name == "mean" or min(values) > 0)
    if not is_right:
        said, kind = ("preprocessing", RequestError) if from_caller else ("model.pretrained_cfg", UnsupportedModelError)
        least = "" if name == "mean" else ", each above 0"
        raise kind(f"{name} of {said} is {value!r}: expected one number, or {channels}{least}")
    return [float(one) for one in values] * (channels if len(values) == 1 else 1)
