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
from naflex_export.resample.weights import Resampling, reads_taps

HELD_SIDE = 32
"""Longest side of a source grid of which a program holds a block of channels in registers."""

PRECISION = "tf32x3"
"""How float32 products along a row are made; see `triton_kernels.py`."""

COMPILED = {"enable_fp_fusion": True}
"""How Triton compiles the kernels: sums round once for a product and its addition, whatever Triton's own default is."""

PARTIAL_BYTES = 2**27
"""Most bytes of partial sums of a gradient; as many programs work at a cell of the grid at a time."""

PARTS = 48
"""Most partial sums of a gradient."""

UNITS = 64
"""Programs a block of channels, below which an image's rows are shared by several."""


def reading(
    source: tuple[int, int], coord_BN2: Tensor, lengths_B2: Tensor, how: Resampling, fill_padding: bool
) -> _Rows | _Taps:
    """Return how a batch reads the source grid: arguments as of `add_resampled`."""
    coord_BN2 = coord_BN2.contiguous()
    plan_B3 = torch.empty(coord_BN2.shape[0], 3, dtype=torch.int32, device=coord_BN2.device)
    kernels.examine[(coord_BN2.shape[0],)](
        coord_BN2, plan_B3, coord_BN2.shape[1], FILL=fill_padding, BLOCK_N=256, num_warps=4
    )
    kind = _Taps if reads_taps(source, how) else _Rows
    return kind(source, coord_BN2, plan_B3, lengths_B2.to(torch.int32).contiguous(), how, fill_padding)


@dataclass(frozen=True)
class _Reading:
    """What the kernels of either kind are given.

    Attributes:
        source: height and width of the grid.
        coord_BN2: integer (y, x) of each token.
        plan_B3: height and width of each image's grid, and whether its tokens go row by row; int32.
        lengths_B2: what the source is resized to; int32.
        how: the resize.
        fill_padding: whether padding reads what its coordinate says.
    """

    source: tuple[int, int]
    coord_BN2: Tensor
    plan_B3: Tensor
    lengths_B2: Tensor
    how: Resampling
    fill_padding: bool

    def _options(self) -> dict[str, Any]:
        """Return the compile-time parameters that all kernels share."""
        return {
            "CUBIC": self.how.mode == "bicubic",
            "ALIGNED": self.how.align_corners,
            "FILL": self.fill_padding,
            **COMPILED,
        }


@dataclass(frozen=True)
class _Rows(_Reading):
    """Reads the grid a target row at a time, or token by token where tokens are in another order."""

    def add_to_(self, x_BNC: Tensor, grid_HWC: Tensor) -> None:
        """Add to each token the resized grid's value there."""
        (images, tokens, channels), (height, width) = _dense(x_BNC).shape, self.source
        if self._holds():
            blocks, split = self._blocks(), _split(images)
            kernels.add_rows[(images * split, _blocks(channels, blocks["BLOCK_C"]))](
                x_BNC, self.plan_B3, self.lengths_B2, grid_HWC, tokens, height, width, channels,
                SPLIT=split, PRECISION=PRECISION, num_warps=8, **blocks, **self._options(),
            )  # fmt: skip
        kernels.add_tokens[(images, _blocks(channels, TOKEN_BLOCKS["BLOCK_C"]))](
            x_BNC, self.coord_BN2, self.plan_B3, self.lengths_B2, grid_HWC, tokens, height, width, channels,
            int(not self._holds()), **TOKEN_BLOCKS, **self._options(),
        )  # fmt: skip

    def gradient(self, grad_BNC: Tensor, source: tuple[int, int]) -> Tensor:
        """Return the source grid's gradient [H, W, C] float32, for that of `add_to_`'s result."""
        grad_BNC = grad_BNC.contiguous()
        (images, tokens, channels), (height, width) = grad_BNC.shape, source
        split = _split(images)
        parts = max(1, min(PARTIAL_BYTES // (4 * height * width * channels), images * split, PARTS))
        make = torch.empty if self._holds() else torch.zeros
        partial = make(parts, height, width, channels, dtype=torch.float32, device=grad_BNC.device)
        if self._holds():
            blocks = self._blocks()
            kernels.gradient_of_rows[(parts, _blocks(channels, blocks["BLOCK_C"]))](
                partial, grad_BNC, self.plan_B3, self.lengths_B2, images, tokens, height, width, channels, parts,
                SPLIT=split, PRECISION=PRECISION, num_warps=8, **blocks, **self._options(),
            )  # fmt: skip
        of_source = height * _blocks(width, TOKEN_BLOCKS["BLOCK_W"])
        kernels.gradient_of_tokens[(of_source, _blocks(channels, TOKEN_BLOCKS["BLOCK_C"]), parts)](
            partial, grad_BNC, self.coord_BN2, self.plan_B3, self.lengths_B2,
            images, tokens, height, width, channels, parts, int(not self._holds()),
            **TOKEN_BLOCKS, **self._options(),
        )  # fmt: skip
        return partial.sum(dim=0)

    def _holds(self) -> bool:
        return max(self.source) <= HELD_SIDE

    def _blocks(self) -> dict[str, int]:
        """Return the sizes of a program's blocks: 16,384 cells of the source in all."""
        rows, columns = (16 if side <= 16 else HELD_SIDE for side in self.source)
        return {"BLOCK_X": 16, "BLOCK_H": rows, "BLOCK_W": columns, "BLOCK_C": 2**14 // (rows * columns)}

    def _options(self) -> dict[str, Any]:
        return {"ANTIALIAS": self.how.antialias, **super()._options()}


@dataclass(frozen=True)
class _Taps(_Reading):
    """Reads the few cells that matter to a token, of a source too large for a weight a cell."""

    def add_to_(self, x_BNC: Tensor, grid_HWC: Tensor) -> None:
        """Add to each token the resized grid's value there."""
        self._run(kernels.add_taps, _dense(x_BNC), grid_HWC)

    def gradient(self, grad_BNC: Tensor, source: tuple[int, int]) -> Tensor:
        """Return the source grid's gradient [H, W, C] float32; its sums are made in no fixed order."""
        total_HWC = grad_BNC.new_zeros(*source, grad_BNC.shape[-1], dtype=torch.float32)
        self._run(kernels.gradient_of_taps, total_HWC, grad_BNC.contiguous())
        return total_HWC

    def _run(self, kernel: kernels.Kernel, changed: Tensor, read: Tensor) -> None:
        """Run a kernel that changes its first tensor and reads its second, one of which is a batch."""
        images, tokens, _ = self.coord_BN2.shape
        channels = changed.shape[-1]
        programs = images, _blocks(tokens, TAP_BLOCKS["BLOCK_X"]), _blocks(channels, TAP_BLOCKS["BLOCK_C"])
        batch, grid = (changed, read) if kernel is kernels.add_taps else (read, changed)
        places = {"coord_ptr": self.coord_BN2, "plan_ptr": self.plan_B3, "lengths_ptr": self.lengths_B2}
        names = ("x_ptr", "grid_ptr") if kernel is kernels.add_taps else ("grad_ptr", "total_ptr")
        kernel[programs](
            **dict(zip(names, (batch, grid), strict=True)), **places,
            N=tokens, H=self.source[0], W=self.source[1], C=channels, **TAP_BLOCKS, **self._options(),
        )  # fmt: skip


TOKEN_BLOCKS = {"BLOCK_X": 32, "BLOCK_W": 32, "BLOCK_C": 64}
TAP_BLOCKS = {"BLOCK_X": 16, "BLOCK_C": 128}
"""Tokens, cells of a row of the source, and channels of a program."""


def _split(images: int) -> int:
    """Return by how many programs an image is shared: enough for a small batch to fill a GPU."""
    return 1 << max(0, (_blocks(UNITS, images) - 1).bit_length())


def _blocks(length: int, size: int) -> int:
    return -(-length // size)


def _dense(x_BNC: Tensor) -> Tensor:
    """Return the tensor itself, which the kernels write to as one run of memory."""
    assert x_BNC.is_contiguous()
    return x_BNC
