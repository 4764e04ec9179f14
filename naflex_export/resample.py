"""Resampling as linear algebra: what `F.interpolate` does to a grid, as weights and a matmul.

Resizing along one axis is linear. Target position `p` of `n` reads source sample `j` of `S` with a weight that depends
only on the distance between their centres, and that distance is a ratio of integers:

    d(p, j) = ((2j + o) * n - (2p + o) * S) / (2 * n)      o = 1: centres at half pixels; o = 0: corners aligned

so the weights of any position of any target length are a few elementwise operations away, with no table, no loop and
no limit on the length. Numerators are integers below 2**24, exact in float32; the division rounds once.

Shape legend: B images, N tokens, S source samples, H x W source grid, C channels.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from naflex_export.errors import RequestError

Mode = Literal["bilinear", "bicubic"]


@dataclass(frozen=True)
class Resampling:
    """Which resize is meant, in the words of `F.interpolate`.

    Attributes:
        mode: "bilinear" or "bicubic".
        antialias: widen the filter when the target is shorter than the source.
        align_corners: map the first and last samples of the target onto those of the source.
    """

    mode: Mode = "bicubic"
    antialias: bool = True
    align_corners: bool = False

    def __post_init__(self) -> None:
        if self.mode not in ("bilinear", "bicubic"):
            raise RequestError(
                f"interpolation mode {self.mode!r} is not supported: expected 'bilinear' or 'bicubic'",
            )

    @property
    def radius(self) -> int:
        """Half the width of the filter, in source samples before any antialiasing."""
        return 1 if self.mode == "bilinear" else 2

    def kernel(self, distance: Tensor) -> Tensor:
        """Weight of a sample at `distance` (in samples, any sign) from the point that reads it.

        The cubic is Keys' (1981) with the two constants that PyTorch uses: a = -1/2 with antialias, as Pillow has,
        and a = -3/4 without, as OpenCV has.
        """
        x = distance.abs()
        if self.mode == "bilinear":
            return (1 - x).clamp(min=0)
        a = -0.5 if self.antialias else -0.75
        near = 1 - x * x * ((a + 3) - (a + 2) * x)
        beyond = (2 - x).clamp(min=0)
        far = a * (x - 1) * beyond * beyond
        return torch.where(x < 1, near, far)


BICUBIC = Resampling()


def axis_weights(position: Tensor, length: Tensor, source: int, how: Resampling) -> Tensor:
    """Return the weights with which target positions read a source axis.

    Args:
        position: [...] target positions along the axis, 0 <= position < length; floating point, integer values.
        length: target lengths, broadcastable to `position`, same dtype.
        source: number of source samples S.
        how: the resize to reproduce.

    Returns:
        [..., S] in the dtype of `position`; each row sums to 1. In float32 a weight is within 3e-7 of its exact value.

    Follows ATen's UpSampleKernel.cpp: `compute_indices_weights_aa` with antialias, `guard_index_and_lambda` without.
    """
    if how.align_corners:
        # scale = (S - 1) / (n - 1), and 0 for a single target sample
        numerator, denominator = (length > 1) * (source - 1), (length - 1).clamp(min=1)
    else:
        numerator, denominator = torch.full_like(length, source), length
    half = 0 if how.align_corners and not how.antialias else 1  # ATen's antialias keeps half pixels either way
    border = 0 if how.antialias else how.radius

    sample = torch.arange(-border, source + border, device=position.device, dtype=position.dtype)
    offset = (2 * sample + half) * denominator.unsqueeze(-1) - ((2 * position + half) * numerator).unsqueeze(-1)
    if how.antialias:
        weights = how.kernel(offset / (2 * torch.maximum(numerator, denominator)).unsqueeze(-1))
        return weights / weights.sum(-1, keepdim=True)

    # Without antialias, samples beyond the border repeat the border sample: fold their weights onto it.
    weights = how.kernel(offset / (2 * denominator).unsqueeze(-1))
    before, inside, after = torch.split(weights, [border, source, border], dim=-1)
    first = torch.nn.functional.pad(before.sum(-1, keepdim=True), (0, source - 1))
    last = torch.nn.functional.pad(after.sum(-1, keepdim=True), (source - 1, 0))
    return inside + first + last


def resampling_matrix(source: int, target: int, how: Resampling = BICUBIC) -> Tensor:
    """Return the [target, source] float32 matrix that resizes an axis, computed in float64.

    `resampling_matrix(S, n, how) @ x` equals `F.interpolate` of `x` along its first axis.

    Raises:
        RequestError: a length is below 1.
    """
    if source < 1 or target < 1:
        raise RequestError(f"cannot resample {source} samples to {target}: expected both lengths to be at least 1")
    position = torch.arange(target, dtype=torch.float64)
    length = torch.full_like(position, target)
    return axis_weights(position, length, source, how).to(torch.float32)


def resample_at(
    grid_HWC: Tensor,
    coord_BN2: Tensor,
    how: Resampling,
    lengths_B2: Tensor | None = None,
) -> Tensor:
    """Return a learned grid, resized for each image and read at each of its tokens.

    Args:
        grid_HWC: [H, W, C] the source grid, any floating dtype; resampled in float32.
        coord_BN2: [B, N, 2] integer (y, x) of each token, row by row; padding holds zeros.
        how: the resize to reproduce.
        lengths_B2: [B, 2] lengths to resize to, in patches, integer; by default each image's own grid, the largest
            coordinate plus one. Larger ones read the upper left corner of a larger resize (aspect-preserving).

    Returns:
        [B, N, C] float32; zero beyond the first h * w tokens of an image, as timm and the reference loop have it.
    """
    source_h, source_w, _ = grid_HWC.shape
    grid_B2 = coord_BN2.amax(dim=1) + 1
    lengths_B12 = (grid_B2 if lengths_B2 is None else lengths_B2).unsqueeze(1).float()
    coord_BN2 = coord_BN2.float()
    token_N = torch.arange(coord_BN2.shape[1], device=coord_BN2.device)
    inside_BN1 = (token_N < grid_B2.prod(dim=1, keepdim=True)).unsqueeze(-1)

    length_BN2 = lengths_B12.expand_as(coord_BN2)
    rows_BNH = axis_weights(coord_BN2[..., 0], length_BN2[..., 0], source_h, how) * inside_BN1
    columns_BNW = axis_weights(coord_BN2[..., 1], length_BN2[..., 1], source_w, how)
    weights_BNS = (rows_BNH.unsqueeze(-1) * columns_BNW.unsqueeze(-2)).flatten(-2)
    with full_precision(grid_HWC.device.type):
        return weights_BNS @ grid_HWC.float().flatten(0, 1)


def full_precision(device_type: str) -> AbstractContextManager[object]:
    """Return a context in which autocast leaves float32 matmuls alone; free where autocast is off."""
    if torch.is_autocast_enabled(device_type):
        return torch.autocast(device_type, enabled=False)
    return nullcontext()
