"""timm's NaFlexVit on packed tokens, to be timed: no padding anywhere, attention by `varlen_attn`.

For models with a learned position embedding and blocks of plain attention, as SigLIP 2's. Only a GPU has `varlen_attn`;
on a CPU each image is attended by itself, which shows that the arithmetic is right and nothing of the speed.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from naflex_export.models.timm_naflex import resampling_of
from naflex_export.resample.coordinates import grids_of
from naflex_export.resample.graph_form import resample_at


class Packed(NamedTuple):
    """A batch without padding.

    Attributes:
        patches: [T, D] all images' patches.
        coord: [T, 1, 2] their (y, x).
        grid: [T, 2] the grid of the image that each is of.
        starts: [B + 1] int32, where each image's tokens start, and where the last one's end.
        place: [T] where each token lies in the padded batch [B * N].
        valid: [B, N] bool, as it was.
    """

    patches: Tensor
    coord: Tensor
    grid: Tensor
    starts: Tensor
    place: Tensor
    valid: Tensor


def pack(patches: Tensor, patch_coord: Tensor, patch_valid: Tensor) -> Packed:
    """Return a padded batch packed, as a loader would make it."""
    (place,) = patch_valid.flatten().nonzero(as_tuple=True)
    grid = grids_of(patch_coord).unsqueeze(1).expand_as(patch_coord).flatten(0, 1)[place]
    ends = patch_valid.sum(dim=1).cumsum(dim=0)
    starts = F.pad(ends, (1, 0)).to(torch.int32)
    coord = patch_coord.flatten(0, 1)[place].unsqueeze(1)
    return Packed(patches.flatten(0, 1)[place], coord, grid, starts, place, patch_valid)


class PackedEncoder(nn.Module):
    """The features of a NaFlexVit, from a packed batch; shares the model's parameters."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, *batch: Tensor) -> Tensor:
        """Return the features [B, F] of the tensors of a `Packed`."""
        packed, model = Packed(*batch), self.model
        embeds = model.embeds
        grid_HWC = embeds.pos_embed.squeeze(0)
        pos_T1C = resample_at(grid_HWC, packed.coord, resampling_of(embeds), packed.grid)
        x_TC = embeds.norm(embeds.proj(packed.patches)) + pos_T1C.squeeze(1).to(packed.patches.dtype)
        x_TC = model.norm_pre(x_TC)
        longest = packed.valid.shape[1]
        for block in model.blocks:
            x_TC = x_TC + block.ls1(_attend(block.attn, block.norm1(x_TC), packed.starts, longest))
            x_TC = x_TC + block.ls2(block.mlp(block.norm2(x_TC)))
        padded = x_TC.new_zeros(packed.valid.numel(), x_TC.shape[-1]).index_copy(0, packed.place, model.norm(x_TC))
        return model.forward_head(padded.view(*packed.valid.shape, -1), patch_valid=packed.valid)


def _attend(attention: Any, x_TC: Tensor, starts: Tensor, longest: int) -> Tensor:
    query, key, value = attention.qkv(x_TC).view(len(x_TC), 3, attention.num_heads, attention.head_dim).unbind(1)
    query, key = attention.q_norm(query), attention.k_norm(key)
    if x_TC.device.type == "cuda":
        from torch.nn.attention.varlen import varlen_attn

        given = varlen_attn(query, key, value, starts, starts, longest, longest, scale=attention.scale)
    else:
        given = torch.cat(
            [
                F.scaled_dot_product_attention(*(part[first:last].transpose(0, 1) for part in (query, key, value)))
                for first, last in zip(starts.tolist(), starts[1:].tolist(), strict=False)
            ],
            dim=1,
        ).transpose(0, 1)
    return attention.proj(given.flatten(1))
