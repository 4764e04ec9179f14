"""Wrong candidates: how the position embedding is resized."""

from __future__ import annotations

from collections.abc import Callable

import torch
from reference import resize
from torch import Tensor

from mutants.mutant import Candidate, mutant, true
from naflex_export.grid import Grid
from naflex_export.resample.weights import BICUBIC, axis_weights


def resized(dtype: torch.dtype, embed: Callable[[Tensor, Tensor, list[Grid]], Tensor]) -> Candidate:
    """Return the true model whose embedding of a batch is made by `embed` from the learned grid, coordinates and grids.

    Args:
        dtype: the candidate's.
        embed: takes the grid [H, W, C] in float32, coordinates [B, N, 2] and each image's grid; returns [B, N, C].
    """
    model = true(dtype)

    def add(x: Tensor, patch_coord: Tensor) -> None:
        grids = [Grid(*row) for row in (patch_coord.amax(dim=1) + 1).tolist()]
        x.add_(embed(model.embeds.pos_embed[0].float(), patch_coord, grids).to(x.dtype))

    model.embeds._apply_learned_naflex_pos_embed = add
    return model


def each(grid_HWC: Tensor, sizes: list[Grid], coord: Tensor) -> Tensor:
    """Return the grid resized to a size for each image, read at its coordinates, as far as there are cells."""
    found = [resize(grid_HWC, *size, BICUBIC) for size in sizes]
    rows = [
        flat[c[:, 0].clamp(max=flat.shape[0] - 1), c[:, 1].clamp(max=flat.shape[1] - 1)]
        for flat, c in zip(found, coord, strict=True)
    ]
    return torch.stack(rows)


@mutant()
def off_by_half_a_pixel(dtype: torch.dtype) -> Candidate:
    """The resize puts the centre of a patch on its corner: everything is shifted by half a patch."""

    def embed(grid_HWC: Tensor, coord: Tensor, grids: list[Grid]) -> Tensor:
        position, length = coord.float() - 0.5, torch.tensor(grids).float().unsqueeze(1).expand(coord.shape)
        rows = axis_weights(position[..., 0], length[..., 0], grid_HWC.shape[0], BICUBIC)
        columns = axis_weights(position[..., 1], length[..., 1], grid_HWC.shape[1], BICUBIC)
        return torch.einsum("bnh,bnw,hwc->bnc", rows, columns, grid_HWC)

    return resized(dtype, embed)


@mutant()
def no_antialias(dtype: torch.dtype) -> Candidate:
    """The resize does not antialias, as ONNX's Resize in TensorRT does not."""
    return true(dtype, pos_embed_antialias=False)


@mutant()
def grid_sampled(dtype: torch.dtype) -> Candidate:
    """The embedding is read by `grid_sample`, which does not antialias, instead of resized."""
    return true(dtype, pos_embed_use_grid_sample=True)


@mutant(("float32", "float16"), why="here the two differ by less than twice what bfloat16 rounds")
def bilinear(dtype: torch.dtype) -> Candidate:
    """The resize is bilinear instead of bicubic."""
    return true(dtype, pos_embed_interp_mode="bilinear")


@mutant()
def aligned_corners(dtype: torch.dtype) -> Candidate:
    """The resize aligns corners."""
    return true(dtype, pos_embed_align_corners=True)


@mutant()
def nearest(dtype: torch.dtype) -> Candidate:
    """The resize takes the nearest cell, as some parsers read `linear`."""

    def embed(grid_HWC: Tensor, coord: Tensor, grids: list[Grid]) -> Tensor:
        size = torch.tensor(grids).unsqueeze(1)
        cell = (coord * torch.tensor(grid_HWC.shape[:2]) + torch.tensor(grid_HWC.shape[:2]) // 2) // size
        return grid_HWC[cell[..., 0].clamp(max=grid_HWC.shape[0] - 1), cell[..., 1].clamp(max=grid_HWC.shape[1] - 1)]

    return resized(dtype, embed)


@mutant()
def aspect_preserving(dtype: torch.dtype) -> Candidate:
    """The embedding is resized to the longer side both ways, and cut."""
    return true(dtype, pos_embed_ar_preserving=True)


@mutant()
def not_resized(dtype: torch.dtype) -> Candidate:
    """The embedding is cut to the image's grid instead of resized."""
    return resized(dtype, lambda grid, coord, grids: grid[coord[..., 0].clamp(max=15), coord[..., 1].clamp(max=15)])


@mutant()
def size_of_neighbour_image(dtype: torch.dtype) -> Candidate:
    """Each image's embedding is resized to the grid of the next image in the batch."""
    return resized(dtype, lambda grid, coord, grids: each(grid, [*grids[1:], grids[0]], coord))


@mutant()
def one_size_for_the_batch(dtype: torch.dtype) -> Candidate:
    """Every embedding is resized to the largest height and width of the batch."""

    def embed(grid_HWC: Tensor, coord: Tensor, grids: list[Grid]) -> Tensor:
        largest = Grid(max(grid.height for grid in grids), max(grid.width for grid in grids))
        return each(grid_HWC, [largest] * len(grids), coord)

    return resized(dtype, embed)


@mutant()
def no_position_embedding(dtype: torch.dtype) -> Candidate:
    """The position embedding is left out."""
    return resized(dtype, lambda grid, coord, grids: torch.zeros(*coord.shape[:2], grid.shape[2]))
