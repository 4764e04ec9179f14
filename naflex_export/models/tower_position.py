"""A vision tower's learned grid, resized for each image of a pack and added to its patches.

In a graph, and on a GPU, each patch reads the grid by weights of its own. On a CPU a call may look at the grids, as
`resample/cpu.py` does: there the source is resized once for each distinct grid, and added to the images that have it.

Shape legend: as in `tower.py`; S x S source grid, h x w an image's grid.
"""

from __future__ import annotations

import math
from typing import Any, cast

import torch
from torch import Tensor

from naflex_export.models.packing import Packing
from naflex_export.resample.add import GridReader
from naflex_export.resample.autocast import full_precision
from naflex_export.resample.cpu import pack_reader
from naflex_export.resample.graph_form import resample_at
from naflex_export.resample.weights import Resampling
from naflex_export.serving.input_formats import has_values


def add_position(
    x_TC: Tensor, table: Tensor, packing: Packing, resampling: Resampling, *, cropped: bool = False
) -> Tensor:
    """Return patches with a learned square grid [S * S, C], resized for each image, added at each of them.

    Args:
        x_TC: projected patches, which nothing else reads; changed in place where no gradient is asked for.
        table: the grid's cells, row by row; resampled in float32.
        packing: of the patches.
        resampling: the resize to reproduce.
        cropped: the grid is resized to the square of an image's longer side, and cropped to the image.
    """
    side = math.isqrt(table.shape[0])
    grid_SSC = table.view(side, side, -1)
    is_live = not torch.compiler.is_compiling() and not torch.compiler.is_exporting()
    if is_live and table.device.type == "cpu" and all(map(has_values, (x_TC, table, packing.start_B))):
        grids = [(height, width) for height, width in packing.grid_T2.index_select(0, packing.start_B).tolist()]
        reader = pack_reader((side, side), grids, packing.merge, resampling, cropped=cropped)
        if torch.is_grad_enabled() and (x_TC.requires_grad or table.requires_grad):
            return cast(Tensor, _AddResized.apply(x_TC, grid_SSC, reader))
        return _add_resized_(x_TC, grid_SSC, reader)
    lengths_T2 = packing.grid_T2
    if cropped:
        lengths_T2 = lengths_T2.amax(dim=1, keepdim=True).expand(lengths_T2.shape)
    pos_T1C = resample_at(grid_SSC, packing.coord_T12, resampling, lengths_T2, fill_padding=True)
    return x_TC + pos_T1C.squeeze(1).to(x_TC.dtype)


class _AddResized(torch.autograd.Function):
    """Adds to a copy: a projection's result is a view, which autograd would copy twice where it is changed."""

    @staticmethod
    def forward(ctx: Any, x_TC: Tensor, grid_SSC: Tensor, reader: GridReader) -> Tensor:
        """Return the sum."""
        ctx.reader, ctx.side, ctx.dtype = reader, grid_SSC.shape[0], grid_SSC.dtype
        return _add_resized_(x_TC.clone(), grid_SSC, reader)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        """Return the gradients of the patches and of the grid."""
        (grad_TC,) = grads
        if not ctx.needs_input_grad[1]:
            return grad_TC, None, None
        with full_precision("cpu"):
            of_grid_SSC = ctx.reader.gradient(grad_TC.unsqueeze(0), (ctx.side, ctx.side))
        return grad_TC, of_grid_SSC.to(ctx.dtype), None


def _add_resized_(x_TC: Tensor, grid_SSC: Tensor, reader: GridReader) -> Tensor:
    """Return the patches with each its position added, in place."""
    with torch.no_grad(), full_precision("cpu"):
        reader.add_to_(x_TC.unsqueeze(0), grid_SSC.float().contiguous())
    return x_TC
