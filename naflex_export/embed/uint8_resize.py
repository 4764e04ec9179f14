"""torchvision's antialiased resize of uint8 images, in numpy.

What torch computes on a CPU with AVX2 (`compute_index_ranges_int16_weights` of ATen's UpSampleKernel.cpp): weights of
16 bits with as many digits as the largest of them allows, columns first, then rows, each rounded to uint8. Pillow's
resize, which it comes from, has weights of 22 digits; the two differ by up to 5 levels.

Shape legend: H, W source pixels, h, w target pixels, C channels.
"""

from __future__ import annotations

import functools
import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Pixels = NDArray[np.uint8]

SUPPORT = {"bilinear": 1.0, "bicubic": 2.0}
"""Half the width of each filter, in target pixels where the image shrinks."""

_CUBIC = -0.5
"""The cubic's parameter, where a resize is antialiased."""

_STRIP = {np.float32: 2**17, np.float64: 2**18}
"""Values of a channel in a strip of rows: enough for a product to be worth its call, and few enough for the cache."""


class Taps(NamedTuple):
    """Where each target pixel of an axis reads, and its weights."""

    starts: NDArray[np.int64]
    """[n] the first source pixel of each."""
    weights: NDArray[np.float64]
    """[n, k] whole numbers; zeros after the last."""
    precision: int
    """By how many binary digits a sum of them is to be shifted."""

    @property
    def dtype(self) -> type[np.floating]:
        """The smaller of two floating types in which every sum of weighted pixels is exact, whatever its order."""
        most = 255 * float(np.abs(self.weights).sum(axis=1).max()) + (1 << self.precision)
        return np.float32 if most < 2**24 else np.float64


def resize(image: Image.Image, height: int, width: int, interpolation: str) -> Pixels:
    """Return an image resized as `torchvision.transforms.v2.functional.resize` with antialias does a uint8 tensor.

    Args:
        image: of three channels.
        height: to have.
        width: to have.
        interpolation: "bilinear" or "bicubic".
    """
    if width == image.width:
        image_HWC = np.asarray(image)
    else:
        image_HWC = _columns(image, taps_of(image.width, width, interpolation))
    if height != image_HWC.shape[0]:
        image_HWC = _rows(image_HWC, taps_of(image_HWC.shape[0], height, interpolation))
    return image_HWC


@functools.lru_cache(maxsize=256)
def taps_of(source: int, target: int, interpolation: str) -> Taps:
    """Return what the target pixels of an axis read, in the arithmetic of ATen.

    Args:
        source: pixels along the axis.
        target: pixels along the axis.
        interpolation: "bilinear" or "bicubic".
    """
    scale = source / target
    support = SUPPORT[interpolation] * max(scale, 1.0)
    most = math.ceil(support) * 2 + 1
    centre_n = scale * (np.arange(target) + 0.5)
    start_n = np.maximum((centre_n - support + 0.5).astype(np.int64), 0)
    count_n = np.clip(np.minimum((centre_n + support + 0.5).astype(np.int64), source) - start_n, 0, most)
    tap_k = np.arange(most)
    distance_nk = (tap_k + start_n[:, None] - centre_n[:, None] + 0.5) * (1.0 / scale if scale >= 1.0 else 1.0)
    weight_nk = np.where(tap_k < count_n[:, None], _filter(np.abs(distance_nk), interpolation), 0.0)
    total_n = np.zeros(target)
    for tap in range(most):  # one after the other: numpy's own sum has another order, and other last digits
        total_n = total_n + weight_nk[:, tap]
    weight_nk = weight_nk / np.where(total_n == 0, 1.0, total_n)[:, None]
    largest, precision = float(weight_nk.max()), 0
    while precision < 22 and int(0.5 + largest * (1 << (precision + 1))) < 1 << 15:
        precision += 1
    scaled_nk = weight_nk * (1 << precision)
    return Taps(start_n, np.trunc(scaled_nk + np.where(weight_nk < 0, -0.5, 0.5)), precision)


def _filter(distance: NDArray[np.float64], interpolation: str) -> NDArray[np.float64]:
    x = distance
    if interpolation == "bilinear":
        return np.where(x < 1.0, 1.0 - x, 0.0)
    near = ((_CUBIC + 2.0) * x - (_CUBIC + 3.0)) * x * x + 1.0
    far = ((_CUBIC * x - 5.0 * _CUBIC) * x + 8.0 * _CUBIC) * x - 4.0 * _CUBIC
    return np.where(x < 1.0, near, np.where(x < 2.0, far, 0.0))


def _columns(image: Image.Image, taps: Taps) -> Pixels:
    """Return the image with its columns resized, by products of blocks.

    It is taken a strip of rows at a time, each channel by itself, as PIL hands them out: faster than the whole image,
    whose channels lie between each other.
    """
    source, height = image.size
    target = len(taps.weights)
    made_HwC = np.empty((height, target, 3), np.uint8)
    blocks = _blocks(taps, source)
    rows = min(max(32, _STRIP[taps.dtype] // source), height)
    flat_HW, sums_Hw = np.empty((rows, source), taps.dtype), np.empty((rows, target), taps.dtype)
    for first in range(0, height, rows):
        last = min(first + rows, height)
        flat, sums = flat_HW[: last - first], sums_Hw[: last - first]
        for channel, plane in enumerate(image.crop((0, first, source, last)).split()):
            np.copyto(flat, np.asarray(plane))
            for span, columns, matrix in blocks:
                np.matmul(flat[:, span], matrix, out=sums[:, columns])
            made_HwC[first:last, :, channel] = _rounded(sums, taps.precision)
    return made_HwC


def _blocks(taps: Taps, source: int) -> list[tuple[slice, slice, NDArray[Any]]]:
    """Return matrices of a few target columns each: the source columns that they read, the target ones, and weights."""
    target, most = taps.weights.shape
    found: list[tuple[slice, slice, NDArray[Any]]] = []
    tap_k = np.arange(most)
    together = 8 if most > 16 else 16  # the more columns, the more zeros, and the fewer products
    for first in range(0, target, together):
        columns = slice(first, min(first + together, target))
        starts_n = taps.starts[columns]
        start, stop = int(starts_n.min()), int(starts_n.max()) + most
        matrix = np.zeros((stop - start, len(starts_n)), taps.dtype)
        matrix[(starts_n - start)[:, None] + tap_k, np.arange(len(starts_n))[:, None]] = taps.weights[columns]
        found.append((slice(start, min(stop, source)), columns, matrix[: source - start]))  # what lies beyond is 0
    return found


def _rows(image_HWC: Pixels, taps: Taps) -> Pixels:
    """Return the image with its rows resized."""
    height, width, channels = image_HWC.shape
    target, most = taps.weights.shape
    flat = image_HWC.reshape(height, width * channels).astype(taps.dtype)
    weights = taps.weights.astype(taps.dtype)
    sums = np.empty((target, width * channels), taps.dtype)
    for row in range(target):
        start = int(taps.starts[row])
        stop = min(start + most, height)
        np.matmul(weights[row][: stop - start], flat[start:stop], out=sums[row])
    return _rounded(sums, taps.precision).reshape(target, width, channels)


def _rounded(sums: NDArray[Any], precision: int) -> Pixels:
    """Return sums of weighted pixels, which are changed, as pixels: half added, shifted, and held within 0 to 255."""
    sums += 1 << (precision - 1)
    sums *= 1 / (1 << precision)
    return np.clip(sums, 0, 255, out=sums).astype(np.uint8)  # which rounds towards zero, as the shift does from there
