"""transformers' SigLIP 2 on packed tokens: its own layers on the rows of a pack, with attention within each image.

The tower's forward hands a `Packing` to its embedding and, as an argument that its encoder passes on, to its attention;
the pooling head is given a padded batch of the encoded tokens. All three are otherwise transformers' own.

Shape legend: as in `packing.py`; there are no prefix tokens.
"""

from __future__ import annotations

from typing import Any, Self, cast

from torch import Tensor, nn
from transformers import Siglip2VisionModel
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.models.siglip2.modeling_siglip2 import Siglip2Attention

from naflex_export.errors import UnsupportedModelError
from naflex_export.models.adapter import refuse_replaced
from naflex_export.models.copies import shared_copy
from naflex_export.models.output_names import check_outputs
from naflex_export.models.packing import Packing, attend
from naflex_export.models.siglip2 import BILINEAR, Siglip2, VectorizedSiglip2VisionEmbeddings
from naflex_export.models.tower_call import wants_tuple
from naflex_export.resample.graph_form import resample_at
from naflex_export.serving.input_formats import InputFormat
from naflex_export.serving.packed_format import PACKED


class PackedSiglip2Embeddings(VectorizedSiglip2VisionEmbeddings):
    """`VectorizedSiglip2VisionEmbeddings` that embeds the patches of a pack too, [1, T, D]."""

    def forward(self, pixel_values: Tensor, spatial_shapes: Any) -> Tensor:
        """Return the embedded patches, of a pack [1, T, C]."""
        if not isinstance(spatial_shapes, Packing):
            return super().forward(pixel_values, spatial_shapes)
        x_1TC = self.patch_embedding(pixel_values.to(dtype=self.patch_embedding.weight.dtype))
        side = self.position_embedding_size
        grid_HWC = self.position_embedding.weight.view(side, side, -1)
        pos_T1C = resample_at(grid_HWC, spatial_shapes.coord_T12, BILINEAR, spatial_shapes.grid_T2)
        return cast(Tensor, x_1TC + pos_T1C.transpose(0, 1).to(x_1TC.dtype))


class PackedSiglip2Attention(Siglip2Attention):
    """`Siglip2Attention` within each image of a pack."""

    def forward(
        self, hidden_states: Tensor, attention_mask: Any = None, packing: Packing | None = None, **kwargs: Any
    ) -> tuple[Tensor, Tensor | None]:
        """Return what the class itself gives, and for the rows of a pack [1, T, C] no weights."""
        if packing is None:
            return cast(Any, super().forward(hidden_states, attention_mask, **kwargs))
        x_TC = hidden_states.squeeze(0)
        dropout = self.dropout if self.training else 0.0
        rows = (self.q_proj(x_TC), self.k_proj(x_TC), self.v_proj(x_TC))
        given = attend(rows, self.num_heads, packing, scale=self.scale, dropout=dropout)
        return self.out_proj(given.unsqueeze(0)), None


class PackedSiglip2VisionModel(Siglip2VisionModel):
    """`Siglip2VisionModel` whose forward takes packs too, by their names."""

    def forward(
        self,
        pixel_values: Any = None,
        pixel_attention_mask: Any = None,
        spatial_shapes: Any = None,
        *,
        patches: Any = None,
        patch_coord: Any = None,
        grids: Any = None,
        offsets: Any = None,
        positions: Any = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPooling:
        """Return the tower's outputs: of a pack, encoded tokens [1, T, C] and pooled features [B, C].

        Args:
            pixel_values: of a padded batch, as are the next two; or the patches of a pack.
            pixel_attention_mask: of a padded batch.
            spatial_shapes: of a padded batch.
            patches: [T, D] of a pack, as are the others by name, which `nx.pack` gives.
            patch_coord: [T, 2] int64.
            grids: [B, 2] int64.
            offsets: [B + 1] int64.
            positions: [N] int64.
            kwargs: transformers' own; of a pack, `return_dict` is heeded, and nothing else changes what is computed.

        Raises:
            InputError: on a CPU, it is no pack.
        """
        if offsets is None:
            return cast(Any, super().forward(pixel_values, pixel_attention_mask, spatial_shapes, **kwargs))
        is_tuple = wants_tuple(self, kwargs)
        named = zip(PACKED.names, (patches, patch_coord, grids, offsets, positions), strict=True)
        first = {"patches": pixel_values if patches is None else patches}
        given, patch_coord, grids, offsets, positions = PACKED.of_call({**dict(named), **first}, whole=False)
        packing = Packing.of(patch_coord, grids, offsets, positions)
        encoded = self.encoder(inputs_embeds=self.embeddings(given.unsqueeze(0), packing), packing=packing)
        x_1TC = self.post_layernorm(encoded.last_hidden_state)
        pooled = None
        if self.use_head:
            pooled = self.head(packing.padded(x_1TC.squeeze(0)), packing.valid_BN.int())
        made = BaseModelOutputWithPooling(last_hidden_state=x_1TC, pooler_output=pooled)
        return cast(Any, made.to_tuple()) if is_tuple else made


class PackedSiglip2Encoder(nn.Module):
    """A packed vision tower whose forward returns a tuple of the outputs asked for."""

    def __init__(self, tower: PackedSiglip2VisionModel, outputs: tuple[str, ...]) -> None:
        super().__init__()
        self.model = tower
        self.outputs = outputs

    def forward(
        self, patches: Tensor, patch_coord: Tensor, grids: Tensor, offsets: Tensor, positions: Tensor
    ) -> tuple[Tensor, ...]:
        """Return `features` [B, C] and `tokens` [T, C], as asked for."""
        named = {"patch_coord": patch_coord, "grids": grids, "offsets": offsets, "positions": positions}
        given = self.model(patches, **named, return_dict=True)
        made = {"features": given.pooler_output, "tokens": given.last_hidden_state.squeeze(0)}
        return tuple(made[name] for name in self.outputs)


class PackedSiglip2(Siglip2):
    """Of transformers' SigLIP 2 vision tower, for packed inputs."""

    input_format: InputFormat = PACKED

    def vectorized(self) -> Self:
        if self._is_classifier:
            raise UnsupportedModelError(
                "a Siglip2ForImageClassification pools padded tokens by itself, and cannot be packed: give its tower, "
                "model.vision_model, or export padded inputs, without packed=True"
            )
        twin = super().vectorized()
        if isinstance(twin._vision, PackedSiglip2VisionModel):
            return twin
        if type(twin._vision) is not Siglip2VisionModel:
            raise UnsupportedModelError(
                f"{type(twin._vision).__qualname__} is a subclass of Siglip2VisionModel, whose forward may do more "
                "than a pack is put through: expected Siglip2VisionModel itself; or export padded inputs"
            )
        model = twin if twin.model is not self.model else self.of(shared_copy(twin.model))
        tower = model._vision
        refuse_replaced(tower, ("forward",), "the tower")
        tower.__class__ = PackedSiglip2VisionModel
        tower.embeddings.__class__ = PackedSiglip2Embeddings
        for name, module in tower.encoder.named_modules():
            if isinstance(module, Siglip2Attention):
                if type(module) is not Siglip2Attention:
                    raise UnsupportedModelError(
                        f"encoder.{name} is a {type(module).__qualname__}, which cannot be packed: expected "
                        "transformers' own Siglip2Attention"
                    )
                refuse_replaced(module, ("forward",), f"encoder.{name}")
                module.__class__ = PackedSiglip2Attention
        return model

    def encoder(self, outputs: tuple[str, ...]) -> nn.Module:
        check_outputs(outputs)
        super().encoder(outputs)  # which refuses what the tower has not
        return PackedSiglip2Encoder(self._vision, outputs)
