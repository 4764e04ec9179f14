"""GLM-4V's vision tower, of 4.1V to 4.6V: a learned grid sampled bicubically, patches merged by a convolution.

`grid_sample` with a clamped border is a bicubic resize without antialias: both read the same four samples an axis.

Shape legend: as in `tower.py`.
"""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor

from naflex_export.errors import UnsupportedModelError
from naflex_export.models.packing import Packing
from naflex_export.models.tower_kin import Kin, KinAdapter, KinTower, twin_named
from naflex_export.models.tower_position import add_position
from naflex_export.resample.stored import Axis
from naflex_export.resample.weights import Resampling

BICUBIC = Resampling(mode="bicubic", antialias=False)


class Glm4vForward(KinTower):
    """What the tower computes, without a look at its grids."""

    def encoded(self, hidden_states: Tensor, grid_thw: Tensor, packing: Packing) -> dict[str, Any]:
        """Return tokens ahead of the merger and after it, both [U, E].

        Arguments as of `KinTower.encoded`.
        """
        x_TC = self.post_conv_layernorm(self.patch_embed(hidden_states))
        rotary = self.rotary_pos_emb(x_TC, packing.coord_T12.squeeze(1))
        x_TC = add_position(x_TC, self.embeddings.position_embedding.weight, packing, BICUBIC)
        for block in self.blocks:
            x_TC = block(x_TC, cu_seqlens=packing, position_embeddings=rotary)
        side = self.spatial_merge_size
        square_UCHW = self.post_layernorm(x_TC).view(-1, side, side, x_TC.shape[1]).permute(0, 3, 1, 2)
        merged_UE = self.downsample(square_UCHW).view(-1, self.config.out_hidden_size)
        return {"last_hidden_state": merged_UE, "pooler_output": self.merger(merged_UE)}


class Glm4v(KinAdapter):
    """Of transformers' `Glm4vVisionModel` and its kin, alone or in a model of images and texts."""

    name = "transformers GLM-4V"
    kin = (
        Kin("glm4v", "Glm4vVisionModel", "Glm4vVisionAttention"),
        Kin("glm4v_moe", "Glm4vMoeVisionModel", "Glm4vMoeVisionAttention"),
    )
    forward_class = Glm4vForward
    children = frozenset(
        {
            *("embeddings", "patch_embed", "rotary_pos_emb", "blocks", "merger"),
            *("post_conv_layernorm", "downsample", "post_layernorm"),
        }
    )

    ahead = ("embeddings", "patch_embed", "rotary_pos_emb", "post_conv_layernorm")

    @property
    def learned_grid(self) -> Axis:
        return math.isqrt(len(self.model.embeddings.position_embedding.weight)), BICUBIC

    def check_options(self) -> None:
        found = getattr(self.model.embeddings, "interpolated_method", None)
        if found != "bicubic":
            raise UnsupportedModelError(
                f"the tower samples its positions by {found!r}: expected 'bicubic', as GLM-4V has it"
            )


def __getattr__(name: str) -> Any:
    return twin_named(name, Glm4v)
