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

Pixels = NDArray[np.uint8]

SUPPORT = {"bilinear": 1.0, "bicubic": 2.0}
"""Half the width of each filter, in target pixels where the image shrinks."""

_CUBIC = -0.5
"""The cubic's parameter, where a resize is antialiased."""

_BLOCK, _COLUMNS = 2**17, 16
"""Values of a block of rows, which stays in the cache; and target columns that share the source columns they read."""


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


def resize(image_HWC: Pixels, height: int, width: int, interpolation: str) -> Pixels:
    """Return an image resized as `torchvision.transforms.v2.functional.resize` with antialias does a uint8 tensor.

    Args:
        image_HWC: the image.
        height: to have.
        width: to have.
        interpolation: "bilinear" or "bicubic".
    """
    if width != image_HWC.shape[1]:
        image_HWC = _columns(image_HWC, taps_of(image_HWC.shape[1], width, interpolation))
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


def _columns(image_HWC: Pixels, taps: Taps) -> Pixels:
    """Return the image with its columns resized, by products of blocks."""
    height, source, channels = image_HWC.shape
    target, most = taps.weights.shape
    made_HwC = np.empty((height, target, channels), np.uint8)
    blocks: list[tuple[slice, slice, Any]] = []
    for first in range(0, target, _COLUMNS):
        columns = slice(first, min(first + _COLUMNS, target))
        start = int(taps.starts[columns].min())
        span = slice(start, min(int(taps.starts[columns].max()) + most, source))
        matrix = np.zeros((span.stop - span.start, columns.stop - columns.start), taps.dtype)
        for column in range(columns.start, columns.stop):
            at = int(taps.starts[column]) - start
            weights = taps.weights[column][: len(matrix) - at]
            matrix[at : at + len(weights), column - first] = weights
        blocks.append((span, columns, matrix))
    rows = max(32, _BLOCK // (source * channels))
    for row in range(0, height, rows):
        part_CHW = image_HWC[row : row + rows].transpose(2, 0, 1).astype(taps.dtype, order="C")
        flat = part_CHW.reshape(-1, source)
        sums = np.empty((len(flat), target), taps.dtype)
        for span, columns, matrix in blocks:
            np.matmul(flat[:, span], matrix, out=sums[:, columns])
        made_HwC[row : row + rows] = _rounded(sums, taps.precision).reshape(channels, -1, target).transpose(1, 2, 0)
    return made_HwC


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
