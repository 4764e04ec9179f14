"""timm's NaFlexVit on packed tokens: the model's own forward, blocks, pooling and head, on the rows of a pack.

The model is given a `Packing` where it expects coordinates, validity and a mask, and hands it on to its embedding, its
attention and its pooling, which are rewritten to know one. Everything between treats each token by itself.

Shape legend: as in `packing.py`.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from typing import Any, Self, cast

import torch
from timm.layers.attention import Attention
from timm.layers.pos_embed_sincos import apply_rot_embed_cat
from timm.models.eva import EvaAttention
from torch import Tensor, nn

from naflex_export.errors import UnsupportedModelError
from naflex_export.models.adapter import refuse_replaced
from naflex_export.models.copies import shared_copy
from naflex_export.models.output_names import check_outputs
from naflex_export.models.packing import Packing, attend
from naflex_export.models.timm_known import option_of
from naflex_export.models.timm_naflex import (
    GraphRewrites,
    TimmEncoder,
    TimmNaFlex,
    VectorizedNaFlexEmbeds,
    resampling_of,
)
from naflex_export.models.timm_rope import packed_rope
from naflex_export.resample.graph_form import resample_at, resample_axes_at
from naflex_export.serving.input_formats import InputFormat
from naflex_export.serving.packed_format import PACKED

try:
    from timm.layers.attention import AttentionRope
except ImportError:  # timm before 1.0.20 has none
    AttentionRope = EvaAttention

ATTENTIONS: tuple[type[nn.Module], ...] = (Attention, AttentionRope, EvaAttention)
"""The attention modules of timm that `PackedAttention` stands in for."""


class PackedNaFlexEmbeds(VectorizedNaFlexEmbeds):
    """`VectorizedNaFlexEmbeds` that embeds the patches of a pack too, [1, T, D]."""

    def forward(
        self, x: Tensor, patch_coord: Any = None, patch_valid: Any = None
    ) -> tuple[Tensor, tuple[int, int] | None]:
        """Return the embedded patches, of a pack [1, R, C], and None for the grid size, as timm does."""
        if not isinstance(patch_coord, Packing):
            return super().forward(x, patch_coord, patch_valid)
        packing = patch_coord
        x_TC = self._projected(x).view(x.shape[1], -1)
        if self.pos_embed_type in ("learned", "factorized"):
            pos_T1C = self.position_at(packing.coord_T12, packing.grid_T2)
            x_TC = x_TC + pos_T1C.squeeze(1).to(x_TC.dtype)
        return self.pos_drop(self._with_prefix(x_TC, packing).unsqueeze(0)), None

    def position_at(self, coord_T12: Tensor, grid_T2: Tensor) -> Tensor:
        """Return the embedding [T, 1, C] float32 at each coordinate, for images of these grids."""
        fill_padding, own_size, lengths_T2 = self.pos_embed_use_grid_sample, None, grid_T2
        if self.pos_embed_type == "learned":
            grid_HWC = cast(Tensor, self.pos_embed).squeeze(0)
            own_size = None if fill_padding else (grid_HWC.shape[0], grid_HWC.shape[1])
        if self.pos_embed_ar_preserving:
            lengths_T2 = self.square_lengths(grid_T2, own_size)
        if self.pos_embed_type == "learned":
            return resample_at(grid_HWC, coord_T12, resampling_of(self), lengths_T2, fill_padding=fill_padding)
        table_HC, table_WC = cast(Tensor, self.pos_embed_y).squeeze(0), cast(Tensor, self.pos_embed_x).squeeze(0)
        return resample_axes_at(
            table_HC, table_WC, coord_T12, resampling_of(self), lengths_T2, fill_padding=fill_padding
        )

    def _with_prefix(self, x_TC: Tensor, packing: Packing) -> Tensor:
        prefix = [
            token.expand(packing.num_images, -1, -1) for token in (self.cls_token, self.reg_token) if token is not None
        ]
        return torch.cat([torch.cat(prefix, dim=1).flatten(0, 1), x_TC]) if prefix else x_TC


class PackedAttention(nn.Module):
    """Put ahead of one of timm's attention classes: attention within each image of a pack."""

    def forward(self: Any, x: Tensor, rope: Any = None, attn_mask: Any = None, is_causal: bool = False) -> Tensor:
        """Return what the class itself gives, where the mask is a `Packing` for the rows of a pack [1, R, C]."""
        if not isinstance(attn_mask, Packing):
            given = {"attn_mask": attn_mask, "is_causal": is_causal, **({} if rope is None else {"rope": rope})}
            return cast(Tensor, super().forward(x, **given))
        packing = attn_mask
        gate = self.gate(x).sigmoid() if getattr(self, "gate", None) is not None else None
        query, key, value = self._projected(x.squeeze(0))
        kept = self.num_heads // key.shape[1]
        if rope is not None:
            query, key = (_rotated(self, part, rope, packing).type_as(value) for part in (query, key))
        if kept > 1:  # grouped queries
            key, value = key.repeat_interleave(kept, dim=1), value.repeat_interleave(kept, dim=1)
        dropout = self.attn_drop.p if self.training else 0.0
        rows = (query.flatten(1), key.flatten(1), value.flatten(1))
        x = self.norm(attend(rows, self.num_heads, packing, dropout=dropout).unsqueeze(0))
        return cast(Tensor, self.proj_drop(self.proj(x if gate is None else x * gate)))

    def _projected(self: Any, x_RC: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return queries, keys and values [R, heads, width], normalized where the module asks for it."""
        if self.qkv is None:
            parts = [projection(x_RC) for projection in (self.q_proj, self.k_proj, self.v_proj)]
        elif getattr(self, "q_bias", None) is None:
            parts = list(self.qkv(x_RC).chunk(3, dim=-1))
        else:
            bias = torch.cat((self.q_bias, self.k_bias, self.v_bias))
            if self.qkv_bias_separate:
                parts = list((self.qkv(x_RC) + bias).chunk(3, dim=-1))
            else:
                parts = list(nn.functional.linear(x_RC, self.qkv.weight, bias).chunk(3, dim=-1))
        query, key, value = (part.unflatten(-1, (-1, self.head_dim)) for part in parts)
        return self.q_norm(query), self.k_norm(key), value


def _rotated(attention: Any, part_RHD: Tensor, rope: Tensor, packing: Packing) -> Tensor:
    """Return queries or keys with those of patch tokens rotated; `rope` is [1, 1 or H, T, 2 * D]."""
    prefix = packing.num_prefix_rows
    half = getattr(attention, "rotate_half", False)
    turned = apply_rot_embed_cat(part_RHD[prefix:].transpose(0, 1).unsqueeze(0), rope, half=half)
    turned_THD = turned.squeeze(0).transpose(0, 1)
    return torch.cat([part_RHD[:prefix], turned_THD]) if packing.num_prefix_tokens else turned_THD


class PackedForward(GraphRewrites):
    """Put ahead of a vectorized NaFlexVit's class: its forward takes packs too, with all else as it was."""

    def forward(
        self: Any,
        x: Any,
        patch_coord: Any = None,
        patch_valid: Any = None,
        attn_mask: Any = None,
        *,
        grids: Any = None,
        offsets: Any = None,
        positions: Any = None,
    ) -> Tensor:
        """Return the features of a pack's images [B, F], or what the model gives for a padded batch.

        Args:
            x: the patches [T, D] of a pack, or all that `nx.pack` gives as one mapping; or of a padded batch.
            patch_coord: [T, 2] int64 (y, x), or a padded batch's.
            patch_valid: of a padded batch.
            attn_mask: of a padded batch.
            grids: [B, 2] int64 (height, width).
            offsets: [B + 1] int64.
            positions: [N] int64.

        Raises:
            InputError: on a CPU, it is no pack.
            UnsupportedModelError: the model is in training mode, and drops patches or whole paths.
        """
        if isinstance(x, Mapping) and "offsets" in x:
            x, patch_coord, grids, offsets, positions = PACKED.of_call(x, whole=self.embeds.strict)
        elif offsets is None:
            return cast(Tensor, super().forward(x, patch_coord, patch_valid, attn_mask))  # type: ignore[misc]
        else:
            given = zip(PACKED.names, (x, patch_coord, grids, offsets, positions), strict=True)
            x, patch_coord, grids, offsets, positions = PACKED.of_call(dict(given), whole=self.embeds.strict)
        self._refuse_drops()
        packing = Packing.of(patch_coord, grids, offsets, positions, self.num_prefix_tokens)
        made = super().forward(x.unsqueeze(0), packing, packing)  # type: ignore[misc]
        return cast(Tensor, made.squeeze(0) if made.ndim == 3 else made)

    def _forward_embeds(self: Any, x: Tensor, patch_coord: Any, patch_valid: Any, attn_mask: Any) -> Any:
        mask = patch_coord if isinstance(patch_coord, Packing) else attn_mask
        return super()._forward_embeds(x, patch_coord, patch_valid, mask)

    def _generate_rope_naflex(self: Any, x: Tensor, patch_coord: Any) -> Tensor | Iterator[Tensor]:
        if not isinstance(patch_coord, Packing):
            return cast(Any, super()._generate_rope_naflex(x, patch_coord))  # type: ignore[misc]
        return packed_rope(self.rope, patch_coord, x.dtype)

    def _pool(self: Any, x: Tensor, pool_type: str | None = None, patch_valid: Any = None) -> Tensor:
        if not isinstance(patch_valid, Packing):
            return super()._pool(x, pool_type, patch_valid)
        if self.attn_pool is None and not (self.global_pool if pool_type is None else pool_type):
            return x
        return super()._pool(patch_valid.padded(x.squeeze(0)), pool_type, patch_valid.valid_BN)

    def _refuse_drops(self: Any) -> None:
        if not self.training:
            return
        if self.patch_drop is not None:
            raise UnsupportedModelError(
                "the model drops patches in training (patch_drop_rate), which would take them from a pack's images at "
                "random: train it on padded batches, or with patch_drop_rate=0"
            )
        if self.rope is not None and option_of(self.rope, "aug_active"):
            raise UnsupportedModelError(
                "the model's RoPE moves coordinates at random in training, image by image: train it on padded batches, "
                "or without rope_shift_coords, rope_jitter_coords and rope_rescale_coords"
            )
        for name, module in self.named_modules():
            if type(module).__name__ == "DropPath" and module.drop_prob:
                raise UnsupportedModelError(
                    f"{name} drops whole paths in training, with {module.drop_prob:.2g}, and would drop that of a "
                    "whole pack at once: train the model on padded batches, or with drop_path_rate=0"
                )


@functools.cache
def _ahead_of(kind: type[nn.Module], ahead: type) -> type[nn.Module]:
    """Return a class of the same name with another put ahead of it."""
    return cast(type[nn.Module], type(kind.__name__, (ahead, kind), {}))


class PackedTimmEncoder(TimmEncoder):
    """A packed NaFlexVit whose forward takes the five tensors and returns a tuple of the outputs asked for."""

    def forward(  # type: ignore[override]
        self, patches: Tensor, patch_coord: Tensor, grids: Tensor, offsets: Tensor, positions: Tensor
    ) -> tuple[Tensor, ...]:
        """Return `features` [B, F] and `tokens` [B * P + T, C], as asked for: all prefix tokens come first."""
        packing = Packing.of(patch_coord, grids, offsets, positions, self.model.num_prefix_tokens)
        given = super().forward(patches.unsqueeze(0), cast(Any, packing), cast(Any, packing))
        return tuple(output.squeeze(0) if output.ndim == 3 else output for output in given)


class PackedTimm(TimmNaFlex):
    """Of timm's `NaFlexVit`, for packed inputs."""

    input_format: InputFormat = PACKED

    def vectorized(self) -> Self:
        twin = super().vectorized()
        if isinstance(twin.model, PackedForward):
            return twin
        _refuse_unpackable(twin.model)
        model = shared_copy(twin.model) if twin.model is self.model else twin.model
        model.embeds.__class__ = PackedNaFlexEmbeds
        for name, module in list(model.blocks.named_modules()):
            if type(module) in ATTENTIONS:
                refuse_replaced(module, ("forward",), f"blocks.{name}")
                module.__class__ = _ahead_of(cast(Any, type(module)), PackedAttention)
        model.__class__ = _ahead_of(cast(Any, type(model)), PackedForward)
        return twin.of(model)

    def encoder(self, outputs: tuple[str, ...]) -> nn.Module:
        check_outputs(outputs)
        return PackedTimmEncoder(self.model, outputs)


def _refuse_unpackable(model: Any) -> None:
    """Check that attention in every block is of a kind that `PackedAttention` stands in for.

    Raises:
        UnsupportedModelError: it is not; the message names it.
    """
    if not model.embeds.is_linear:
        raise UnsupportedModelError(
            "embed_proj_type='conv' takes whole images, not patches, in timm too: a pack needs embed_proj_type='linear'"
        )
    for index, block in enumerate(model.blocks):
        attention = getattr(block, "attn", None)
        if type(attention) not in ATTENTIONS:
            known = ", ".join(dict.fromkeys(kind.__name__ for kind in ATTENTIONS))
            found = type(block if attention is None else attention).__qualname__
            raise UnsupportedModelError(
                f"blocks.{index} attends by a {found}, which cannot be packed: expected timm's own {known}; export "
                "padded inputs, without packed=True"
            )
