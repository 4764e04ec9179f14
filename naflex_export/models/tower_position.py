"""A vision tower's learned grid, resized for each image of a pack and added to its patches.

In a graph, and on a GPU, each patch reads the grid by weights of its own. On a CPU a call may look at the grids: there
the source is resized once for each distinct grid, one axis after the other, and added to the images that have it;
gradients of images with the same grid are summed before they are resized back.

Shape legend: as in `tower.py`; S x S source grid, h x w an image's grid.
"""

from __future__ import annotations

import functools
import math
from collections import defaultdict
from collections.abc import Iterator
from typing import Any, cast

import torch
from torch import Tensor

from naflex_export.models.packing import Packing
from naflex_export.resample.autocast import full_precision
from naflex_export.resample.graph_form import resample_at
from naflex_export.resample.weights import Resampling, resampling_matrix
from naflex_export.serving.input_formats import has_values


def add_position(x_TC: Tensor, table: Tensor, packing: Packing, resampling: Resampling) -> Tensor:
    """Return patches with a learned square grid [S * S, C], resized for each image, added at each of them.

    Args:
        x_TC: projected patches, which nothing else reads; changed in place where no gradient is asked for.
        table: the grid's cells, row by row; resampled in float32.
        packing: of the patches.
        resampling: the resize to reproduce.
    """
    side = math.isqrt(table.shape[0])
    grid_SSC = table.view(side, side, -1)
    is_live = not torch.compiler.is_compiling() and not torch.compiler.is_exporting()
    if is_live and table.device.type == "cpu" and all(map(has_values, (x_TC, table, packing.start_B))):
        grids = [(height, width) for height, width in packing.grid_T2.index_select(0, packing.start_B).tolist()]
        if torch.is_grad_enabled() and (x_TC.requires_grad or table.requires_grad):
            return cast(Tensor, _AddResized.apply(x_TC, grid_SSC, (grids, packing.merge, resampling)))
        _add_resized_(x_TC, grid_SSC, grids, packing.merge, resampling)
        return x_TC
    pos_T1C = resample_at(grid_SSC, packing.coord_T12, resampling, packing.grid_T2, fill_padding=True)
    return x_TC + pos_T1C.squeeze(1).to(x_TC.dtype)


Grids = list[tuple[int, int]]
"""Of each image of a pack."""


class _AddResized(torch.autograd.Function):
    """Adds to a copy: a projection's result is a view, which autograd would copy twice where it is changed."""

    @staticmethod
    def forward(ctx: Any, x_TC: Tensor, grid_SSC: Tensor, pack: tuple[Grids, int, Resampling]) -> Tensor:
        """Return the sum."""
        ctx.pack, ctx.source, ctx.dtype = pack, grid_SSC.shape, grid_SSC.dtype
        made = x_TC.clone()
        _add_resized_(made, grid_SSC, *pack)
        return made

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        """Return the gradients of the patches and of the grid."""
        (grad_TC,) = grads
        grids, merge, resampling = ctx.pack
        side, _, channels = ctx.source
        if not ctx.needs_input_grad[1]:
            return grad_TC, None, None
        summed: dict[tuple[int, int], Tensor] = {}
        for grid, image in _images(grad_TC, grids, merge):
            summed[grid] = image.float() if grid not in summed else summed[grid] + image
        total = grad_TC.new_zeros(side, side * channels, dtype=torch.float32)
        with full_precision("cpu"):
            for (height, width), image in summed.items():
                down, across = (_matrix(side, length, resampling) for length in (height, width))
                rows_hSC = across.T @ image.reshape(height, width, channels)
                total += down.T @ rows_hSC.flatten(1)
        return grad_TC, total.view(side, side, channels).to(ctx.dtype), None


def _add_resized_(x_TC: Tensor, grid_SSC: Tensor, grids: Grids, merge: int, resampling: Resampling) -> None:
    """Add to each image's patches, in place."""
    images = defaultdict(list)
    for grid, image in _images(x_TC, grids, merge):
        images[grid].append(image)
    side, _, channels = grid_SSC.shape
    with torch.no_grad(), full_precision("cpu"):
        source = grid_SSC.float().flatten(1)
        for (height, width), found in images.items():
            down, across = (_matrix(side, length, resampling) for length in (height, width))
            resized_hwC = across @ (down @ source).view(height, side, channels)
            squares = resized_hwC.to(x_TC.dtype).view(height // merge, merge, width // merge, merge, channels)
            for image in found:
                image.add_(squares)


def _images(x_TC: Tensor, grids: Grids, merge: int) -> Iterator[tuple[tuple[int, int], Tensor]]:
    """Yield the grid of each image, and a view of its patches, [down, merge, across, merge, C] in squares."""
    start = 0
    for height, width in grids:
        area = height * width
        squares = x_TC[start : start + area].view(height // merge, width // merge, merge, merge, -1)
        yield (height, width), squares.transpose(1, 2)
        start += area


@functools.lru_cache(maxsize=4096)
def _matrix(side: int, length: int, resampling: Resampling) -> Tensor:
    """Return a resampling matrix, made in float64 and kept."""
    with torch.inference_mode(False):
        return resampling_matrix(side, length, resampling)
