"""Qwen3-VL's vision tower: a learned grid resized bilinearly with aligned corners, patches in the order of merging.

Shape legend: as in `tower.py`.
"""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor
from transformers.models.qwen3_vl.modeling_qwen3_vl import (
    BaseModelOutputWithDeepstackFeatures,
    Qwen3VLVisionAttention,
    Qwen3VLVisionModel,
)

from naflex_export.errors import UnsupportedModelError
from naflex_export.models.tower import JoinedQkvAttention, TowerAdapter, VectorizedTower
from naflex_export.models.tower_position import add_position
from naflex_export.resample.weights import Resampling

BILINEAR = Resampling(mode="bilinear", antialias=False, align_corners=True)


class VectorizedQwen3VLAttention(JoinedQkvAttention, Qwen3VLVisionAttention):
    """`Qwen3VLVisionAttention` within each image of a pack."""


class VectorizedQwen3VLVisionModel(VectorizedTower, Qwen3VLVisionModel):
    """`Qwen3VLVisionModel` without a look at its grids."""

    def forward(
        self, hidden_states: Tensor, grid_thw: Tensor, positions: Tensor | None = None, **kwargs: Any
    ) -> BaseModelOutputWithDeepstackFeatures:
        """Return the tower's outputs: patches [T, C], merged tokens [U, E] and those of each deepstack level.

        Args:
            hidden_states: [T, D] patches, those of a token one after the other.
            grid_thw: [B, 3].
            positions: [N] as of `VectorizedTower.packing`.
            kwargs: transformers' own; none changes what is computed.
        """
        packing = self.packing(hidden_states, grid_thw, positions)
        x_TC = add_position(self.patch_embed(hidden_states), self.pos_embed.weight, packing, BILINEAR)
        rotary = self.rotary_pos_emb(x_TC, packing.coord_T12.squeeze(1))
        levels = []
        for number, block in enumerate(self.blocks):
            x_TC = block(x_TC, cu_seqlens=packing, position_embeddings=rotary)
            if number in self.deepstack_visual_indexes:
                levels.append(self.deepstack_merger_list[self.deepstack_visual_indexes.index(number)](x_TC))
        return BaseModelOutputWithDeepstackFeatures(
            last_hidden_state=x_TC, pooler_output=self.merger(x_TC), deepstack_features=levels
        )


class Qwen3VL(TowerAdapter):
    """Of transformers' `Qwen3VLVisionModel`, alone or in a model of images and texts."""

    name = "transformers Qwen3-VL"
    tower_class = Qwen3VLVisionModel
    twins: ClassVar = {
        Qwen3VLVisionModel: VectorizedQwen3VLVisionModel,
        Qwen3VLVisionAttention: VectorizedQwen3VLAttention,
    }
    children = frozenset({"patch_embed", "pos_embed", "rotary_pos_emb", "blocks", "merger", "deepstack_merger_list"})

    @property
    def default_outputs(self) -> tuple[str, ...]:
        return ("tokens", *(f"deepstack_{level}" for level in range(len(self.model.deepstack_merger_list))))

    def named_outputs(self, given: Any) -> dict[str, Tensor]:
        levels = {f"deepstack_{level}": made for level, made in enumerate(given.deepstack_features)}
        return {**super().named_outputs(given), **levels}

    def check_options(self) -> None:
        model = self.model
        found = (getattr(model, "interpolation_mode", None), getattr(model, "interpolation_align_corners", None))
        if found != ("bilinear", True):
            raise UnsupportedModelError(
                f"the tower resizes its positions by {found[0]!r} with align_corners={found[1]}: expected 'bilinear' "
                "with align_corners=True, as Qwen3-VL has it"
            )
        if model.num_grid_per_side**2 != len(model.pos_embed.weight):
            raise UnsupportedModelError(
                f"the tower has {len(model.pos_embed.weight)} positions, which make no square: expected a square number"
            )
