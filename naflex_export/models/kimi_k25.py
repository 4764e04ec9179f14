"""Kimi's vision tower, MoonViT: a learned grid resized bicubically, patches row by row, merged after all blocks.

Shape legend: as in `tower.py`.
"""

from __future__ import annotations

from typing import Any, ClassVar, cast

import torch
from torch import Tensor
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.models.kimi_k25.modeling_kimi_k25 import Kimi_K25VisionAttention, Kimi_K25VisionModel

from naflex_export.errors import UnsupportedModelError
from naflex_export.models.packing import Packing
from naflex_export.models.tower import TowerAdapter, VectorizedTower, rotary_attention
from naflex_export.models.tower_call import tower_call
from naflex_export.models.tower_position import add_position
from naflex_export.resample.stored import Axis
from naflex_export.resample.weights import Resampling
from naflex_export.serving.tower_format import TowerFormat

BICUBIC = Resampling(mode="bicubic", antialias=False)


class VectorizedKimiAttention(Kimi_K25VisionAttention):
    """`Kimi_K25VisionAttention` within each image of a pack."""

    def forward(self, hidden_states: Tensor, cu_seqlens: Any, position_embeddings: Any = None, **kwargs: Any) -> Tensor:
        """Return what the class itself gives, for lengths of a `Packing` too."""
        if not isinstance(cu_seqlens, Packing):
            return cast(Tensor, super().forward(hidden_states, cu_seqlens, position_embeddings, **kwargs))
        rows = (self.q_proj(hidden_states), self.k_proj(hidden_states), self.v_proj(hidden_states))
        return cast(Tensor, self.proj(rotary_attention(self, rows, cu_seqlens, position_embeddings)))


class VectorizedKimiVisionModel(VectorizedTower, Kimi_K25VisionModel):
    """`Kimi_K25VisionModel` without a look at its grids."""

    @tower_call
    def forward(
        self, pixel_values: Tensor, grid_thw: Tensor, positions: Tensor | None = None, **kwargs: Any
    ) -> BaseModelOutputWithPooling:
        """Return the tower's outputs: patches [T, C], and [U, M, C] those of each token together.

        Args:
            pixel_values: [T, channels, height, width] patches, row by row.
            grid_thw: [B, 3].
            positions: [N] as of `VectorizedTower.packing`.
            kwargs: transformers' own; none changes what is computed.
        """
        packing = self.packing(pixel_values, grid_thw, positions)
        x_TC = self.patch_embed.proj(pixel_values).view(pixel_values.shape[0], -1)
        table = self.patch_embed.pos_emb.position_embeddings
        x_TC = add_position(x_TC, table.flatten(0, 1), packing, BICUBIC)
        rotary = self.rotary_emb(x_TC, packing.coord_T12.squeeze(1))
        for block in self.layers:
            x_TC = block(x_TC, cu_seqlens=packing, position_embeddings=rotary)
        x_TC = self.final_layernorm(x_TC)
        side = self.input_format.merge
        coord_T2, image_T = packing.coord_in_squares(side), packing.image_T
        first_T, width_T = packing.start_B.index_select(0, image_T), packing.grid_T2[:, 1]
        by_token_TC = x_TC.index_select(0, first_T + coord_T2[:, 0] * width_T + coord_T2[:, 1])
        merged_UMC = by_token_TC.view(-1, side * side, by_token_TC.shape[1])
        return BaseModelOutputWithPooling(last_hidden_state=x_TC, pooler_output=merged_UMC)


class Kimi(TowerAdapter):
    """Of transformers' `Kimi_K25VisionModel`, alone or in a model of images and texts."""

    name = "transformers Kimi"
    tower_class = Kimi_K25VisionModel
    twins: ClassVar = {
        Kimi_K25VisionModel: VectorizedKimiVisionModel,
        Kimi_K25VisionAttention: VectorizedKimiAttention,
    }
    children = frozenset({"patch_embed", "rotary_emb", "layers", "final_layernorm"})
    blocks = "layers"

    @classmethod
    def format_of(cls, model: Any) -> TowerFormat:
        patch_shape = (model.patch_embed.proj.in_channels, *model.patch_embed.proj.kernel_size)
        return TowerFormat("pixel_values", patch_shape, max(model.merge_kernel_size), by_rows=True)

    @property
    def learned_grid(self) -> Axis:
        return len(self.model.patch_embed.pos_emb.position_embeddings), BICUBIC

    def check_options(self) -> None:
        height, width = self.model.merge_kernel_size
        if height != width:
            raise UnsupportedModelError(f"the tower merges {height}x{width} patches to a token: expected a square")
        positions: Any = self.model.patch_embed.pos_emb
        found = (positions.interpolation_mode, positions.interpolation_align_corners)
        height, width = positions.position_embeddings.shape[:2]
        if found != ("bicubic", False) or {height, width} != {positions.num_grid_per_side}:
            raise UnsupportedModelError(
                f"the tower resizes {[height, width]} positions by {found[0]!r} with "
                f"align_corners={found[1]}: expected a square, and 'bicubic' without, as Kimi has it"
            )
        if not torch.equal(positions.time_position_embeddings[:1], positions.time_position_embeddings[:1] * 0):
            raise UnsupportedModelError("the tower adds a position in time to single frames: expected none, as of Kimi")
