"""From a path, bytes, a PIL image or an array to RGB pixels, by a policy for all that is no plain RGB photo."""

from __future__ import annotations

import io
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from naflex_export.errors import PhotoError, RequestError

Photo = str | os.PathLike[str] | bytes | bytearray | memoryview | Image.Image | NDArray[Any]
"""What a photo may be given as."""

MOST_PIXELS = 89_478_485
"""Of a photo, by default, as PIL has it: 0.27 GB decoded. A file of some kilobytes can claim billions. PIL itself warns
above it, and refuses twice as many unless its own `Image.MAX_IMAGE_PIXELS` is raised too."""

CHOICES = {
    "alpha": ("drop", "white"),
    "exif": ("apply", "ignore"),
    "sixteen_bit": ("scale", "clip"),
}
"""What each field of a policy may be."""

_DEEP = ("I;16", "I;16L", "I;16B", "I;16N", "I")
"""Modes of PIL's whose grey values have 16 bits."""


@dataclass(frozen=True)
class Policy:
    """What is done with photos that are no plain RGB images.

    Attributes:
        alpha: "drop" takes the colours as they are stored, "white" lays the photo on white.
        exif: "apply" turns a photo upright, as its camera noted; "ignore" takes it as it is stored.
        sixteen_bit: "scale" divides grey values of 16 bits by 257; "clip" takes those above 255 for white, as PIL does.
        most_pixels: of a photo; a larger one is refused before it is decoded.
        fast_jpeg: let a JPEG be decoded at a half, a quarter or an eighth of its size where it is still at least twice
            the size to have, each way.
    """

    alpha: str = "drop"
    exif: str = "apply"
    sixteen_bit: str = "scale"
    most_pixels: int = MOST_PIXELS
    fast_jpeg: bool = False

    def __post_init__(self) -> None:
        for name, choices in CHOICES.items():
            value = getattr(self, name)
            if value not in choices:
                raise RequestError(f"{name}={value!r}: expected one of {', '.join(map(repr, choices))}")
        if type(self.most_pixels) is not int or self.most_pixels < 1:
            raise RequestError(f"most_pixels={self.most_pixels!r}: expected an integer of at least 1")


def opened(photo: Photo, policy: Policy) -> Image.Image:
    """Return a photo as a PIL image within the limit of pixels, which may not be decoded yet.

    Raises:
        PhotoError: it is missing, no image, or too large.
    """
    if isinstance(photo, np.ndarray):
        image = _of_array(photo)
    elif isinstance(photo, Image.Image):
        image = photo
    elif isinstance(photo, bytes | bytearray | memoryview):
        image = _open(io.BytesIO(photo), f"a photo of {len(photo)} bytes")
    elif isinstance(photo, str | os.PathLike):
        image = _open(Path(photo), repr(os.fspath(photo)))
    else:
        raise PhotoError(f"a {type(photo).__name__} is no photo: expected a path, bytes, a PIL image or a numpy array")
    try:
        _check_size(image, policy)
    except PhotoError:
        if image is not photo:
            image.close()  # its file would stay open for as long as somebody holds the error
        raise
    return image


def _check_size(image: Image.Image, policy: Policy) -> None:
    width, height = image.size
    if width * height > policy.most_pixels:
        raise PhotoError(
            f"the photo has {width}x{height} = {width * height} pixels: expected at most {policy.most_pixels}; shrink "
            "it, or allow more by most_pixels"
        )
    if width < 1 or height < 1:
        raise PhotoError(f"the photo has {width}x{height} pixels: expected at least one each way")


def _open(source: Path | io.BytesIO, shown: str) -> Image.Image:
    try:
        return Image.open(source)
    except FileNotFoundError as error:
        raise PhotoError(f"{shown} does not exist: expected a photo") from error
    except IsADirectoryError as error:
        raise PhotoError(f"{shown} is a folder: expected a photo") from error
    except Exception as error:  # decoders raise errors of any class on damaged files
        raise PhotoError(f"{shown} cannot be read as an image ({_said(error)})") from error


def upright_size(image: Image.Image, policy: Policy) -> tuple[int, int]:
    """Return the height and width that an image has once it is turned as the policy says.

    Args:
        image: as `opened` gave it.
        policy: whether its orientation counts.
    """
    width, height = image.size
    return (width, height) if policy.exif == "apply" and _orientation(image) >= 5 else (height, width)


def _orientation(image: Image.Image) -> int:
    try:
        found = image.getexif().get(0x0112, 1)
    except Exception:  # damaged EXIF of any kind says nothing
        return 1
    return found if isinstance(found, int) and 1 <= found <= 8 else 1


def decoded(image: Image.Image, policy: Policy, least: tuple[int, int] | None = None) -> Image.Image:
    """Return an opened photo as an RGB image, upright if the policy says so.

    Args:
        image: as `opened` gave it.
        policy: for what is no plain RGB image.
        least: the upright height and width that it is going to be resized to; what `fast_jpeg` keeps above twice.

    Raises:
        PhotoError: it is damaged, or of a kind that has no plain meaning as RGB.
    """
    orientation = _orientation(image) if policy.exif == "apply" else 1
    try:
        if policy.fast_jpeg and least is not None and image.format == "JPEG":
            height, width = least if orientation < 5 else least[::-1]
            image.draft(None, (2 * width, 2 * height))  # of the sizes that a JPEG has, the next one above
        image.load()
        return _as_rgb(image if orientation == 1 else ImageOps.exif_transpose(image), policy)
    except PhotoError:
        raise
    except Exception as error:
        raise PhotoError(f"the photo cannot be decoded ({_said(error)}): it is damaged or cut off") from error


def _as_rgb(image: Image.Image, policy: Policy) -> Image.Image:
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode in _DEEP:
        if policy.sixteen_bit == "clip":
            return image.convert("RGB")
        grey = np.asarray(image).astype(np.int64)
        if grey.min() < 0 or grey.max() > 65535:
            raise PhotoError(
                f"the photo has grey values from {grey.min()} to {grey.max()}: expected 16 bits, 0 to 65535"
            )
        return Image.fromarray(((grey + 128) // 257).astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        raise PhotoError("the photo has floating-point values, of which nobody knows what is white: expected integers")
    has_alpha = image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info
    if has_alpha and policy.alpha == "white":
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, image).convert("RGB")
    if image.mode == "PA" or "transparency" in image.info:
        image = image.convert("RGBA")  # PIL has no way from the one to RGB, and warns of the other
    return image.convert("RGB")


def _of_array(array: NDArray[Any]) -> Image.Image:
    """Return an array [H, W] or [H, W, 1, 3 or 4] of 8 bits, or one of 16 bits of grey, as an image."""
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    is_grey, is_colour = array.ndim == 2, array.ndim == 3 and array.shape[2] in (3, 4)
    if not array.size or not (
        (array.dtype == np.uint8 and (is_grey or is_colour)) or (array.dtype == np.uint16 and is_grey)
    ):
        raise PhotoError(
            f"the array is {array.dtype} {list(array.shape)}: expected uint8 [height, width, 3], or 1 or 4 channels, "
            "or uint16 [height, width]"
        )
    return Image.fromarray(np.ascontiguousarray(array))


def _said(error: BaseException) -> str:
    if isinstance(error, UnidentifiedImageError):  # whose own text has an address in memory
        return "it is of no format that PIL knows"
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0][:200]
