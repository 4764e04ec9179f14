"""Cosmos3-Edge's vision tower: SigLIP 2's, with patches in the order of merging, merged by what follows the tower.

Shape legend: as in `tower.py`.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar, cast

from torch import Tensor
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.models.cosmos3_edge.modeling_cosmos3_edge import (
    Cosmos3EdgeVisionAttention,
    Cosmos3EdgeVisionModel,
)

from naflex_export.models.packing import Packing, attend
from naflex_export.models.siglip2 import BILINEAR
from naflex_export.models.tower import TowerAdapter, VectorizedTower
from naflex_export.models.tower_call import tower_call
from naflex_export.models.tower_checks import check_square
from naflex_export.models.tower_position import add_position
from naflex_export.resample.stored import Axis
from naflex_export.serving.tower_format import TowerFormat


class VectorizedCosmos3EdgeAttention(Cosmos3EdgeVisionAttention):
    """`Cosmos3EdgeVisionAttention` within each image of a pack."""

    def forward(self, hidden_states: Tensor, cu_seqlens: Any, max_seqlen: Any = None, **kwargs: Any) -> Tensor:
        """Return what the class itself gives, for lengths of a `Packing` too."""
        if not isinstance(cu_seqlens, Packing):
            return cast(Tensor, super().forward(hidden_states, cu_seqlens, max_seqlen, **kwargs))
        rows = (self.q_proj(hidden_states), self.k_proj(hidden_states), self.v_proj(hidden_states))
        dropout = self.dropout if self.training else 0.0
        return cast(Tensor, self.out_proj(attend(rows, self.num_heads, cu_seqlens, scale=self.scale, dropout=dropout)))


class VectorizedCosmos3EdgeVisionModel(VectorizedTower, Cosmos3EdgeVisionModel):
    """`Cosmos3EdgeVisionModel` without a look at its grids."""

    @tower_call
    def forward(
        self, pixel_values: Tensor, grid_thw: Tensor, positions: Tensor | None = None, **kwargs: Any
    ) -> BaseModelOutputWithPooling:
        """Return the tower's output, encoded patches [T, C], those of a token one after the other.

        Args:
            pixel_values: [T, D] patches in the same order.
            grid_thw: [B, 3].
            positions: [N] as of `VectorizedTower.packing`.
            kwargs: transformers' own; none changes what is computed.
        """
        packing = self.packing(pixel_values, grid_thw, positions)
        projection, table = self.embeddings.patch_embedding, self.embeddings.position_embedding.weight
        x_TC = add_position(projection(pixel_values.to(projection.weight.dtype)), table, packing, BILINEAR)
        for layer in self.encoder.layers:
            x_TC = layer(x_TC, cu_seqlens=packing)
        x_TC = self.post_layernorm(x_TC)
        return BaseModelOutputWithPooling(last_hidden_state=x_TC, pooler_output=x_TC)


class Cosmos3Edge(TowerAdapter):
    """Of transformers' `Cosmos3EdgeVisionModel`, alone or in a model of images and texts."""

    name = "transformers Cosmos3-Edge"
    tower_class = Cosmos3EdgeVisionModel
    twins: ClassVar = {
        Cosmos3EdgeVisionModel: VectorizedCosmos3EdgeVisionModel,
        Cosmos3EdgeVisionAttention: VectorizedCosmos3EdgeAttention,
    }
    children = frozenset({"embeddings", "encoder", "post_layernorm"})
    blocks = "encoder.layers"

    @classmethod
    def format_of(cls, model: Any) -> TowerFormat:
        return TowerFormat(
            "pixel_values", (model.embeddings.patch_embedding.in_features,), model.config.spatial_merge_size
        )

    def named_outputs(self, given: Any) -> dict[str, Tensor]:
        return {"tokens": given.last_hidden_state}

    @property
    def learned_grid(self) -> Axis:
        return math.isqrt(len(self.model.embeddings.position_embedding.weight)), BILINEAR

    def check_options(self) -> None:
        check_square(len(self.model.embeddings.position_embedding.weight))
