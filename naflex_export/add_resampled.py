"""`add_resampled`: which evaluation of the resize runs where. The one rule."""

from __future__ import annotations

import torch
from torch import Tensor

from naflex_export.resample import Resampling, resample_at
from naflex_export.resample_cpu import add_resampled_on_cpu


def add_resampled(
    x: Tensor,
    grid_HWC: Tensor,
    coord_BN2: Tensor,
    how: Resampling,
    lengths_B2: Tensor | None = None,
    *,
    fill_padding: bool = False,
) -> Tensor:
    """Add a learned grid, resized for each image, to each of its tokens.

    A graph that leaves torch, and any device but a CPU, gets `resample_at`: no loop, no look at the grids, nothing but
    operators that every backend has. Everything else on a CPU gets `add_resampled_on_cpu`, which does a fraction of
    that work.

    Args:
        x: [B * N, C] or [B, N, C], any floating dtype; changed in place. Where it is a view, autograd makes copies of
            it: better pass what is none.
        grid_HWC: [H, W, C] the source grid, any floating dtype; resampled in float32.
        coord_BN2: [B, N, 2] integer (y, x) of each token; padding holds zeros.
        how: the resize to reproduce.
        lengths_B2: [B, 2] lengths to resize to, as in `resample_at`.
        fill_padding: add to padding what its coordinate says, as in `resample_at`.

    Returns:
        The sum, in the shape and dtype of `x`.
    """
    leaves_torch = torch.compiler.is_exporting() or torch.jit.is_tracing()  # type: ignore[attr-defined, no-untyped-call]
    if x.device.type == "cpu" and not leaves_torch:
        return add_resampled_on_cpu(x, grid_HWC, coord_BN2, how, lengths_B2, fill_padding=fill_padding)
    pos_BNC = resample_at(grid_HWC, coord_BN2, how, lengths_B2, fill_padding=fill_padding)
    return x.add_(pos_BNC.to(x.dtype).view(x.shape))
