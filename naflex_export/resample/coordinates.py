"""What the coordinates of a batch of tokens say: grids, which tokens are no padding, where each lies on its axes.

Shape legend: B images, N tokens.
"""

from __future__ import annotations

import torch
from torch import Tensor


def whole_numbers(coordinates: Tensor) -> Tensor:
    """Return coordinates or grids as int64: a product of two would not fit in 8 bits, and an index is no float."""
    return coordinates if coordinates.dtype == torch.int64 else coordinates.long()


def grids_of(coord_BN2: Tensor) -> Tensor:
    """Return each image's grid [B, 2]: its largest coordinates plus one."""
    return coord_BN2.amax(dim=1) + 1


def inside(coord_BN2: Tensor) -> Tensor:
    """Return [B, N, 1] bool: True for the first h * w tokens of each image, False for its padding."""
    token_N = torch.arange(coord_BN2.shape[1], device=coord_BN2.device)
    height_B, width_B = grids_of(coord_BN2).unbind(dim=1)  # multiplied: ONNX Runtime has no ReduceProd on a GPU
    return (token_N < (height_B * width_B).unsqueeze(-1)).unsqueeze(-1)


def positions(coord_BN2: Tensor, lengths_B2: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return the tokens' positions and the lengths of the axes they lie on, both [B, N, 2] float32."""
    lengths_B2 = grids_of(coord_BN2) if lengths_B2 is None else lengths_B2
    position_BN2 = coord_BN2.float()
    return position_BN2, lengths_B2.unsqueeze(1).float().expand_as(position_BN2)
