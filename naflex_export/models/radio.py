"""C-RADIO's vision tower: a learned grid resized to the square of an image's longer side and cropped.

Class and register tokens go ahead of the patches of each image. Its grids are sides alone, `image_grid_hw`.

Shape legend: as in `tower.py`; P class and register tokens of an image, R = B * P + T tokens.
"""

from __future__ import annotations

import inspect
import math
from typing import Any, ClassVar, cast

import torch
from torch import Tensor
from transformers.models.radio.modeling_radio import RadioAttention, RadioModel, RadioModelOutput

from naflex_export.errors import UnsupportedModelError
from naflex_export.models.packing import Packing, attend
from naflex_export.models.tower import TowerAdapter, VectorizedTower
from naflex_export.models.tower_call import tower_call
from naflex_export.models.tower_checks import check_square
from naflex_export.models.tower_position import add_position
from naflex_export.resample.stored import Axis
from naflex_export.resample.weights import Resampling
from naflex_export.serving.tower_format import TowerFormat

BILINEAR = Resampling(mode="bilinear", antialias=False)


class VectorizedRadioAttention(RadioAttention):
    """`RadioAttention` within each image of a pack."""

    def forward(
        self, hidden_states: Tensor, attention_mask: Tensor | None = None, cu_seqlens: Any = None, **kwargs: Any
    ) -> Any:
        """Return what the class itself gives, and for lengths of a `Packing` no weights."""
        if not isinstance(cu_seqlens, Packing):
            return super().forward(hidden_states, attention_mask, cu_seqlens, **kwargs)
        x_RC = hidden_states.squeeze(0)
        rows = (self.q_proj(x_RC), self.k_proj(x_RC), self.v_proj(x_RC))
        dropout = self.attention_dropout if self.training else 0.0
        attended = attend(rows, self.num_attention_heads, cu_seqlens, scale=self.scaling, dropout=dropout)
        return self.o_proj(attended.unsqueeze(0)), None


class VectorizedRadioModel(VectorizedTower, RadioModel):
    """`RadioModel` without a look at its grids; images of one size, without grids, are the class's own."""

    @tower_call
    def forward(
        self,
        pixel_values: Tensor,
        image_grid_hw: Tensor | None = None,
        positions: Tensor | None = None,
        **kwargs: Any,
    ) -> RadioModelOutput:
        """Return the tower's outputs: the class tokens of images [B, S * C], patches [T, C], and all tokens [R, C].

        Args:
            pixel_values: [T, D] patches, row by row.
            image_grid_hw: [B, 2] height and width of each image.
            positions: [N] as of `VectorizedTower.packing`.
            kwargs: transformers' own; none changes what is computed.
        """
        if image_grid_hw is None:
            return cast(RadioModelOutput, super().forward(pixel_values, **kwargs))
        packing, embeddings, config = self.packing(pixel_values, image_grid_hw, positions), self.embeddings, self.config
        sides = (config.num_channels, config.patch_size, config.patch_size)
        x_TC = embeddings.patch_projection(self.input_conditioner(pixel_values.view(-1, *sides)).flatten(1))
        x_TC = add_position(x_TC, embeddings.position_embedding.squeeze(0), packing, BILINEAR, cropped=True)
        lead_PC, lead = embeddings.cls_register_token, config.num_summary_tokens
        whole = packing.led_by(lead)
        place_R = whole.coord_T12[:, 0, 0]
        first_R = packing.start_B.index_select(0, whole.image_T)
        # tokens ahead of patches are read at their own places, behind all patches
        source_R = torch.where(place_R < 0, place_R + lead + x_TC.shape[0], first_R + place_R)
        x_1RC = torch.cat([x_TC, lead_PC.to(x_TC.dtype)]).index_select(0, source_R).unsqueeze(0)
        for layer in self.encoder.layer:
            x_1RC = layer(x_1RC, cu_seqlens=whole)
        x_RC = x_1RC.squeeze(0)
        images, chosen = whole.num_images, len(self.summary_idxs)
        # expanded first, as in `Packing`
        summary_BS = whole.start_B.unsqueeze(1).expand(images, chosen) + self.summary_idxs
        token_T = torch.arange(x_TC.shape[0], device=first_R.device) + (packing.image_T + 1) * lead
        summary = x_RC.index_select(0, summary_BS.flatten()).view(images, chosen * x_RC.shape[1])
        return RadioModelOutput(summary=summary, features=x_RC.index_select(0, token_T), last_hidden_state=x_RC)


class Radio(TowerAdapter):
    """Of transformers' `RadioModel`, C-RADIO, given packs of images."""

    name = "transformers C-RADIO"
    tower_class = RadioModel
    twins: ClassVar = {RadioModel: VectorizedRadioModel, RadioAttention: VectorizedRadioAttention}
    children = frozenset({"input_conditioner", "embeddings", "encoder"})
    blocks = "encoder.layer"
    fields = ("summary", "features", "last_hidden_state")

    @classmethod
    def format_of(cls, model: Any) -> TowerFormat:
        values = model.config.num_channels * model.config.patch_size**2
        return TowerFormat("pixel_values", (values,), grids="image_grid_hw")

    @property
    def default_outputs(self) -> tuple[str, ...]:
        return ("features", "tokens")

    def named_outputs(self, given: Any) -> dict[str, Tensor]:
        """Return what a call gave by the package's names: `features` of an image, and `tokens` of its patches."""
        return {"features": given.summary, "tokens": given.features}

    @property
    def learned_grid(self) -> Axis:
        return math.isqrt(self.model.embeddings.position_embedding.shape[1]), BILINEAR

    def check_options(self) -> None:
        if "image_grid_hw" not in inspect.signature(RadioModel.forward).parameters:
            raise UnsupportedModelError(
                "the RadioModel of this release of transformers takes no packs: expected one with image_grid_hw, as "
                "5.23 has; or give timm's naflexvit of the same C-RADIO"
            )
        check_square(self.model.embeddings.position_embedding.shape[1])
