"""Qwen2.5-VL's vision tower: rotary positions alone, and attention within windows of an image in most blocks.

Qwen2.5-Omni has the same tower under other names.

transformers sorts tokens by their windows ahead of the first block. Where a token goes follows from its grid, so that
needs no sort: above it are whole rows of windows, and to its left whole windows of as many rows as its own.

Shape legend: as in `tower.py`.
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import torch
from torch import Tensor

from naflex_export.errors import UnsupportedModelError
from naflex_export.models.packing import Packing
from naflex_export.models.tower import JoinedQkvAttention
from naflex_export.models.tower_kin import Kin, KinAdapter, KinTower, twin_named

MOST_WINDOWS = 2**20
"""In a row: what a window's row is multiplied with to number it."""


class Windows(NamedTuple):
    """Where tokens go that are sorted by their windows.

    Attributes:
        source_U: which token comes at each place.
        place_U: at which place each token comes.
        window_U: the window, by its number in its image, of the token at each place.
    """

    source_U: Tensor
    place_U: Tensor
    window_U: Tensor

    @classmethod
    def of(cls, tokens: Packing, side: int) -> Windows:
        """Return the windows of a pack.

        Args:
            tokens: where its tokens lie, row by row.
            side: of a window, in tokens.
        """
        height_U, width_U = tokens.grid_T2.unbind(dim=1)
        first_U = tokens.start_B.index_select(0, tokens.image_T)
        left_U = torch.arange(first_U.shape[0], device=first_U.device) - first_U
        down_U = left_U // (side * width_U)
        left_U = left_U - down_U * side * width_U
        rows_U = (height_U - down_U * side).clamp(min=1, max=side)
        across_U = left_U // (rows_U * side)
        left_U = left_U - across_U * rows_U * side
        columns_U = (width_U - across_U * side).clamp(min=1, max=side)
        row_U = left_U // columns_U
        source_U = (down_U * side + row_U) * width_U + across_U * side + left_U - row_U * columns_U

        y_U, x_U = tokens.coord_T12.squeeze(1).unbind(dim=1)
        above_U, before_U = y_U // side * side, x_U // side * side
        rows_U = (height_U - above_U).clamp(max=side)
        columns_U = (width_U - before_U).clamp(max=side)
        place_U = above_U * width_U + rows_U * before_U + (y_U - above_U) * columns_U + x_U - before_U
        return cls(first_U + source_U, first_U + place_U, down_U * MOST_WINDOWS + across_U)


class SplitQkvAttention(JoinedQkvAttention):
    """The same of Omni's attention, which projects queries, keys and values each by itself."""

    def projected(self, hidden_states: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return queries, keys and values [T, C]."""
        own: Any = self
        return own.q(hidden_states), own.k(hidden_states), own.v(hidden_states)


class Qwen25VLForward(KinTower):
    """What the tower computes, without a look at its grids, and so without a sort by windows."""

    def encoded(self, hidden_states: Tensor, grid_thw: Tensor, packing: Packing) -> dict[str, Any]:
        """Return patches [T, C], window by window, and merged tokens [U, E], row by row.

        Arguments as of `KinTower.encoded`.
        """
        per_token = self.spatial_merge_unit
        side, count = self.spatial_merge_size, hidden_states.shape[0] // per_token
        tokens = Packing.of_grids(grid_thw[:, 1:].long() // side, count, packing.image_T[:1])
        windows = Windows.of(tokens, self.window_size // side // self.patch_size)
        patch_M = torch.arange(per_token, device=packing.image_T.device)
        source_T = ((windows.source_U * per_token).unsqueeze(1).expand(count, per_token) + patch_M).flatten()
        whole = dataclasses.replace(packing, coord_T12=packing.coord_T12.index_select(0, source_T))
        window_T = windows.window_U.unsqueeze(1).expand(count, per_token).flatten()
        within = dataclasses.replace(whole, window_T=window_T)
        x_TC = self.patch_embed(hidden_states).index_select(0, source_T)
        rotary = self.rotary_pos_emb(x_TC, whole.coord_T12.squeeze(1))
        for number, block in enumerate(self.blocks):
            lengths = whole if number in self.fullatt_block_indexes else within
            x_TC = block(x_TC, cu_seqlens=lengths, position_embeddings=rotary)
        merged_UE = self.merger(x_TC).index_select(0, windows.place_U)
        return {"last_hidden_state": x_TC, "pooler_output": merged_UE}


class Qwen25VL(KinAdapter):
    """Of transformers' `Qwen2_5_VisionTransformerPretrainedModel` and its kin, alone or in a model around it."""

    name = "transformers Qwen2.5-VL"
    kin = (
        Kin("qwen2_5_vl", "Qwen2_5_VisionTransformerPretrainedModel", "Qwen2_5_VLVisionAttention"),
        Kin("qwen2_5_omni", "Qwen2_5OmniVisionEncoder", "Qwen2_5OmniVisionAttention", attends=SplitQkvAttention),
    )
    forward_class = Qwen25VLForward
    children = frozenset({"patch_embed", "rotary_pos_emb", "blocks", "merger"})

    def check_options(self) -> None:
        model = self.model
        if model.window_size // model.spatial_merge_size // model.patch_size < 1:
            raise UnsupportedModelError(
                f"the tower's windows of {model.window_size} pixels hold no token of "
                f"{model.spatial_merge_size * model.patch_size}: expected larger ones"
            )


def __getattr__(name: str) -> Any:
    return twin_named(name, Qwen25VL)
