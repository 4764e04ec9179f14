"""A port's way from a photo to patches, written from a pack's README: PIL and numpy, no import of the package.

`patches_of(photo, side, mean, std, fault)` is right without a fault, and as such ports go wrong with one of `FAULTS`.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

Array = NDArray[np.float64]

FAULTS = (
    "exif-ignored",
    "other-resizer",
    "photo-without-antialias",
    "photo-resized-in-float",
    "photo-bilinear",
    "photo-squashed",
)
TOKENS = 256


def grid_of(height: int, width: int, side: int) -> tuple[int, int]:
    low, high = 1e-6, 100.0
    while high - low >= 1e-5:
        ratio = (low + high) / 2
        fits = math.ceil(height * ratio / side) * math.ceil(width * ratio / side) <= TOKENS
        low, high = (ratio, high) if fits else (low, ratio)
    return max(1, math.ceil(height * low / side)), max(1, math.ceil(width * low / side))


def kernel(x: Array) -> Array:
    """Return Keys' cubic with a = -0.5."""
    x = np.abs(x)
    near, far = (1.5 * x - 2.5) * x * x + 1, ((-0.5 * x + 2.5) * x - 4) * x + 2
    return np.where(x <= 1, near, np.where(x < 2, far, 0.0))


def axis(source: int, target: int, antialias: bool) -> Array:
    scale = source / target
    width = max(1.0, scale) if antialias else 1.0
    at = (np.arange(target) + 0.5) * scale - 0.5
    if antialias:
        weights = kernel((np.arange(source) - at[:, None]) / width)
        return weights / weights.sum(axis=1, keepdims=True)
    first, weights = np.floor(at).astype(int), np.zeros((target, source))
    for tap in range(-1, 3):  # torch's cubic without antialias, a = -0.75, its border clamped
        x = np.abs(at - first - tap)
        near, far = (1.25 * x - 2.25) * x * x + 1, ((-0.75 * x + 3.75) * x - 6) * x + 3
        share = np.where(x <= 1, near, np.where(x < 2, far, 0.0))
        np.add.at(weights, (np.arange(target), np.clip(first + tap, 0, source - 1)), share)
    return weights


def resized(image: Image.Image, height: int, width: int, fault: str) -> Array:
    if fault in ("photo-without-antialias", "photo-resized-in-float"):
        pixels, antialias = np.asarray(image, dtype=np.float64), fault == "photo-resized-in-float"
        rows, columns = axis(image.height, height, antialias), axis(image.width, width, antialias)
        return np.clip(np.einsum("yi,xj,ijc->yxc", rows, columns, pixels, optimize=True), 0, 255)
    if fault == "other-resizer":
        import torch
        from torchvision.transforms.v2 import functional as F

        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)
        made = F.resize(pixels, [height, width], F.InterpolationMode.BICUBIC, antialias=True)
        return made.permute(1, 2, 0).numpy().astype(np.float64)
    filter_ = Image.Resampling.BILINEAR if fault == "photo-bilinear" else Image.Resampling.BICUBIC
    return np.asarray(image.resize((width, height), filter_), dtype=np.float64)


def patches_of(
    photo: Path, side: int, mean: list[float], std: list[float], fault: str = ""
) -> tuple[NDArray[np.float32], tuple[int, int]]:
    """Return the patches [n, D] of a photo and its grid."""
    image = Image.open(photo)
    image = (image if fault == "exif-ignored" else ImageOps.exif_transpose(image)).convert("RGB")
    height, width = (16, 16) if fault == "photo-squashed" else grid_of(image.height, image.width, side)
    pixels = (resized(image, height * side, width * side, fault) / 255 - np.array(mean)) / np.array(std)
    cut = pixels.reshape(height, side, width, side, 3).transpose(0, 2, 1, 3, 4)
    return cut.reshape(height * width, -1).astype(np.float32), (height, width)
