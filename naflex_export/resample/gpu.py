"""A resized learned grid read on a GPU, by kernels that wait for nothing and hold no weight in memory.

`resample_at` multiplies a weight for every cell with every token. The kernels go through an image's target grid row by
row instead: the source's rows are summed to one line for the target row, and the row's tokens read that line. Padding
is left alone. Whether an image's tokens do go row by row is found out on the GPU, and images where they do not are read
token by token; nothing looks at the grids on the host.

Shape legend: B images, N tokens, H x W source grid, C channels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from naflex_export.resample import triton_kernels as kernels
from naflex_export.resample.weights import Resampling, reads_few_cells

LONGEST_LINE = 128
"""Longest row of a source grid of which a program holds a block of channels in registers."""

COMPILED = {"enable_fp_fusion": True}
"""How Triton compiles the kernels: sums round once for a product and its addition, whatever Triton's own default is."""

PARTIAL_BYTES = 2**27
"""Most bytes of partial sums of a gradient; as many programs work at a cell of the grid at a time."""

PARTS = 64
"""Most partial sums of a gradient."""

UNITS = 64
"""Programs a block of channels, below which an image's rows are shared by several."""


def grid_reader(
    source: tuple[int, int], coord_BN2: Tensor, lengths_B2: Tensor, resampling: Resampling, fill_padding: bool
) -> _RowReader | _CellReader:
    """Return what reads the source grid for a batch: arguments as of `add_resampled`."""
    coord_BN2, lengths_B2 = coord_BN2.contiguous(), lengths_B2.to(torch.int32).contiguous()
    (images, tokens, _), (height, width) = coord_BN2.shape, source
    has_rows = not reads_few_cells(source, resampling)
    by_rows = has_rows and width <= LONGEST_LINE
    plan_B3 = torch.empty(images, 3, dtype=torch.int32, device=coord_BN2.device)
    shape = (images, tokens + 1, max(source)) if by_rows else (1, 1, 1)
    weights_BNS = torch.empty(shape, dtype=torch.float32, device=coord_BN2.device)
    kernels.examine[(images,)](
        coord_BN2, lengths_B2, plan_B3, weights_BNS, tokens, height, width, max(source),
        CUBIC=resampling.mode == "bicubic", ANTIALIAS=resampling.antialias, ALIGNED=resampling.align_corners,
        FILL=fill_padding, WEIGHTS=by_rows, BLOCK_N=256, BLOCK_P=16, BLOCK_H=_power(height), BLOCK_W=_power(width),
        **COMPILED,
    )  # fmt: skip
    given = source, coord_BN2, plan_B3, lengths_B2, resampling, fill_padding
    return _RowReader(*given, weights_BNS if by_rows else None) if has_rows else _CellReader(*given)


@dataclass(frozen=True)
class _KernelReader:
    """What the kernels of either kind are given.

    Attributes:
        source: height and width of the grid.
        coord_BN2: integer (y, x) of each token.
        plan_B3: height and width of each image's grid, and whether its tokens go row by row; int32.
        lengths_B2: what the source is resized to; int32.
        resampling: the resize.
        fill_padding: whether padding reads what its coordinate says.
    """

    source: tuple[int, int]
    coord_BN2: Tensor
    plan_B3: Tensor
    lengths_B2: Tensor
    resampling: Resampling
    fill_padding: bool

    def _options(self) -> dict[str, Any]:
        """Return the compile-time parameters that all kernels share."""
        return {
            "CUBIC": self.resampling.mode == "bicubic",
            "ALIGNED": self.resampling.align_corners,
            "FILL": self.fill_padding,
            **COMPILED,
        }


@dataclass(frozen=True)
class _RowReader(_KernelReader):
    """Reads the grid a target row at a time, or token by token where tokens are in another order.

    Attributes:
        weights_BNS: of images that go row by row: the weights of their rows, then of their columns, float32. None for a
            source whose rows are too long to be held: it is read token by token.
    """

    weights_BNS: Tensor | None

    def add_to_(self, x_BNC: Tensor, grid_HWC: Tensor) -> None:
        """Add to each token the resized grid's value there."""
        (images, tokens, channels), (height, width) = _dense(x_BNC).shape, self.source
        if self.weights_BNS is not None:
            blocks, split = {**ROW_BLOCKS, "BLOCK_W": _power(width)}, _split(images)
            kernels.add_rows[(images * split, _blocks(channels, blocks["BLOCK_C"]))](
                x_BNC, self.plan_B3, self.weights_BNS, self.lengths_B2, grid_HWC,
                tokens, height, width, max(self.source), channels,
                SPLIT=split, PRECISION=precision(x_BNC.dtype), num_warps=4, **blocks, **self._resize(),
            )  # fmt: skip
        kernels.add_tokens[(images, _blocks(channels, TOKEN_BLOCKS["BLOCK_C"]))](
            x_BNC, self.coord_BN2, self.plan_B3, self.lengths_B2, grid_HWC, tokens, height, width, channels,
            int(self.weights_BNS is None), **TOKEN_BLOCKS, **self._resize(),
        )  # fmt: skip

    def gradient(self, grad_BNC: Tensor, source: tuple[int, int]) -> Tensor:
        """Return the source grid's gradient [H, W, C] float32, for that of `add_to_`'s result."""
        grad_BNC = grad_BNC.contiguous()
        (images, tokens, channels), (height, width) = grad_BNC.shape, source
        split = _split(images)
        parts = max(1, min(PARTIAL_BYTES // (4 * height * width * channels), images * split, PARTS))
        make = torch.zeros if self.weights_BNS is None else torch.empty
        partial = make(parts, height, width, channels, dtype=torch.float32, device=grad_BNC.device)
        if self.weights_BNS is not None:
            blocks = _gradient_blocks(width)
            programs = parts, _blocks(channels, blocks["BLOCK_C"]), _blocks(height, blocks["BLOCK_H"])
            kernels.gradient_of_rows[programs](
                partial, grad_BNC, self.plan_B3, self.weights_BNS, self.lengths_B2,
                images, tokens, height, width, max(source), channels, parts,
                SPLIT=split, PRECISION=precision(grad_BNC.dtype), num_warps=4,
                **blocks, **self._resize(),
            )  # fmt: skip
        of_source = height * _blocks(width, TOKEN_BLOCKS["BLOCK_W"])
        kernels.gradient_of_tokens[(of_source, _blocks(channels, TOKEN_BLOCKS["BLOCK_C"]), parts)](
            partial, grad_BNC, self.coord_BN2, self.plan_B3, self.lengths_B2,
            images, tokens, height, width, channels, parts, int(self.weights_BNS is None),
            **TOKEN_BLOCKS, **self._resize(),
        )  # fmt: skip
        return partial.sum(dim=0)

    def _resize(self) -> dict[str, Any]:
        return {"ANTIALIAS": self.resampling.antialias, **self._options()}


@dataclass(frozen=True)
class _CellReader(_KernelReader):
    """Reads the few cells that matter to a token, of a source too large for a weight a cell."""

    def add_to_(self, x_BNC: Tensor, grid_HWC: Tensor) -> None:
        """Add to each token the resized grid's value there."""
        self._run(kernels.add_cells, x_ptr=_dense(x_BNC), grid_ptr=grid_HWC)

    def gradient(self, grad_BNC: Tensor, source: tuple[int, int]) -> Tensor:
        """Return the source grid's gradient [H, W, C] float32; its sums are made in no fixed order."""
        total_HWC = grad_BNC.new_zeros(*source, grad_BNC.shape[-1], dtype=torch.float32)
        self._run(kernels.gradient_of_cells, grad_ptr=grad_BNC.contiguous(), total_ptr=total_HWC)
        return total_HWC

    def _run(self, kernel: kernels.Kernel, **tensors: Tensor) -> None:
        """Run a kernel on a batch and a source grid, which it takes by these names."""
        images, tokens, _ = self.coord_BN2.shape
        channels = next(iter(tensors.values())).shape[-1]
        programs = images, _blocks(tokens, CELL_BLOCKS["BLOCK_X"]), _blocks(channels, CELL_BLOCKS["BLOCK_C"])
        kernel[programs](
            **tensors, coord_ptr=self.coord_BN2, plan_ptr=self.plan_B3, lengths_ptr=self.lengths_B2,
            N=tokens, H=self.source[0], W=self.source[1], C=channels, **CELL_BLOCKS, **self._options(),
        )  # fmt: skip


ROW_BLOCKS = {"BLOCK_X": 16, "BLOCK_C": 64}
TOKEN_BLOCKS = {"BLOCK_X": 32, "BLOCK_W": 32, "BLOCK_C": 64}
CELL_BLOCKS = {"BLOCK_X": 16, "BLOCK_C": 128}
"""Tokens, cells of a row of the source, and channels of a program."""


def _gradient_blocks(width: int) -> dict[str, int]:
    """Return the sizes of a program that sums a gradient: it holds 8,192 values of it in registers."""
    columns = _power(width)
    return {"BLOCK_X": 32, "BLOCK_H": 8, "BLOCK_W": columns, "BLOCK_C": 2**10 // columns}


def precision(dtype: torch.dtype) -> str:
    """Return how Triton makes products of float32 values where what they are summed to is rounded to a dtype.

    "ieee": as they are. "bf16x3": as three products of bfloat16 parts, on tensor cores, which keep 16 bits of each
    factor: an error of 3e-6, where rounding to bfloat16 makes one of 4e-3 and to float16 of 5e-4.
    """
    return "bf16x3" if dtype in (torch.bfloat16, torch.float16) else "ieee"


def _power(length: int) -> int:
    """Return the power of 2 that a length fits in, of 16 at least, as products ask for."""
    return max(16, 1 << (length - 1).bit_length())


def _split(images: int) -> int:
    """Return by how many programs an image is shared: enough for a small batch to fill a GPU."""
    return 1 << max(0, (_blocks(UNITS, images) - 1).bit_length())


def _blocks(length: int, size: int) -> int:
    return -(-length // size)


def _dense(x_BNC: Tensor) -> Tensor:
    """Return the tensor itself, which the kernels write to as one run of memory."""
    assert x_BNC.is_contiguous()
    return x_BNC
