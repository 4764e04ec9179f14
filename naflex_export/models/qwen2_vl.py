"""Qwen2-VL's vision tower: rotary positions alone, and attention within each image.

Shape legend: as in `tower.py`.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from naflex_export.models.packing import Packing
from naflex_export.models.tower_kin import Kin, KinAdapter, KinTower, twin_named


class Qwen2VLForward(KinTower):
    """What the tower computes, without a look at its grids."""

    def encoded(self, hidden_states: Tensor, grid_thw: Tensor, packing: Packing) -> dict[str, Any]:
        """Return patches [T, C], and merged tokens [U, E].

        Arguments as of `KinTower.encoded`.
        """
        x_TC = self.patch_embed(hidden_states)
        rotary = self.rotary_pos_emb(x_TC, packing.coord_T12.squeeze(1))
        for block in self.blocks:
            x_TC = block(x_TC, cu_seqlens=packing, position_embeddings=rotary)
        return {"last_hidden_state": x_TC, "pooler_output": self.merger(x_TC)}


class Qwen2VL(KinAdapter):
    """Of transformers' `Qwen2VisionTransformerPretrainedModel`, alone or in a model of images and texts."""

    name = "transformers Qwen2-VL"
    kin = (Kin("qwen2_vl", "Qwen2VisionTransformerPretrainedModel", "VisionAttention"),)
    forward_class = Qwen2VLForward
    children = frozenset({"patch_embed", "rotary_pos_emb", "blocks", "merger"})


def __getattr__(name: str) -> Any:
    return twin_named(name, Qwen2VL)
