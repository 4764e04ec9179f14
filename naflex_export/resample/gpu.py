"""A resized learned grid read on a GPU, by kernels that wait for nothing and hold no weight for every cell.

`resample_at` multiplies a weight for every cell with every token. Most are zero: a token reads a few rows of the source
grid, and its neighbours the same. The kernels skip what a block of tokens does not read, whatever the order of the
tokens, and skip padding altogether; nothing looks at the grids on the host.

Shape legend: B images, N tokens, R = B * N tokens of the batch, T taps, H x W source grid, C channels.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from naflex_export.resample import triton_kernels as kernels
from naflex_export.resample.weights import Resampling, grid_taps, grid_weights, inside, reads_taps

BLOCK = {"BLOCK_R": 32, "BLOCK_C": 64}
"""Tokens and channels of a program."""

COMPILED = {"enable_fp_fusion": True}
"""How Triton compiles the kernels: sums round once for a product and its addition, whatever Triton's own default is."""

PARTIAL_BYTES = 2**25
"""Most bytes of partial sums of a gradient; as many programs work at a cell of the grid at a time."""


def reading(
    source: tuple[int, int], coord_BN2: Tensor, lengths_B2: Tensor, how: Resampling, fill_padding: bool
) -> _Products | _Taps:
    """Return how a batch reads the source grid: arguments as of `add_resampled`."""
    if reads_taps(source, how):
        cell_BNT, weight_BNT = grid_taps(source, coord_BN2, lengths_B2, how)
        weight_BNT = weight_BNT if fill_padding else weight_BNT * inside(coord_BN2)
        return _Taps(cell_BNT.flatten(0, 1).int(), weight_BNT.flatten(0, 1).contiguous())
    rows_BNH, columns_BNW = grid_weights(source, coord_BN2, lengths_B2, how, fill_padding=fill_padding)
    return _Products(rows_BNH.flatten(0, 1).mT.contiguous(), columns_BNW.flatten(0, 1).contiguous())


@dataclass(frozen=True)
class _Products:
    """Reads every cell with the product of a row's and a column's weight.

    Attributes:
        rows_HR: the rows' weights, float32; zero for what reads nothing.
        columns_RW: the columns', float32.
    """

    rows_HR: Tensor
    columns_RW: Tensor

    def add_to_(self, x_BNC: Tensor, grid_HWC: Tensor) -> None:
        """Add to each token the resized grid's value there."""
        tokens, channels = self.columns_RW.shape[0], x_BNC.shape[-1]
        programs = _blocks(tokens, BLOCK["BLOCK_R"]), _blocks(channels, BLOCK["BLOCK_C"])
        kernels.add_products[programs](
            _dense(x_BNC), self.rows_HR, self.columns_RW, grid_HWC, tokens, *grid_HWC.shape,
            **self._blocks(), **COMPILED,
        )  # fmt: skip

    def gradient(self, grad_BNC: Tensor, source: tuple[int, int]) -> Tensor:
        """Return the source grid's gradient [H, W, C] float32, for that of `add_to_`'s result."""
        (height, width), tokens, channels = source, self.columns_RW.shape[0], grad_BNC.shape[-1]
        size = height * width * channels * 4
        parts = max(1, min(PARTIAL_BYTES // size, _blocks(tokens, 4 * BLOCK["BLOCK_R"]), 64))
        partial = grad_BNC.new_empty(parts, height, width, channels, dtype=torch.float32)
        blocks = self._blocks()
        programs = height * _blocks(width, blocks["BLOCK_W"]), _blocks(channels, blocks["BLOCK_C"]), parts
        kernels.gradient_of_products[programs](
            partial, grad_BNC.contiguous(), self.rows_HR, self.columns_RW,
            tokens, height, width, channels, _blocks(tokens, parts), **blocks, **COMPILED,
        )  # fmt: skip
        return partial.sum(dim=0)

    def _blocks(self) -> dict[str, int]:
        """Return the sizes of a program; a matmul of Triton takes 16 at least."""
        return {**BLOCK, "BLOCK_W": 16 if self.columns_RW.shape[1] <= 16 else 32}


@dataclass(frozen=True)
class _Taps:
    """Reads the few cells that matter to a token, of a source too large for a weight a cell.

    Attributes:
        cell_RT: the cells, int32, row by row.
        weight_RT: their weights, float32; zero for what reads nothing.
    """

    cell_RT: Tensor
    weight_RT: Tensor

    def add_to_(self, x_BNC: Tensor, grid_HWC: Tensor) -> None:
        """Add to each token the resized grid's value there."""
        self._run(kernels.add_taps, _dense(x_BNC), grid_HWC)

    def gradient(self, grad_BNC: Tensor, source: tuple[int, int]) -> Tensor:
        """Return the source grid's gradient [H, W, C] float32; its sums are made in no fixed order."""
        total_HWC = grad_BNC.new_zeros(*source, grad_BNC.shape[-1], dtype=torch.float32)
        self._run(kernels.gradient_of_taps, grad_BNC.contiguous(), total_HWC)
        return total_HWC

    def _run(self, kernel: kernels.Kernel, x_BNC: Tensor, grid_HWC: Tensor) -> None:
        (tokens, taps), channels = self.cell_RT.shape, grid_HWC.shape[-1]
        programs = _blocks(tokens, BLOCK["BLOCK_R"]), _blocks(channels, BLOCK["BLOCK_C"])
        kernel[programs](
            x_BNC, self.cell_RT, self.weight_RT, grid_HWC, tokens, channels, TAPS=taps, **BLOCK, **COMPILED
        )


def _blocks(length: int, size: int) -> int:
    return -(-length // size)


def _dense(x_BNC: Tensor) -> Tensor:
    """Return the tensor itself, which the kernels write to as one run of memory."""
    assert x_BNC.is_contiguous()
    return x_BNC
