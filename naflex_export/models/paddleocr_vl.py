"""PaddleOCR-VL's vision tower: a learned grid resized bilinearly, patches row by row, merged by what follows the tower.

Shape legend: as in `tower.py`; a token is a patch.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar

from torch import Tensor
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.models.paddleocr_vl.modeling_paddleocr_vl import (
    PaddleOCRVisionAttention,
    PaddleOCRVisionModel,
    PaddleOCRVisionTransformer,
)

from naflex_export.errors import UnsupportedModelError
from naflex_export.models.packing import Packing
from naflex_export.models.tower import TowerAdapter, VectorizedTower, rotary_attention
from naflex_export.models.tower_call import tower_call
from naflex_export.models.tower_position import add_position
from naflex_export.resample.stored import Axis
from naflex_export.resample.weights import Resampling
from naflex_export.serving.tower_format import TowerFormat


def resampling_of(embeddings: Any) -> Resampling:
    """Return how a tower resizes its positions: releases of transformers differ in whether corners are aligned."""
    return Resampling("bilinear", antialias=False, align_corners=embeddings.interpolation_align_corners)


class VectorizedPaddleOCRAttention(PaddleOCRVisionAttention):
    """`PaddleOCRVisionAttention` within each image of a pack."""

    def forward(self, hidden_states: Tensor, cu_seqlens: Any, position_embeddings: Any, **kwargs: Any) -> Any:
        """Return what the class itself gives, and for lengths of a `Packing` no weights."""
        if not isinstance(cu_seqlens, Packing):
            return super().forward(hidden_states, cu_seqlens, position_embeddings, **kwargs)
        rows = (self.q_proj(hidden_states), self.k_proj(hidden_states), self.v_proj(hidden_states))
        return self.out_proj(rotary_attention(self, rows, cu_seqlens, position_embeddings)), None


class VectorizedPaddleOCRVisionTransformer(PaddleOCRVisionTransformer):
    """`PaddleOCRVisionTransformer` that is given a `Packing` in place of grids."""

    def forward(self, pixel_values: Tensor, packing: Packing) -> BaseModelOutputWithPooling:
        """Return the encoded patches [T, C]."""
        embeddings: Any = self.embeddings
        x_TC = embeddings.patch_embedding(pixel_values.flatten(0, 1).to(embeddings.patch_embedding.weight.dtype))
        x_TC = add_position(x_TC.flatten(1), embeddings.position_embedding.weight, packing, resampling_of(embeddings))
        rotary = self.encoder.rotary_pos_emb(x_TC, packing.coord_T12.squeeze(1))
        for layer in self.encoder.layers:
            x_TC = layer(x_TC, cu_seqlens=packing, position_embeddings=rotary)
        return BaseModelOutputWithPooling(last_hidden_state=self.post_layernorm(x_TC), pooler_output=None)


class VectorizedPaddleOCRVisionModel(VectorizedTower, PaddleOCRVisionModel):
    """`PaddleOCRVisionModel` without a look at its grids."""

    @tower_call
    def forward(
        self, pixel_values: Tensor, grid_thw: Tensor, positions: Tensor | None = None, **kwargs: Any
    ) -> BaseModelOutputWithPooling:
        """Return the tower's output, encoded patches [T, C].

        Args:
            pixel_values: [1, T, channels, height, width] patches, row by row.
            grid_thw: [B, 3].
            positions: [N] as of `VectorizedTower.packing`.
            kwargs: transformers' own; none changes what is computed.
        """
        made: BaseModelOutputWithPooling = self.vision_model(
            pixel_values, self.packing(pixel_values, grid_thw, positions)
        )
        return made


class PaddleOCRVL(TowerAdapter):
    """Of transformers' `PaddleOCRVisionModel`, alone or in a model of images and texts."""

    name = "transformers PaddleOCR-VL"
    tower_class = PaddleOCRVisionModel
    twins: ClassVar = {
        PaddleOCRVisionModel: VectorizedPaddleOCRVisionModel,
        PaddleOCRVisionTransformer: VectorizedPaddleOCRVisionTransformer,
        PaddleOCRVisionAttention: VectorizedPaddleOCRAttention,
    }
    children = frozenset({"vision_model"})
    blocks = "vision_model.encoder.layers"

    @classmethod
    def format_of(cls, model: Any) -> TowerFormat:
        config = model.config
        return TowerFormat("pixel_values", (config.num_channels, config.patch_size, config.patch_size), in_batch=True)

    def named_outputs(self, given: Any) -> dict[str, Tensor]:
        return {"tokens": given.last_hidden_state}

    @property
    def learned_grid(self) -> Axis:
        embeddings = self.model.vision_model.embeddings
        return math.isqrt(len(embeddings.position_embedding.weight)), resampling_of(embeddings)

    def check_options(self) -> None:
        found = self.model.vision_model.embeddings.interpolation_mode
        if found != "bilinear":
            raise UnsupportedModelError(
                f"the tower resizes its positions by {found!r}: expected 'bilinear', with or without aligned corners, "
                "as releases of transformers have PaddleOCR-VL"
            )
