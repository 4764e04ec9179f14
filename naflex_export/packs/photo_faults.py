"""What ports get wrong on the way from a photo to patches: the fingerprints of a pack's photos."""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from PIL import Image, ImageOps
from torch.nn import functional as F

from naflex_export.embed.preprocess import Array, Patches, Preprocessor
from naflex_export.embed.preprocessing import PIL, TORCHVISION, Preprocessing
from naflex_export.embed.size_rule import grid_of
from naflex_export.grid import Grid

TOKENS = 256
"""The most patches of a photo in a pack."""

Prepare = Callable[[Preprocessing, bytes], Patches]


@dataclass(frozen=True)
class PhotoFault:
    """A fault that ports have in what they do with photos.

    Attributes:
        says: what is wrong, in a sentence.
        prepare: returns the patches and the grid that a port with the fault makes of a photo's bytes.
        remedy: what to do.
    """

    says: str
    prepare: Prepare
    remedy: str


def prepared(said: Preprocessing, photo: bytes, exif: str = "apply") -> Patches:
    """Return the patches and the grid of a photo.

    Args:
        said: how photos are prepared.
        photo: an image file's bytes.
        exif: "apply" or "ignore", as of `Policy`.
    """
    return Preprocessor(said, ("patches",), "float32", TOKENS, exif=exif).one(photo)


def _with(**changed: str) -> Prepare:
    return lambda said, photo: prepared(replace(said, **changed), photo)  # type: ignore[arg-type]


def _other_resizer(said: Preprocessing, photo: bytes) -> Patches:
    return prepared(replace(said, resizer=TORCHVISION if said.resizer == PIL else PIL), photo)


def _upright(photo: bytes) -> Image.Image:
    return ImageOps.exif_transpose(Image.open(io.BytesIO(photo))).convert("RGB")


def _squashed(said: Preprocessing, photo: bytes) -> Patches:
    side = math.isqrt(TOKENS)
    rows, columns = said.patch_size
    image = _upright(photo).resize((side * columns, side * rows), Image.Resampling.BICUBIC)
    return _of_pixels(said, np.asarray(image, np.float32), Grid(side, side))


def _by_torch(antialias: bool) -> Prepare:
    """Return what resizes by torch, in float, with or without antialias, and rounds to no whole levels with it."""

    def prepare(said: Preprocessing, photo: bytes) -> Patches:
        image = _upright(photo)
        grid = grid_of(image.height, image.width, said.patch_size, TOKENS, said.upscale)
        size = [count * side for count, side in zip(grid, said.patch_size, strict=True)]
        mode = "bilinear" if said.interpolation == "bilinear" else "bicubic"
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).unsqueeze(0).float()
        resized = F.interpolate(pixels, size, mode=mode, antialias=antialias, align_corners=False).clamp(0, 255)
        resized = resized if antialias else resized.round()
        return _of_pixels(said, resized[0].permute(1, 2, 0).numpy(), grid)

    return prepare


def _of_pixels(said: Preprocessing, pixels_HWC: Array, grid: Grid) -> Patches:
    """Return patches of pixels of 0 to 255, whole numbers or not."""
    rows, columns = said.patch_size
    order = [2, 1, 0] if said.channel_order == "bgr" else [0, 1, 2]
    normalized = (pixels_HWC * said.rescale - np.array(said.mean)) / np.array(said.std)
    cut = normalized[..., order].reshape(grid.height, rows, grid.width, columns, 3)
    turned = cut.transpose((0, 2, 1, 3, 4) if said.channels_last else (0, 2, 4, 1, 3))
    return turned.reshape(grid.tokens, -1).astype(np.float32), grid


PHOTO_FAULTS: dict[str, PhotoFault] = {
    "exif-ignored": PhotoFault(
        "a photo's orientation in its EXIF data is ignored",
        lambda said, photo: prepared(said, photo, exif="ignore"),
        "turn a photo upright before it is resized",
    ),
    "other-resizer": PhotoFault(
        "photos are resized by the other one of PIL and torchvision's uint8 tensors",
        _other_resizer,
        "take the resizer that the README names",
    ),
    "photo-resized-in-float": PhotoFault(
        "photos are resized in floating point, and not rounded to 8 bits",
        _by_torch(antialias=True),
        "round a resized photo to whole levels from 0 to 255, as the README's resizer does",
    ),
    "photo-without-antialias": PhotoFault(
        "photos are resized without antialias",
        _by_torch(antialias=False),
        "widen the filter where a photo is made smaller, as PIL does",
    ),
    "photo-bilinear": PhotoFault(
        "photos are resized by bilinear interpolation",
        _with(interpolation="bilinear"),
        "take the interpolation that the manifest names for photos",
    ),
    "photo-bicubic": PhotoFault(
        "photos are resized by bicubic interpolation",
        _with(interpolation="bicubic"),
        "take the interpolation that the manifest names for photos",
    ),
    "photo-squashed": PhotoFault(
        "photos are resized to a square, whatever their shape",
        _squashed,
        "choose the grid by the rule in the README, which keeps a photo's shape",
    ),
}
"""Each by its name in a pack."""
