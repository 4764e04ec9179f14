"""`add_resampled_on_cpu`: a resized learned grid added to the tokens of a batch, for training and eager inference.

A graph of `resample_at` has no loop, and pays for it with a weight for every cell at every token. A CPU may look at the
grids: here each distinct grid of a batch is resized once, one axis after the other, in a few percent of the
projection's work, forward and backward, and without a copy of the batch. It is an operator, so that no trace looks
inside and keeps the grids of one batch. Exported graphs have none of it.

Shape legend: B images, N tokens, n tokens that read the grid, T taps of a token, K taps of all tokens, H x W source
grid, h x w target grid, S cells of a grid, C channels.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor

from naflex_export.resample import (
    Mode,
    Resampling,
    axis_weights,
    full_precision,
    grid_taps,
    grids_of,
    reads_taps,
)


def add_resampled_on_cpu(
    x: Tensor,
    grid_HWC: Tensor,
    coord_BN2: Tensor,
    how: Resampling,
    lengths_B2: Tensor | None = None,
    *,
    fill_padding: bool = False,
) -> Tensor:
    """Add what `resample_at` gives, to float32 rounding; arguments as of `add_resampled`, on the CPU."""
    lengths_B2 = grids_of(coord_BN2) if lengths_B2 is None else lengths_B2
    arguments = (x, grid_HWC.float(), coord_BN2, lengths_B2, how.mode, how.antialias, how.align_corners, fill_padding)
    if torch.is_grad_enabled() and (x.requires_grad or grid_HWC.requires_grad):
        return cast(Tensor, _AddResampled.apply(*arguments))
    _add_resampled_(*arguments)
    return x


class _AddResampled(torch.autograd.Function):
    """Adds in place, differentiable as often as one likes."""

    @staticmethod
    def forward(x: Tensor, grid_HWC: Tensor, coord_BN2: Tensor, lengths_B2: Tensor, *kind: Any) -> Tensor:
        _add_resampled_(x, grid_HWC, coord_BN2, lengths_B2, *kind)
        return x

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, grid_HWC, coord_BN2, lengths_B2, *kind = inputs
        ctx.mark_dirty(x)
        ctx.save_for_backward(coord_BN2, lengths_B2)
        ctx.kind, ctx.source = kind, grid_HWC.shape[:2]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        of_grid = _gradient(grad, *ctx.saved_tensors, *ctx.kind, *ctx.source) if ctx.needs_input_grad[1] else None
        return grad, of_grid, None, None, None, None, None, None


@torch.library.custom_op("naflex_export::add_resampled_", mutates_args=("x",))
def _add_resampled_(
    x: Tensor,
    grid_HWC: Tensor,
    coord_BN2: Tensor,
    lengths_B2: Tensor,
    interpolation: str,  # called `mode` it would meet a parameter of torch's own on the way
    antialias: bool,
    align_corners: bool,
    fill_padding: bool,
) -> None:
    how = Resampling(cast(Mode, interpolation), antialias, align_corners)
    with torch.no_grad(), full_precision("cpu"):
        reading = _reading((grid_HWC.shape[0], grid_HWC.shape[1]), coord_BN2, lengths_B2, how, fill_padding)
        reading.add_to_(x.view(*coord_BN2.shape[:2], -1), grid_HWC.contiguous())


@torch.library.custom_op("naflex_export::add_resampled_gradient", mutates_args=())
def _gradient(
    grad: Tensor,
    coord_BN2: Tensor,
    lengths_B2: Tensor,
    interpolation: str,
    antialias: bool,
    align_corners: bool,
    fill_padding: bool,
    height: int,
    width: int,
) -> Tensor:
    """Return the gradient [H, W, C] float32 of the grid, for that of the sum, in the shape of `x`."""
    how = Resampling(cast(Mode, interpolation), antialias, align_corners)
    with torch.no_grad(), full_precision("cpu"):
        reading = _reading((height, width), coord_BN2, lengths_B2, how, fill_padding)
        total_HWC = grad.new_zeros(height, width, grad.shape[-1], dtype=torch.float32)
        reading.add_gradient_(total_HWC, grad.reshape(*coord_BN2.shape[:2], -1))
    return total_HWC


@_gradient.register_fake
def _(grad: Tensor, *arguments: Any) -> Tensor:
    return grad.new_empty(*arguments[-2:], grad.shape[-1], dtype=torch.float32)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    grad, coord_BN2, lengths_B2, *kind, _, _ = inputs
    ctx.save_for_backward(coord_BN2, lengths_B2)
    ctx.kind, ctx.shape, ctx.dtype = kind, grad.shape, grad.dtype


def _backward(ctx: Any, grad_HWC: Tensor) -> tuple[Tensor | None, ...]:
    """The gradient is linear in `grad`: what flows back is the other grid, resampled."""
    zero = grad_HWC.new_zeros(ctx.shape, dtype=ctx.dtype)
    return _AddResampled.apply(zero, grad_HWC, *ctx.saved_tensors, *ctx.kind), *(None,) * 8


torch.library.register_autograd(_gradient, _backward, setup_context=_keep)


def _reading(
    source: tuple[int, int], coord_BN2: Tensor, lengths_B2: Tensor, how: Resampling, fill_padding: bool
) -> _ByGrid | _ByTap:
    """Return how a batch reads the source grid."""
    kind = _ByTap if reads_taps(source, how) else _ByGrid
    return kind.of(source, coord_BN2, lengths_B2, how, fill_padding)


@dataclass
class _Target:
    """A target grid, how it is read, and the images that have it.

    Attributes:
        rows_hH: the resampling matrix of its rows.
        columns_wW: that of its columns.
        images: the images whose tokens go row by row through it.
        others: further images, and the cell of the target that each of their tokens reads.
    """

    rows_hH: Tensor
    columns_wW: Tensor
    images: list[int] = field(default_factory=list)
    others: list[tuple[int, Tensor]] = field(default_factory=list)

    @property
    def rows_come_first(self) -> bool:
        """Whether to resize rows, then columns: the order with fewer multiplications."""
        (h, H), (w, W) = self.rows_hH.shape, self.columns_wW.shape
        return h * W * (H + w) <= w * H * (W + h)

    def read(self, grid_HWC: Tensor) -> Tensor:
        """Return the resized grid [h * w, C]."""
        (h, H), (w, W) = self.rows_hH.shape, self.columns_wW.shape
        if self.rows_come_first:
            lines_hWC = (self.rows_hH @ grid_HWC.view(H, -1)).view(h, W, -1)
            return torch.bmm(self.columns_wW.expand(h, w, W), lines_hWC).view(h * w, -1)
        lines_HwC = torch.bmm(self.columns_wW.expand(H, w, W), grid_HWC)
        return (self.rows_hH @ lines_HwC.view(H, -1)).view(h * w, -1)

    def add_gradient_(self, total_HWC: Tensor, grad_SC: Tensor) -> None:
        """Add the source grid's gradient, for that [h * w, C] of the resized one."""
        (h, H), (w, W) = self.rows_hH.shape, self.columns_wW.shape
        if self.rows_come_first:
            lines_hWC = torch.bmm(self.columns_wW.mT.expand(h, W, w), grad_SC.view(h, w, -1))
            total_HWC.view(H, -1).addmm_(self.rows_hH.mT, lines_hWC.view(h, -1))
        else:
            lines_HwC = (self.rows_hH.mT @ grad_SC.view(h, -1)).view(H, w, -1)
            total_HWC.baddbmm_(self.columns_wW.mT.expand(H, W, w), lines_HwC)


@dataclass(frozen=True)
class _ByGrid:
    """Resizes the source once for each distinct target grid of the batch, and adds it to that grid's images."""

    targets: list[_Target]
    fill_padding: bool

    @classmethod
    def of(
        cls, source: tuple[int, int], coord_BN2: Tensor, lengths_B2: Tensor, how: Resampling, fill_padding: bool
    ) -> _ByGrid:
        grid_B2 = grids_of(coord_BN2)
        size_B1, token_N = grid_B2.prod(dim=1, keepdim=True), torch.arange(coord_BN2.shape[1])
        cell_BN = coord_BN2[..., 0] * grid_B2[:, 1:] + coord_BN2[..., 1]
        expected_BN = torch.where(token_N < size_B1, token_N, 0)
        read_BN = torch.tensor(fill_padding) | (token_N < size_B1)
        row_by_row_B = ((cell_BN == expected_BN) | ~read_BN).all(dim=1) & (size_B1 <= len(token_N)).squeeze(1)

        keys = torch.cat([grid_B2, lengths_B2], dim=1).tolist()
        rows = _matrices({key[2] for key in keys}, source[0], how)
        columns = _matrices({key[3] for key in keys}, source[1], how)
        targets: dict[tuple[int, ...], _Target] = {}
        for image, (key, row_by_row) in enumerate(zip(keys, row_by_row_B.tolist(), strict=True)):
            h, w, row_length, column_length = key
            target = targets.setdefault(tuple(key), _Target(rows[row_length][:h], columns[column_length][:w]))
            if row_by_row:
                target.images.append(image)
            else:
                target.others.append((image, cell_BN[image, read_BN[image]]))
        return cls(list(targets.values()), fill_padding)

    def add_to_(self, x_BNC: Tensor, grid_HWC: Tensor) -> None:
        """Add to each token the resized grid's value there."""
        for target in self.targets:
            pos_SC = target.read(grid_HWC).to(x_BNC.dtype)
            for image in target.images:
                x_BNC[image, : len(pos_SC)] += pos_SC
                if self.fill_padding:
                    x_BNC[image, len(pos_SC) :] += pos_SC[0]
            for image, cell_n in target.others:
                x_BNC[image, : len(cell_n)] += pos_SC[cell_n]

    def add_gradient_(self, total_HWC: Tensor, grad_BNC: Tensor) -> None:
        """Add the source grid's gradient, for that of `add_to_`'s result."""
        for target in self.targets:
            size = len(target.rows_hH) * len(target.columns_wW)
            grad_SC = total_HWC.new_zeros(size, total_HWC.shape[-1])
            for image in target.images:
                grad_SC += grad_BNC[image, :size]
                if self.fill_padding:
                    grad_SC[0] += grad_BNC[image, size:].sum(dim=0, dtype=torch.float32)
            for image, cell_n in target.others:
                grad_SC.index_add_(0, cell_n, grad_BNC[image, : len(cell_n)].float())
            target.add_gradient_(total_HWC, grad_SC)


def _matrices(lengths: Iterable[int], source: int, how: Resampling) -> dict[int, Tensor]:
    """Return the resampling matrix [n, S] of each target length n, all made at once."""
    distinct = sorted(lengths)
    position = torch.cat([torch.arange(length, dtype=torch.float32) for length in distinct])
    length = torch.tensor(distinct).repeat_interleave(torch.tensor(distinct)).float()
    return dict(zip(distinct, torch.split(axis_weights(position, length, source, how), distinct), strict=True))


@dataclass(frozen=True)
class _ByTap:
    """Reads at each token the few cells that matter to it, of a source too large to be resized as a whole.

    Attributes:
        cell_BNT: the cells, as indices into the source grid, row by row.
        weight_BNT: their weights, float32.
        counts: how many tokens of each image read any.
    """

    cell_BNT: Tensor
    weight_BNT: Tensor
    counts: list[int]

    @classmethod
    def of(
        cls, source: tuple[int, int], coord_BN2: Tensor, lengths_B2: Tensor, how: Resampling, fill_padding: bool
    ) -> _ByTap:
        cell_BNT, weight_BNT = grid_taps(source, coord_BN2, lengths_B2, how)
        tokens = coord_BN2.shape[1]
        sizes = grids_of(coord_BN2).prod(dim=1).tolist()
        return cls(cell_BNT, weight_BNT, [tokens if fill_padding else min(size, tokens) for size in sizes])

    def add_to_(self, x_BNC: Tensor, grid_HWC: Tensor) -> None:
        """Add to each token the resized grid's value there."""
        cells_SC = grid_HWC.flatten(0, 1)
        for image, count in enumerate(self.counts):
            cell_nT, weight_nT = self.cell_BNT[image, :count], self.weight_BNT[image, :count]
            x_BNC[image, :count] += _bags(cell_nT, cells_SC, weight_nT).to(x_BNC.dtype)

    def add_gradient_(self, total_HWC: Tensor, grad_BNC: Tensor) -> None:
        """Add the source grid's gradient: at each cell the sum over the tokens that read it."""
        num_images, tokens, taps = self.cell_BNT.shape
        read_BN = torch.arange(tokens) < torch.tensor(self.counts).unsqueeze(1)
        cell_K, order_K = self.cell_BNT[read_BN].flatten().sort()
        token_K = torch.arange(num_images * tokens).view(num_images, tokens)[read_BN].repeat_interleave(taps)
        starts_S = torch.searchsorted(cell_K, torch.arange(total_HWC.shape[0] * total_HWC.shape[1]))
        weight_K = self.weight_BNT[read_BN].flatten()[order_K]
        grad_SC = _bags(token_K[order_K], grad_BNC.flatten(0, 1).float(), weight_K, starts_S)
        total_HWC += grad_SC.view(total_HWC.shape)


def _bags(index: Tensor, rows: Tensor, weight: Tensor, starts: Tensor | None = None) -> Tensor:
    """Return the weighted sums of rows: of each line of a 2-D index, or of each run of a 1-D one."""
    return torch.nn.functional.embedding_bag(index, rows, starts, mode="sum", per_sample_weights=weight)
