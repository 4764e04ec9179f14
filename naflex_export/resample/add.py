"""`add_resampled`: a resized learned grid added to tokens. The one rule of which evaluation runs where.

Shape legend: B images, N tokens, H x W source grid, C channels.
"""

from __future__ import annotations

import importlib.util
from typing import Any, Protocol, cast

import torch
from torch import Tensor

from naflex_export.resample import cpu as resample_cpu
from naflex_export.resample.autocast import full_precision
from naflex_export.resample.coordinates import grids_of
from naflex_export.resample.graph_form import resample_at
from naflex_export.resample.weights import Mode, Resampling

KERNELS_ON_GPU = True
"""Whether a GPU that can runs the kernels of `resample/gpu.py`; off, it runs the matmul of `resample_at`, to compare.

Measured on an H200, forward and backward, 256 and 512 images, compiled: the kernels take 1.07 to 1.20 times as long as
the bare projection in float32 and 1.75 to 3.1 times in bfloat16, the matmul 1.4 to 2.4 and 5.4 to 16 times. They were
ahead in every row, whatever the source grid, the dtype and the batch, so the rule knows none of these.
"""

HAS_TRITON = importlib.util.find_spec("triton") is not None

OLDEST_GPU = (8, 0)
"""The compute capability from which the kernels are used: products of bfloat16 parts on tensor cores need it."""


class GridReader(Protocol):
    """How a batch reads a source grid, on one kind of device."""

    def add_to_(self, x_BNC: Tensor, grid_HWC: Tensor) -> None:
        """Add to each token, in place and in its dtype, the value there of the resized grid, float32."""

    def gradient(self, grad_BNC: Tensor, source: tuple[int, int]) -> Tensor:
        """Return the source grid's gradient [H, W, C] float32, for that of `add_to_`'s result."""


def add_resampled(
    x: Tensor,
    grid_HWC: Tensor,
    coord_BN2: Tensor,
    resampling: Resampling,
    lengths_B2: Tensor | None = None,
    *,
    fill_padding: bool = False,
) -> Tensor:
    """Add a learned grid, resized for each image, to each of its tokens.

    A graph that leaves torch gets `resample_at`: no loop, no look at the grids, nothing but operators that every
    backend has; so do a device without an evaluation of its own, and `torch.func`. Everything else gets its
    device's, as one operator.

    Args:
        x: [B * N, C] or [B, N, C], any floating dtype; changed in place, but for `torch.func`. Where it is a view,
            autograd makes copies of it: better pass what is none.
        grid_HWC: [H, W, C] the source grid, any floating dtype; resampled in float32.
        coord_BN2: [B, N, 2] integer (y, x) of each token; padding holds zeros.
        resampling: the resize to reproduce.
        lengths_B2: [B, 2] lengths to resize to, as in `resample_at`.
        fill_padding: add to padding what its coordinate says, as in `resample_at`.

    Returns:
        The sum, in the shape and dtype of `x`.
    """
    if not torch.compiler.is_compiling() and torch._C._functorch.maybe_current_level() is not None:
        # transforms of torch.func have no rule for the operator, and write batched values into nothing unbatched
        pos_BNC = resample_at(grid_HWC, coord_BN2, resampling, lengths_B2, fill_padding=fill_padding)
        return x + pos_BNC.to(x.dtype).view(x.shape)
    if _has_own_evaluation(x.device) and not leaves_torch():
        return add_by_operator(x, grid_HWC, coord_BN2, resampling, lengths_B2, fill_padding=fill_padding)
    pos_BNC = resample_at(grid_HWC, coord_BN2, resampling, lengths_B2, fill_padding=fill_padding)
    return x.add_(pos_BNC.to(x.dtype).view(x.shape))


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def leaves_torch() -> bool:
    """Whether a graph is being made that leaves torch; dynamo of torch 2.11, asked itself, says so of every graph."""
    return torch.compiler.is_exporting() or torch.jit.is_tracing()  # type: ignore[attr-defined, no-untyped-call]


def _has_own_evaluation(device: torch.device) -> bool:
    return device.type == "cpu" or (device.type == "cuda" and KERNELS_ON_GPU and _runs_kernels(device.index))


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _runs_kernels(index: int | None) -> bool:
    """Whether Triton is there and the GPU of that number is one that the kernels were compiled for."""
    return HAS_TRITON and torch.version.hip is None and torch.cuda.get_device_capability(index) >= OLDEST_GPU


def _grid_reader(device: torch.device, *arguments: Any) -> GridReader:
    """Return what reads the source grid for a batch on a device; arguments as of `resample_cpu.grid_reader`."""
    if device.type == "cpu":
        return resample_cpu.grid_reader(*arguments)
    from naflex_export.resample import gpu as resample_gpu  # with Triton, which comes with torch for GPUs

    return resample_gpu.grid_reader(*arguments)


def add_by_operator(
    x: Tensor,
    grid_HWC: Tensor,
    coord_BN2: Tensor,
    resampling: Resampling,
    lengths_B2: Tensor | None = None,
    *,
    fill_padding: bool = False,
) -> Tensor:
    """Add what `resample_at` gives, to float32 rounding, as one operator.

    It is an operator, so that no trace looks inside and keeps the grids of one batch.

    Args:
        x: [B * N, C] or [B, N, C], as for `add_resampled`; changed in place.
        grid_HWC: [H, W, C] the source grid.
        coord_BN2: [B, N, 2] integer (y, x) of each token.
        resampling: the resize to reproduce.
        lengths_B2: [B, 2] lengths to resize to; by default each image's own grid.
        fill_padding: add to padding what its coordinate says.

    Returns:
        The sum, in the shape and dtype of `x`.
    """
    lengths_B2 = grids_of(coord_BN2) if lengths_B2 is None else lengths_B2
    arguments = (
        x,
        grid_HWC.float(),
        coord_BN2,
        lengths_B2,
        resampling.mode,
        resampling.antialias,
        resampling.align_corners,
        fill_padding,
    )
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
    resampling = Resampling(cast(Mode, interpolation), antialias, align_corners)
    with torch.no_grad(), full_precision(x.device.type):
        source = grid_HWC.shape[0], grid_HWC.shape[1]
        grid_reader = _grid_reader(x.device, source, coord_BN2, lengths_B2, resampling, fill_padding)
        grid_reader.add_to_(x.view(*coord_BN2.shape[:2], -1), grid_HWC.contiguous())


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
    resampling = Resampling(cast(Mode, interpolation), antialias, align_corners)
    with torch.no_grad(), full_precision(grad.device.type):
        grid_reader = _grid_reader(grad.device, (height, width), coord_BN2, lengths_B2, resampling, fill_padding)
        return grid_reader.gradient(grad.reshape(*coord_BN2.shape[:2], -1), (height, width))


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
