"""Qwen2-VL's vision tower: rotary positions alone, and attention within each image.

Shape legend: as in `tower.py`.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers.modeling_outputs import BaseModelOutputWithPooling

from naflex_export.models.tower_call import tower_call
from naflex_export.models.tower_kin import Kin, KinAdapter, KinTower, twin_named


class Qwen2VLForward(KinTower):
    """The tower's forward without a look at its grids."""

    @tower_call
    def forward(
        self, hidden_states: Tensor, grid_thw: Tensor, positions: Tensor | None = None, **kwargs: Any
    ) -> BaseModelOutputWithPooling:
        """Return the tower's outputs: patches [T, C], and merged tokens [U, E].

        Args:
            hidden_states: [T, D] patches, those of a token one after the other.
            grid_thw: [B, 3].
            positions: [N] as of `VectorizedTower.packing`.
            kwargs: transformers' own; none changes what is computed.
        """
        packing = self.packing(hidden_states, grid_thw, positions)
        x_TC = self.patch_embed(hidden_states)
        rotary = self.rotary_pos_emb(x_TC, packing.coord_T12.squeeze(1))
        for block in self.blocks:
            x_TC = block(x_TC, cu_seqlens=packing, position_embeddings=rotary)
        return self.output_class(last_hidden_state=x_TC, pooler_output=self.merger(x_TC))


class Qwen2VL(KinAdapter):
    """Of transformers' `Qwen2VisionTransformerPretrainedModel`, alone or in a model of images and texts."""

    name = "transformers Qwen2-VL"
    kin = (Kin("qwen2_vl", "Qwen2VisionTransformerPretrainedModel", "VisionAttention"),)
    forward_class = Qwen2VLForward
    children = frozenset({"patch_embed", "rotary_pos_emb", "blocks", "merger"})


def __getattr__(name: str) -> Any:
    return twin_named(name, Qwen2VL)
