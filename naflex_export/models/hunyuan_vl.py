"""HunYuanVL's vision tower: a learned grid resized without antialias, patches row by row, merged by a convolution.

It gives a token for the start of each image, the end of each row of tokens and the end of the image besides. They are
the same for all images, so each is made once, and each place of the outputs reads the token that belongs there.

Shape legend: as in `tower.py`; R rows of tokens of all images, K = U + R + 2 * B places of the outputs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.models.hunyuan_vl.modeling_hunyuan_vl import (
    HunYuanVLVisionAttention,
    HunYuanVLVisionPatchMerger,
    HunYuanVLVisionTransformer,
)

from naflex_export.errors import UnsupportedModelError
from naflex_export.models.packing import Packing, attend
from naflex_export.models.tower import TowerAdapter, VectorizedTower
from naflex_export.models.tower_call import tower_call
from naflex_export.models.tower_position import add_position
from naflex_export.resample.stored import Axis
from naflex_export.resample.weights import Resampling
from naflex_export.serving.input_formats import can_be_checked
from naflex_export.serving.tower_format import TowerFormat

MODES = ("bilinear", "bicubic")


@dataclass(frozen=True)
class Marked:
    """Where patches lie whose tower marks the ends of rows, in place of a grid.

    Attributes:
        packing: of the patches.
        grid_B2: of each image, in tokens.
        rows: [R], as many as there are rows.
    """

    packing: Packing
    grid_B2: Tensor
    rows: Tensor

    def sources(self, tokens: int) -> Tensor:
        """Return what each place reads [K]: a token, or behind all U of them a row's end, a start, an end.

        Args:
            tokens: U.
        """
        height_B, width_B = self.grid_B2.unbind(dim=1)
        image_B = torch.arange(self.grid_B2.shape[0], device=width_B.device)
        area_B, length_B = height_B * width_B, height_B * (width_B + 1) + 2
        first_B, start_B = (
            torch.where(image_B < image_B.unsqueeze(1), of_B, 0).sum(dim=1) for of_B in (area_B, length_B)
        )
        others = tokens + 2 * image_B.shape[0]
        place_K = torch.cat([torch.arange(others, device=width_B.device), self.rows + others])
        image_K = (place_K.unsqueeze(1) >= start_B + length_B).sum(dim=1)
        within_K = place_K - start_B.index_select(0, image_K) - 1
        width_K = width_B.index_select(0, image_K)
        row_K = within_K.clamp(min=0) // (width_K + 1)
        column_K = within_K - row_K * (width_K + 1)
        source_K = first_B.index_select(0, image_K) + row_K * width_K + column_K
        source_K = torch.where(column_K == width_K, tokens, source_K)
        source_K = torch.where(within_K < 0, tokens + 1, source_K)
        return torch.where(within_K == length_B.index_select(0, image_K) - 2, tokens + 2, source_K)


class VectorizedHunYuanVLAttention(HunYuanVLVisionAttention):
    """`HunYuanVLVisionAttention` within each image of a pack."""

    def forward(self, hidden_states: Tensor, cu_seqlens: Any, max_seqlen: Any = None, **kwargs: Any) -> Any:
        """Return what the class itself gives, and for lengths of a `Packing` no weights."""
        if not isinstance(cu_seqlens, Packing):
            return super().forward(hidden_states, cu_seqlens, max_seqlen, **kwargs)
        x_TC = hidden_states.squeeze(0)
        rows = (self.q_proj(x_TC), self.k_proj(x_TC), self.v_proj(x_TC))
        return self.o_proj(attend(rows, self.num_heads, cu_seqlens, scale=self.scaling).unsqueeze(0)), None


class VectorizedHunYuanVLMerger(HunYuanVLVisionPatchMerger):
    """`HunYuanVLVisionPatchMerger` that merges all images of a pack at once."""

    def forward(self, hidden_states: Tensor, size: Any) -> Tensor:
        """Return what the class itself gives; of a pack [1, T, C], the tokens [1, K, E] of all its images."""
        if not isinstance(size, Marked):
            return super().forward(hidden_states, size)
        packing, side = size.packing, self.spatial_merge_size
        x_TC = self.before_rms(hidden_states.squeeze(0))
        coord_T2, image_T = packing.coord_in_squares(side), packing.image_T
        first_T, width_T = packing.start_B.index_select(0, image_T), packing.grid_T2[:, 1]
        by_token_TC = x_TC.index_select(0, first_T + coord_T2[:, 0] * width_T + coord_T2[:, 1])
        square_UCHW = by_token_TC.view(-1, side, side, x_TC.shape[1]).permute(0, 3, 1, 2)
        merged_UE = self.mlp(self.proj_out(self.proj_act(self.proj_conv(square_UCHW))).flatten(1))
        marks = (self.mlp(self.image_newline.to(x_TC.dtype)), self.image_begin, self.image_end)
        table = torch.cat([merged_UE, *(mark.to(x_TC.dtype).unsqueeze(0) for mark in marks)])
        return self.after_rms(table.index_select(0, size.sources(merged_UE.shape[0]))).unsqueeze(0)


class VectorizedHunYuanVLVisionTransformer(VectorizedTower, HunYuanVLVisionTransformer):
    """`HunYuanVLVisionTransformer` without a look at its grids."""

    @tower_call
    def forward(
        self,
        pixel_values: Tensor,
        grid_thw: Tensor,
        positions: Tensor | None = None,
        rows: Tensor | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPooling:
        """Return the tower's outputs: patches [1, T, C], and merged and marked tokens [1, K, E].

        Args:
            pixel_values: [T, D] patches, row by row.
            grid_thw: [B, 3].
            positions: [N] as of `VectorizedTower.packing`.
            rows: [R] as many as all images have rows of tokens; by default found out, which looks at the grids.
            kwargs: transformers' own; none changes what is computed.
        """
        packing, embeddings = self.packing(pixel_values, grid_thw, positions), self.embeddings
        rows = self.input_format.rows_of(grid_thw) if rows is None else rows
        if can_be_checked((grid_thw, rows)):
            self.input_format.check_rows(grid_thw, rows)
        sides = (self.config.num_channels, embeddings.patch_size, embeddings.patch_size)
        projection = embeddings.patch_embedding
        x_TC = projection(pixel_values.view(-1, *sides).to(projection.weight.dtype)).flatten(1)
        x_TC = add_position(x_TC, embeddings.position_embedding.weight[1:], packing, _resampling(self.config))
        x_1TC = x_TC.unsqueeze(0)
        for layer in self.layers:
            x_1TC = layer(x_1TC, attention_mask=None, cu_seqlens=packing)
        grid_B2 = grid_thw[:, 1:].long() // self.input_format.merge
        merged_1KE = self.patch_merger(x_1TC, size=Marked(packing, grid_B2, rows))
        return BaseModelOutputWithPooling(last_hidden_state=x_1TC, pooler_output=merged_1KE)


def _resampling(config: Any) -> Resampling:
    return Resampling(mode=config.interpolate_mode, antialias=False)


class HunYuanVL(TowerAdapter):
    """Of transformers' `HunYuanVLVisionTransformer`, alone or in a model of images and texts."""

    name = "transformers HunYuanVL"
    tower_class = HunYuanVLVisionTransformer
    twins: ClassVar = {
        HunYuanVLVisionTransformer: VectorizedHunYuanVLVisionTransformer,
        HunYuanVLVisionAttention: VectorizedHunYuanVLAttention,
        HunYuanVLVisionPatchMerger: VectorizedHunYuanVLMerger,
    }
    children = frozenset({"embeddings", "layers", "patch_merger"})
    blocks = "layers"

    @classmethod
    def format_of(cls, model: Any) -> TowerFormat:
        config = model.config
        values = config.num_channels * config.patch_size**2
        return TowerFormat("pixel_values", (values,), config.spatial_merge_size, by_rows=True, marks_rows=True)

    def named_outputs(self, given: Any) -> dict[str, Tensor]:
        return {"tokens": given.pooler_output.squeeze(0)}

    @property
    def learned_grid(self) -> Axis:
        return self.model.embeddings.position_edge, _resampling(self.model.config)

    def check_options(self) -> None:
        mode = self.model.config.interpolate_mode
        if mode not in MODES:
            raise UnsupportedModelError(
                f"the tower resizes its positions by {mode!r}: expected {' or '.join(map(repr, MODES))}"
            )
