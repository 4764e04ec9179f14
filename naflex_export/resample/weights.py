"""Resampling as linear algebra: what `F.interpolate` does to a grid, as weights and a matmul.

Resizing along one axis is linear. Target position `p` of `n` reads source sample `j` of `S` with a weight that depends
only on the distance between their centres, and that distance is a ratio of integers:

    d(p, j) = ((2j + o) * n - (2p + o) * S) / (2 * n)      o = 1: centres at half pixels; o = 0: corners aligned

so the weights of any position of any target length are a few elementwise operations away, with no table, no loop and
no limit on the length. Numerators are integers below 2**24, exact in float32; the division rounds once.

Shape legend: B images, N tokens, S source samples, T samples that a position reads, H x W source grid, C channels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from naflex_export.errors import RequestError
from naflex_export.resample.coordinates import inside, positions

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

DENSE_CELLS = 1024
"""Cells of a source grid up to which every token has a weight for every cell; the rule is `resample_at`'s.

A 16x16 grid costs about 0.2 % of a ViT-B encoder as one matmul, 32x32 under 1 %; C-RADIO's 128x128 would cost more than
a tenth and hold 16,384 weights a token.
"""


def axis_weights(position: Tensor, length: Tensor, source: int, resampling: Resampling) -> Tensor:
    """Return the weights with which target positions read a source axis.

    Args:
        position: [...] target positions along the axis, 0 <= position < length; floating point, integer values.
        length: target lengths, broadcastable to `position`, same dtype.
        source: number of source samples S.
        resampling: the resize to reproduce.

    Returns:
        [..., S] in the dtype of `position`; each row sums to 1. In float32 a weight is within 3e-7 of its exact value.

    Follows ATen's UpSampleKernel.cpp: `compute_indices_weights_aa` with antialias, `guard_index_and_lambda` without.
    """
    scale = _Scale.of(length, source, resampling)
    border = 0 if resampling.antialias else resampling.radius
    sample = torch.arange(-border, source + border, device=position.device, dtype=position.dtype)
    offset = scale.offset(sample, position)
    if resampling.antialias:
        widened = torch.maximum(scale.numerator, scale.denominator)
        weights = resampling.kernel(offset / (2 * widened).unsqueeze(-1))
        return weights / weights.sum(-1, keepdim=True)

    # Without antialias, samples beyond the border repeat the border sample: fold their weights onto it.
    weights = resampling.kernel(offset / (2 * scale.denominator).unsqueeze(-1))
    before, inside, after = torch.split(weights, [border, source, border], dim=-1)
    first = torch.nn.functional.pad(before.sum(-1, keepdim=True), (0, source - 1))
    last = torch.nn.functional.pad(after.sum(-1, keepdim=True), (source - 1, 0))
    return inside + first + last


def axis_samples(position: Tensor, length: Tensor, source: int, resampling: Resampling) -> tuple[Tensor, Tensor]:
    """Return the few samples that target positions read without antialias, and their weights.

    The same sums as `axis_weights` says, for a source too long to give every sample a weight.

    Args:
        position: [...] target positions along the axis, 0 <= position < length; floating point, integer values.
        length: target lengths, broadcastable to `position`, same dtype.
        source: number of source samples S.
        resampling: the resize to reproduce, without antialias.

    Returns:
        Indices [..., T] int64, 0 <= index < S, and weights [..., T] in the dtype of `position`. T is 2 for bilinear and
        4 for bicubic; a sample at the border may come more than once.

    Raises:
        RequestError: the resize antialiases, so that a position may read every sample.
    """
    if resampling.antialias:
        raise RequestError("an antialiased resize reads no fixed number of samples: use axis_weights")
    scale = _Scale.of(length, source, resampling)
    below = torch.floor(-scale.offset(position.new_zeros(1), position).squeeze(-1) / (2 * scale.denominator))
    step = torch.arange(1 - resampling.radius, 1 + resampling.radius, device=position.device, dtype=position.dtype)
    sample = below.unsqueeze(-1) + step
    weights = resampling.kernel(scale.offset(sample, position) / (2 * scale.denominator).unsqueeze(-1))
    return sample.clamp(0, source - 1).long(), weights


def grid_cells(
    source: tuple[int, int], coord_BN2: Tensor, lengths_B2: Tensor | None, resampling: Resampling
) -> tuple[Tensor, Tensor]:
    """Return the few cells of a source grid that each token reads without antialias, and their weights.

    Args:
        source: height and width of the grid.
        coord_BN2: [B, N, 2] integer (y, x) of each token.
        lengths_B2: [B, 2] lengths to resize to, as in `resample_at`.
        resampling: the resize to reproduce, without antialias.

    Returns:
        Indices [B, N, T] int64 into the cells, row by row, and weights [B, N, T] float32; T is 4 or 16.

    Raises:
        RequestError: as `axis_samples`.
    """
    position_BN2, length_BN2 = positions(coord_BN2, lengths_B2)
    (y_BN, x_BN), (height_BN, width_BN) = position_BN2.unbind(-1), length_BN2.unbind(-1)
    row_BNT, row_weight_BNT = axis_samples(y_BN, height_BN, source[0], resampling)
    column_BNT, column_weight_BNT = axis_samples(x_BN, width_BN, source[1], resampling)
    cell_BNTT = row_BNT.unsqueeze(-1) * source[1] + column_BNT.unsqueeze(-2)
    weight_BNTT = row_weight_BNT.unsqueeze(-1) * column_weight_BNT.unsqueeze(-2)
    return cell_BNTT.flatten(-2), weight_BNTT.flatten(-2)


def grid_weights(
    source: tuple[int, int],
    coord_BN2: Tensor,
    lengths_B2: Tensor | None,
    resampling: Resampling,
    *,
    fill_padding: bool = False,
) -> tuple[Tensor, Tensor]:
    """Return the weights with which each token reads the rows and the columns of a source grid.

    Arguments as of `resample_at`. The weight of a cell is that of its row times that of its column.

    Returns:
        [B, N, H], zero for padding unless `fill_padding`, and [B, N, W], both float32.
    """
    position_BN2, length_BN2 = positions(coord_BN2, lengths_B2)
    (y_BN, x_BN), (height_BN, width_BN) = position_BN2.unbind(-1), length_BN2.unbind(-1)
    rows_BNH = axis_weights(y_BN, height_BN, source[0], resampling)
    rows_BNH = rows_BNH if fill_padding else rows_BNH * inside(coord_BN2)
    return rows_BNH, axis_weights(x_BN, width_BN, source[1], resampling)


def reads_few_cells(source: tuple[int, int], resampling: Resampling) -> bool:
    """Whether a grid is too large for a weight a cell, and few of its cells matter to a token."""
    return not resampling.antialias and source[0] * source[1] > DENSE_CELLS


@dataclass(frozen=True)
class _Scale:
    """Source samples per target sample, as a ratio of integers held in float tensors, and how centres lie."""

    numerator: Tensor
    denominator: Tensor
    half: int

    @classmethod
    def of(cls, length: Tensor, source: int, resampling: Resampling) -> _Scale:
        half = (
            0 if resampling.align_corners and not resampling.antialias else 1
        )  # ATen's antialias keeps half pixels either way
        if resampling.align_corners:
            # scale = (S - 1) / (n - 1), and 0 for a single target sample
            return cls((length > 1) * (source - 1), (length - 1).clamp(min=1), half)
        return cls(torch.full_like(length, source), length, half)

    def offset(self, sample: Tensor, position: Tensor) -> Tensor:
        """Return the distance from each `position` [...] to `sample` [S] or [..., S], times twice the denominator."""
        centre = ((2 * position + self.half) * self.numerator).unsqueeze(-1)
        return (2 * sample + self.half) * self.denominator.unsqueeze(-1) - centre


def resampling_matrix(
    source: int, target: int, resampling: Resampling = BICUBIC, dtype: torch.dtype = torch.float32
) -> Tensor:
    """Return the [target, source] matrix that resizes an axis, computed in float64 on the CPU.

    `resampling_matrix(S, n, resampling) @ x` equals `F.interpolate` of `x` along its first axis.

    Args:
        source: number of source samples.
        target: number of target samples.
        resampling: the resize to reproduce.
        dtype: of the matrix, to which it is rounded once.

    Raises:
        RequestError: a length is below 1.
    """
    if source < 1 or target < 1:
        raise RequestError(f"cannot resample {source} samples to {target}: expected both lengths to be at least 1")
    position = torch.arange(target, dtype=torch.float64, device="cpu")
    length = torch.full_like(position, target)
    return axis_weights(position, length, source, resampling).to(dtype)
