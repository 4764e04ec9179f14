"""The resize as a graph has it: weights and a matmul, no loop, no look at the grids, operators that every backend has.

Shape legend: B images, N tokens, T cells that a token reads, H x W source grid, C channels.
"""

from __future__ import annotations

from functools import reduce

import torch
from torch import Tensor

from naflex_export.resample import weights
from naflex_export.resample.autocast import full_precision
from naflex_export.resample.coordinates import inside, positions
from naflex_export.resample.stored import stored_matrices
from naflex_export.resample.weights import Resampling, axis_weights, grid_cells, grid_weights, reads_few_cells


def resample_at(
    grid_HWC: Tensor,
    coord_BN2: Tensor,
    resampling: Resampling,
    lengths_B2: Tensor | None = None,
    *,
    fill_padding: bool = False,
) -> Tensor:
    """Return a learned grid, resized for each image and read at each of its tokens.

    A source of up to `DENSE_CELLS` cells is one matmul. A larger one is read at the 4 or 16 cells that matter, or,
    with antialias, where any cell may matter, by a matmul for each block of rows of up to `DENSE_CELLS` cells.

    Args:
        grid_HWC: [H, W, C] the source grid, any floating dtype; resampled in float32.
        coord_BN2: [B, N, 2] integer (y, x) of each token, row by row; padding holds zeros.
        resampling: the resize to reproduce.
        lengths_B2: [B, 2] lengths to resize to, in patches, integer; by default each image's own grid, the largest
            coordinate plus one. Larger ones read the upper left corner of a larger resize (aspect-preserving).
        fill_padding: let padding read what its coordinate says, the first cell, as timm's `grid_sample` has it.

    Returns:
        [B, N, C] float32; zero beyond the first h * w tokens of an image, as timm and the reference loop have it,
        unless `fill_padding`.
    """
    source_h, source_w, _ = grid_HWC.shape
    grid_HWC = grid_HWC.float()
    if reads_few_cells((source_h, source_w), resampling):
        cell_BNT, weight_BNT = grid_cells((source_h, source_w), coord_BN2, lengths_B2, resampling)
        return _sum_of_cells(grid_HWC, cell_BNT, weight_BNT if fill_padding else weight_BNT * inside(coord_BN2))

    source, stored = (source_h, source_w), stored_matrices()
    if stored is None:
        rows_BNH, columns_BNW = grid_weights(source, coord_BN2, lengths_B2, resampling, fill_padding=fill_padding)
    else:
        rows_BNH, columns_BNW = stored.weights(source, coord_BN2, lengths_B2, resampling)
        rows_BNH = rows_BNH if fill_padding else rows_BNH * inside(coord_BN2)
    block = max(1, weights.DENSE_CELLS // source_w)
    with full_precision(grid_HWC.device.type):
        if block >= source_h:
            return _dense(rows_BNH, columns_BNW, grid_HWC)
        blocks = [slice(start, start + block) for start in range(0, source_h, block)]
        return reduce(torch.add, (_dense(rows_BNH[..., part], columns_BNW, grid_HWC[part]) for part in blocks))


def resample_axes_at(
    table_HC: Tensor,
    table_WC: Tensor,
    coord_BN2: Tensor,
    resampling: Resampling,
    lengths_B2: Tensor | None = None,
    *,
    fill_padding: bool = False,
) -> Tensor:
    """Return a factorized embedding: a table of rows and one of columns, each resized, and their sum at each token.

    Args:
        table_HC: [H, C] the source rows, any floating dtype; resampled in float32.
        table_WC: [W, C] the source columns.
        coord_BN2: [B, N, 2] integer (y, x) of each token, as in `resample_at`.
        resampling: the resize to reproduce.
        lengths_B2: [B, 2] lengths to resize to, as in `resample_at`.
        fill_padding: let padding read what its coordinate says.

    Returns:
        [B, N, C] float32; padding as in `resample_at`.
    """
    stored = stored_matrices()
    if stored is None:
        position_BN2, length_BN2 = positions(coord_BN2, lengths_B2)
        rows_BNH = axis_weights(position_BN2[..., 0], length_BN2[..., 0], table_HC.shape[0], resampling)
        columns_BNW = axis_weights(position_BN2[..., 1], length_BN2[..., 1], table_WC.shape[0], resampling)
    else:
        source = table_HC.shape[0], table_WC.shape[0]
        rows_BNH, columns_BNW = stored.weights(source, coord_BN2, lengths_B2, resampling)
    if not fill_padding:
        kept_BN1 = inside(coord_BN2)
        rows_BNH, columns_BNW = rows_BNH * kept_BN1, columns_BNW * kept_BN1
    with full_precision(table_HC.device.type):
        return rows_BNH @ table_HC.float() + columns_BNW @ table_WC.float()


def _dense(rows_BNH: Tensor, columns_BNW: Tensor, grid_HWC: Tensor) -> Tensor:
    """Return the sum [B, N, C] of all cells, each weighted by its row and its column."""
    return (rows_BNH.unsqueeze(-1) * columns_BNW.unsqueeze(-2)).flatten(-2) @ grid_HWC.flatten(0, 1)


def _sum_of_cells(grid_HWC: Tensor, cell_BNT: Tensor, weight_BNT: Tensor) -> Tensor:
    """Return the weighted sum [B, N, C] of the cells that each token reads.

    One cell at a time: all 16 at once would hold 16 times the result.
    """
    cells_SC = grid_HWC.flatten(0, 1)
    weighted = (
        torch.nn.functional.embedding(cell_BN, cells_SC) * weight_BN.unsqueeze(-1)
        for cell_BN, weight_BN in zip(cell_BNT.unbind(-1), weight_BNT.unbind(-1), strict=True)
    )
    return reduce(torch.add, weighted)
