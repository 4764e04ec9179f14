"""Qwen3-VL's vision tower: a learned grid resized bilinearly with aligned corners, patches in the order of merging.

Qwen3-Omni and the mixture of experts have the same tower under other names; Qwen3.5's and Qwen4's have no deepstack.

Shape legend: as in `tower.py`.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from naflex_export.errors import UnsupportedModelError
from naflex_export.models.packing import Packing
from naflex_export.models.tower_checks import check_square
from naflex_export.models.tower_kin import Kin, KinAdapter, KinTower, twin_named
from naflex_export.models.tower_position import add_position
from naflex_export.resample.stored import Axis
from naflex_export.resample.weights import Resampling

BILINEAR = Resampling(mode="bilinear", antialias=False, align_corners=True)


class Qwen3VLForward(KinTower):
    """What the tower computes, without a look at its grids."""

    def encoded(self, hidden_states: Tensor, grid_thw: Tensor, packing: Packing) -> dict[str, Any]:
        """Return patches [T, C], merged tokens [U, E] and those of each deepstack level.

        Arguments as of `KinTower.encoded`.
        """
        x_TC = add_position(self.patch_embed(hidden_states), self.pos_embed.weight, packing, BILINEAR)
        rotary = self.rotary_pos_emb(x_TC, packing.coord_T12.squeeze(1))
        levels: list[Tensor] = []
        indexes = getattr(self, "deepstack_visual_indexes", ())
        for number, block in enumerate(self.blocks):
            x_TC = block(x_TC, cu_seqlens=packing, position_embeddings=rotary)
            if number in indexes:
                levels.append(self.deepstack_merger_list[indexes.index(number)](x_TC))
        deep: Any = {"deepstack_features": levels} if hasattr(self, "deepstack_merger_list") else {}
        return {"last_hidden_state": x_TC, "pooler_output": self.merger(x_TC), **deep}


_DEEP = "BaseModelOutputWithDeepstackFeatures"


class Qwen3VL(KinAdapter):
    """Of transformers' `Qwen3VLVisionModel` and its kin, alone or in a model of images and texts."""

    name = "transformers Qwen3-VL"
    kin = (
        Kin("qwen3_vl", "Qwen3VLVisionModel", "Qwen3VLVisionAttention", _DEEP),
        Kin("qwen3_vl_moe", "Qwen3VLMoeVisionModel", "Qwen3VLMoeVisionAttention", _DEEP),
        Kin("qwen3_omni_moe", "Qwen3OmniMoeVisionEncoder", "Qwen3OmniMoeVisionAttention", _DEEP),
        Kin("qwen3_5", "Qwen3_5VisionModel", "Qwen3_5VisionAttention"),
        Kin("qwen3_5_moe", "Qwen3_5MoeVisionModel", "Qwen3_5MoeVisionAttention"),
        Kin("qwen4_exp", "Qwen4ExpVisionModel", "Qwen4ExpVisionAttention"),
    )
    forward_class = Qwen3VLForward
    children = frozenset({"patch_embed", "pos_embed", "rotary_pos_emb", "blocks", "merger"})
    ahead = ("patch_embed", "pos_embed", "rotary_pos_emb")

    @property
    def own_children(self) -> frozenset[str]:
        kin = self.kin_of(self.model)
        if kin is None or not kin.output:
            return self.children
        return self.children | {"merger_list" if kin.package == "qwen3_omni_moe" else "deepstack_merger_list"}

    @property
    def default_outputs(self) -> tuple[str, ...]:
        return ("tokens", *(f"deepstack_{level}" for level in range(len(self._levels))))

    @property
    def _levels(self) -> Any:
        return getattr(self.model, "deepstack_merger_list", ())

    def named_outputs(self, given: Any) -> dict[str, Tensor]:
        levels = getattr(given, "deepstack_features", None) or ()
        return {**super().named_outputs(given), **{f"deepstack_{at}": made for at, made in enumerate(levels)}}

    @property
    def learned_grid(self) -> Axis:
        return self.model.num_grid_per_side, BILINEAR

    def check_options(self) -> None:
        model = self.model
        found = (getattr(model, "interpolation_mode", None), getattr(model, "interpolation_align_corners", None))
        if found != ("bilinear", True):
            raise UnsupportedModelError(
                f"the tower resizes its positions by {found[0]!r} with align_corners={found[1]}: expected 'bilinear' "
                "with align_corners=True, as Qwen3-VL has it"
            )
        check_square(len(model.pos_embed.weight))
        indexes, blocks = getattr(model, "deepstack_visual_indexes", None) or [], len(model.blocks)
        if len(self._levels) and (len(set(indexes)) < len(indexes) or not set(indexes) <= set(range(blocks))):
            raise UnsupportedModelError(
                f"the tower has levels at blocks {list(indexes)} of {blocks}: expected different ones, from 0 to "
                f"{blocks - 1}, as deepstack_visual_indexes of its config"
            )


def __getattr__(name: str) -> Any:
    return twin_named(name, Qwen3VL)
