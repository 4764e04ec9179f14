"""What a manifest says of preprocessing: one form for all libraries, read from old artifacts too."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from naflex_export.embed.decode import CHOICES, Policy
from naflex_export.embed.uint8_resize import SUPPORT
from naflex_export.errors import ArtifactError, RequestError

PIL, TORCHVISION = "pil", "torchvision-uint8"
SEPARATE, FUSED = "separate", "fused"

INTERPOLATIONS = {
    PIL: ("nearest", "bilinear", "bicubic", "lanczos", "box", "hamming"),
    TORCHVISION: tuple(SUPPORT),
}
"""Of each resizer."""

_OF_PIL = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic", 4: "box", 5: "hamming"}
"""PIL's numbers, which transformers' settings hold."""

RULE = "naflex"


@dataclass(frozen=True)
class Preprocessing:
    """What turns a photo into patches; docs/preprocessing.md says what each field means.

    Attributes:
        library: whose tensors these are.
        patch_size: height and width of a patch, in pixels.
        mean: of each channel, red, green and blue.
        std: of each channel.
        interpolation: of the resizer.
        resizer: "pil" or "torchvision-uint8".
        rescale: what a pixel is multiplied with ahead of the mean.
        normalize: "separate" rescales, rounds, and then takes off the mean; "fused" does all in pixels.
        channel_order: "rgb" or "bgr".
        channels_last: whether a patch's values are ordered by row, column, channel; else by channel, row, column.
        rule: of sizes.
        upscale: enlarge photos of fewer patches than there are tokens.
        alpha: as of `Policy`.
        exif: as of `Policy`.
        sixteen_bit: as of `Policy`.
    """

    library: str
    patch_size: tuple[int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: str
    resizer: str = PIL
    rescale: float = 1 / 255
    normalize: str = SEPARATE
    channel_order: str = "rgb"
    channels_last: bool = True
    rule: str = RULE
    upscale: bool = True
    alpha: str = "drop"
    exif: str = "apply"
    sixteen_bit: str = "scale"

    def policy(self, **chosen: Any) -> Policy:
        """Return the policy for photos, with what a caller chose in place of the artifact's own.

        Args:
            chosen: attributes of `Policy`; None for the artifact's own.
        """
        own = {name: getattr(self, name) for name in CHOICES}
        return Policy(**own | {name: value for name, value in chosen.items() if value is not None})

    def check(self) -> None:
        """Check that this release can do all of it.

        Raises:
            RequestError: it cannot; the message names the field.
        """
        known = {
            "rule": (RULE,),
            "resizer": tuple(INTERPOLATIONS),
            "normalize": (SEPARATE, FUSED),
            "channel_order": ("rgb", "bgr"),
            **CHOICES,
        }
        known["interpolation"] = INTERPOLATIONS.get(self.resizer, ())
        for name, values in known.items():
            if getattr(self, name) not in values:
                raise RequestError(
                    f"the artifact's preprocessing has {name} {getattr(self, name)!r}, and this release knows "
                    f"{', '.join(map(repr, values))}: preprocess with {self.library} itself, and call nx.load"
                )
        if len(self.mean) != 3 or len(self.std) != 3:
            raise RequestError(
                f"the artifact's preprocessing is for images of {len(self.mean)} channels: expected 3, as photos have"
            )

    def _check_types(self) -> None:
        """Check what is no text and has no list of choices.

        Raises:
            TypeError: a value is of another type, or out of its range.
        """
        for name in ("upscale", "channels_last"):
            if not isinstance(getattr(self, name), bool):
                raise TypeError(f"{name} is {getattr(self, name)!r}")
        rescale: object = self.rescale
        if isinstance(rescale, bool) or not isinstance(rescale, int | float) or not 0 < rescale <= 1:
            raise TypeError(f"rescale is {rescale!r}")
        if len(self.mean) != len(self.std) or min(self.patch_size) < 1:
            raise TypeError(f"mean {self.mean}, std {self.std} and patch_size {self.patch_size} do not go together")

    def table(self) -> NDArray[np.float32]:
        """Return what each pixel value becomes in each channel [256, 3], in the arithmetic of the library."""
        pixel_V1 = np.arange(256, dtype=np.float64)[:, None]
        mean_C, std_C = np.array(self.mean, np.float32), np.array(self.std, np.float32)
        if self.normalize == FUSED:
            factor = np.float32(1.0 / self.rescale)
            return (pixel_V1.astype(np.float32) - mean_C * factor) / (std_C * factor)
        return ((pixel_V1 * self.rescale).astype(np.float32) - mean_C) / std_C

    def fields(self) -> dict[str, Any]:
        """Return all of it as plain JSON values, for a manifest."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}

    @classmethod
    def of(cls, fields: Mapping[str, Any]) -> Preprocessing:
        """Return what a manifest's `preprocessing` says.

        Artifacts made before it said everything are understood: their library's defaults of that time are what they
        were judged with.

        Raises:
            RequestError: photos are prepared elsewhere, as those of vision towers are.
            ArtifactError: a field is missing or of another type.
        """
        if "settings_from" in fields and not {"mean", "image_mean"} & fields.keys():
            raise RequestError(
                f"photos are prepared by {fields['settings_from']}, and the artifact holds no settings of that: make "
                "its inputs there, and call nx.load"
            )
        try:
            read = _of_transformers(fields) if "image_mean" in fields and "mean" not in fields else dict(fields)
            names = cls.__dataclass_fields__
            values = {name: value for name, value in read.items() if name in names}
            for name in ("mean", "std"):
                values[name] = tuple(float(value) for value in values[name])
            size = values["patch_size"]
            height, width = (size, size) if isinstance(size, int) else size
            values["patch_size"] = (int(height), int(width))
            made = cls(**values)
            made._check_types()
            return made
        except (KeyError, TypeError, ValueError) as error:
            raise ArtifactError(
                f"the artifact's manifest does not say how photos are preprocessed ({error!r}): export again"
            ) from error


def _of_transformers(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of a `Siglip2ImageProcessor`, which is all that old manifests hold, in our words.

    Its torchvision backend was what artifacts were judged with: torchvision is always there where they are made.
    """
    return of_processor(settings["library"], settings["patch_size"], settings, is_torchvision=True).fields()


def of_processor(
    library: str, patch_size: int, settings: Mapping[str, Any], is_torchvision: bool, alpha: str = "white"
) -> Preprocessing:
    """Return what an image processor of transformers does.

    Args:
        library: its name.
        patch_size: that it is called with.
        settings: its own, as it saves them. Steps that are turned off get names that `Preprocessing.check` refuses,
            but for the two that another factor says as well.
        is_torchvision: whether its backend is torchvision, which resizes otherwise and normalizes in one step.
        alpha: what it does with transparency.
    """
    do = {name: settings.get(f"do_{name}", True) for name in ("resize", "rescale", "normalize")}
    separate = SEPARATE if do["normalize"] else "none"
    number = settings.get("resample", 2)
    return Preprocessing(
        library=library,
        patch_size=(patch_size, patch_size),
        mean=tuple(settings["image_mean"]),
        std=tuple(settings["image_std"]),
        interpolation=_OF_PIL.get(number, str(number)),
        resizer=TORCHVISION if is_torchvision else PIL,
        rescale=settings.get("rescale_factor", 1 / 255) if do["rescale"] else 1.0,
        normalize=FUSED if is_torchvision and do["rescale"] and do["normalize"] else separate,
        rule=RULE if do["resize"] else "none",
        alpha=alpha,
    )
