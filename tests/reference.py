"""The obvious versions: one image at a time, with torch's own resize. Slow, and the standard of every test."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from naflex_export.resample.weights import Resampling


def resize(grid_HWC: Tensor, height: int, width: int, resampling: Resampling) -> Tensor:
    """Return [height, width, C]: the grid resized by `F.interpolate`, in its own dtype.

    The strides are those of timm's parameter, [1, H, W, C] permuted. From any others, a contiguous NCHW tensor or
    `permute(2, 0, 1).unsqueeze(0)`, whose batch stride is C, torch's antialiased CPU kernel is wrong where the height
    changes and the target's width is 1 (errors near 0.8 on unit-variance data; torch 2.11 to 2.15).
    """
    resized = F.interpolate(
        grid_HWC.unsqueeze(0).permute(0, 3, 1, 2),
        size=(height, width),
        mode=resampling.mode,
        antialias=resampling.antialias,
        align_corners=resampling.align_corners,
    )
    return resized[0].permute(1, 2, 0)


def axis_matrix(source: int, target: int, resampling: Resampling, dtype: torch.dtype, axis: int) -> Tensor:
    """Return the [target, source] matrix of one axis, read off `F.interpolate` by resizing unit vectors."""
    unit = torch.eye(source, dtype=dtype)
    if axis == 0:
        return resize(unit.unsqueeze(1).expand(source, 2, source).contiguous(), target, 2, resampling)[:, 0]
    return resize(unit.unsqueeze(0).expand(2, source, source).contiguous(), 2, target, resampling)[0]


def position_embedding(
    grid_HWC: Tensor, grids: Sequence[tuple[int, int]], tokens: int, resampling: Resampling, square: bool = False
) -> Tensor:
    """Return [B, tokens, C]: for each image the resized grid, flattened, and zeros for padding.

    `square` resizes to the longer side both ways and cuts: aspect-preserving.
    """
    rows = []
    for height, width in grids:
        size = (max(height, width),) * 2 if square else (height, width)
        flat = resize(grid_HWC, *size, resampling)[:height, :width].flatten(0, 1)
        rows.append(F.pad(flat, (0, 0, 0, tokens - len(flat))))
    return torch.stack(rows)


def float64_model(model: Any, grids: Sequence[tuple[int, int]], resized_to: Sequence[tuple[int, int]] = ()) -> Any:
    """Return a copy of timm's NaFlexVit, in float64, for images of `grids`: the loop above makes its embedding.

    Unlike timm's own loop, which resizes in float32 whatever the model's dtype. Padding gets no embedding.
    With `resized_to`, a larger grid for each image, the embedding is wrong: cut from a resize to that grid.
    """
    twin = copy.deepcopy(model).double()
    embeds = twin.embeds
    factorized = embeds.pos_embed_type == "factorized"
    antialias = embeds.pos_embed_antialias and not embeds.pos_embed_use_grid_sample
    resampling = Resampling(embeds.pos_embed_interp_mode, antialias, embeds.pos_embed_align_corners)
    resampling = Resampling("bilinear", antialias=False) if factorized else resampling

    def add(x_BNC: Tensor, patch_coord: Tensor) -> None:
        # Tables of rows and columns are resized linearly, so their sum may be.
        grid_HWC = embeds.pos_embed_y[0].unsqueeze(1) + embeds.pos_embed_x[0] if factorized else embeds.pos_embed[0]
        as_it_is = None if factorized or embeds.pos_embed_use_grid_sample else tuple(grid_HWC.shape[:2])
        rows = []
        for grid, size in zip(grids, resized_to or grids, strict=True):
            square = embeds.pos_embed_ar_preserving and tuple(grid) != as_it_is
            target = (max(size),) * 2 if square else size
            flat_NC = resize(grid_HWC, *target, resampling)[: grid[0], : grid[1]].flatten(0, 1)
            rows.append(F.pad(flat_NC, (0, 0, 0, x_BNC.shape[1] - len(flat_NC))))
        x_BNC.add_(torch.stack(rows))

    kind = f"_apply_{embeds.pos_embed_type}_naflex_pos_embed"
    setattr(embeds, f"{kind}_grid_sample" if embeds.pos_embed_use_grid_sample else kind, add)
    return twin
