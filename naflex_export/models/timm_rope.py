"""timm's rotary position embeddings (RoPE) without the per-image loop.

An angle is a position times a frequency, and a position depends only on a token's (y, x), its image's grid and the
module's options. So all tokens of a batch are a few elementwise operations, in the order of timm's own so that they
round alike. Frequencies, options and parameters stay those of timm's module.

Shape legend: B images, N tokens, A = 2 axes in the module's channel order, F frequencies, D width of a head.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from timm.layers.pos_embed_sincos import RotaryEmbeddingMixed
from timm.models import NaFlexVit
from torch import Tensor

from naflex_export.models.packing import Packing
from naflex_export.models.timm_known import is_rope, option_of
from naflex_export.resample.coordinates import grids_of, inside, whole_numbers


class VectorizedNaFlexVit(NaFlexVit):
    """`NaFlexVit` that makes the RoPE embeddings of all images of a batch at once.

    Replaces `NaFlexVit._generate_rope_naflex` of timm 1.0.31, with the same result to float32 rounding, for padding
    tokens too.

    With coordinate augmentation in training, images of the same grid share a transform and others draw their own, as
    timm has it. timm draws once for each distinct grid; how many there are cannot be known without a host sync, so here
    there is a draw for each image and the first ones are used, in timm's order. On a CPU and outside `torch.compile`
    the same seed gives timm's own transforms, but leaves the generator further on. On a GPU, the draws come from
    the GPU's generator, as do timm's except for DINOv3, which draws on the host; only the distribution is timm's.
    """

    def _generate_rope_naflex(self, x: Tensor, patch_coord: Tensor) -> Tensor | Iterator[Tensor]:
        """Return embeddings [B, 1, N, 2 * D] in the dtype of `x`, or for mixed RoPE [B, heads, N, 2 * D] a block."""
        patch_coord = whole_numbers(patch_coord)
        positions_BNA = rope_positions(self.rope, patch_coord)
        kept_BN1 = inside(patch_coord)
        if self.rope_is_mixed:
            return _mixed_embeds(self.rope, positions_BNA, kept_BN1, x.dtype)
        return (_axial_embeds(self.rope, positions_BNA) * kept_BN1).to(x.dtype).unsqueeze(1)


def packed_rope(rope: Any, packing: Packing, dtype: torch.dtype) -> Tensor | Iterator[Tensor]:
    """Return embeddings [1, 1, T, 2 * D] of the tokens of a pack, or for mixed RoPE [1, heads, T, 2 * D] a block.

    Args:
        rope: one of timm's modules that `timm_known.ROPES` names.
        packing: of the tokens.
        dtype: of the embeddings.
    """
    positions_T1A = rope_positions(rope, packing.coord_T12, packing.grid_T2)
    if is_rope(rope, "RotaryEmbeddingMixed"):
        kept_T11 = torch.ones_like(positions_T1A[..., :1], dtype=torch.bool)
        return (embed_TH1.permute(2, 1, 0, 3) for embed_TH1 in _mixed_embeds(rope, positions_T1A, kept_T11, dtype))
    return _axial_embeds(rope, positions_T1A).to(dtype).permute(1, 0, 2).unsqueeze(0)


def rope_positions(rope: Any, coord_BN2: Tensor, grid_B2: Tensor | None = None) -> Tensor:
    """Return the position of each token along each axis, augmented if the module is in training and asks for it.

    Follows `_build_grid` and `_apply_coord_augs` of timm.layers.pos_embed_sincos.

    Args:
        rope: one of timm's modules that `timm_known.ROPES` names.
        coord_BN2: [B, N, 2] integer (y, x) of each token; padding holds zeros.
        grid_B2: [B, 2] the images' grids; by default the largest coordinate plus one.

    Returns:
        [B, N, 2] float32, (y, x) or, with `grid_indexing="xy"`, (x, y); padding holds the first token's.
    """
    grid_B12 = (grids_of(coord_BN2) if grid_B2 is None else grid_B2).unsqueeze(1).float()
    position_BN2 = coord_BN2.float()
    kind = _grid_type(rope)
    if kind == "pixel":  # linspace(-1, 1); a single patch is at -1
        position_BN2 = 2 * position_BN2 / (grid_B12 - 1).clamp(min=1) - 1
    elif kind == "centered":
        position_BN2 = (position_BN2 + 0.5 + rope.grid_offset) / _normalizer(grid_B12, rope.normalize_coords)
    else:
        position_BN2 = position_BN2 + getattr(rope, "grid_offset", 0.0)

    reference = getattr(rope, "ref_feat_shape", None)
    if reference is not None:
        position_BN2 = position_BN2 / grid_B12 * torch.tensor(reference, device=coord_BN2.device)
    if kind == "centered":
        position_BN2 = 2.0 * position_BN2 - 1.0
    if rope.grid_indexing == "xy":
        position_BN2 = position_BN2.flip(-1)
    if rope.training and option_of(rope, "aug_active"):
        position_BN2 = _augmented(rope, position_BN2, grids_of(coord_BN2))
    return position_BN2


def _grid_type(rope: Any) -> str:
    """Return "index" (patches), "pixel" (-1 to 1, edges included) or "centered" (-1 to 1, centres of patches)."""
    return "centered" if is_rope(rope, "RotaryEmbeddingDinoV3") else getattr(rope, "grid_type", "index")


def _normalizer(grid_B12: Tensor, normalize_coords: str) -> Tensor:
    """Return what centred positions are divided by: both axes by the longer or shorter side, or each by its own."""
    if normalize_coords == "max":
        return grid_B12.amax(dim=-1, keepdim=True)
    if normalize_coords == "min":
        return grid_B12.amin(dim=-1, keepdim=True)
    return grid_B12


def _augmented(rope: Any, position_BNA: Tensor, grid_B2: Tensor) -> Tensor:
    """Return positions shifted, scaled by axis and scaled as a whole, at random, one transform for each distinct grid.

    The columns of `draw` lie in the order in which timm draws for a grid: shift, jitter, rescale.
    """
    axes = position_BNA.shape[-1]
    columns = [
        axes if rope.shift_coords is not None else 0,
        axes if rope.jitter_coords is not None else 0,
        1 if rope.rescale_coords is not None else 0,
    ]
    draw_BK = torch.rand(len(grid_B2), sum(columns), device=position_BNA.device)
    draw_B1K = (2 * draw_BK - 1)[_draw_of(grid_B2)].unsqueeze(1)
    shift_B1A, jitter_B1A, rescale_B11 = torch.split(draw_B1K, columns, dim=-1)
    if rope.shift_coords is not None:
        position_BNA = position_BNA + shift_B1A * rope.shift_coords
    if rope.jitter_coords is not None:
        position_BNA = position_BNA * (jitter_B1A * math.log(rope.jitter_coords)).exp()
    if rope.rescale_coords is not None:
        position_BNA = position_BNA * (rescale_B11 * math.log(rope.rescale_coords)).exp()
    return position_BNA


def _draw_of(grid_B2: Tensor) -> Tensor:
    """Return [B] which draw each image uses: distinct grids are numbered as they first appear."""
    same_BB = (grid_B2.unsqueeze(0) == grid_B2.unsqueeze(1)).all(dim=-1)
    first_B = same_BB.int().argmax(dim=1)
    appears_B = first_B == torch.arange(len(grid_B2), device=grid_B2.device)
    return (appears_B.cumsum(0) - 1)[first_B]


def _axial_embeds(rope: Any, position_BNA: Tensor) -> Tensor:
    """Return sines and cosines [B, N, 2 * D] of a module whose blocks and heads share their frequencies."""
    if is_rope(rope, "RotaryEmbeddingMRope"):
        # channels of the temporal axis stand at 0, which rotates by nothing
        still_BN1 = torch.zeros_like(position_BNA[..., :1])
        angle_BNF = torch.cat([still_BN1, position_BNA], dim=-1)[..., rope.axis] * rope.inv_freq
        return _layout(angle_BNF, rotate_half=True)
    if is_rope(rope, "RotaryEmbeddingDinoV3"):
        position_BNA1 = position_BNA.unsqueeze(-1).to(rope.periods.dtype)
        angle_BNF = (2 * math.pi * position_BNA1 / rope.periods).flatten(-2)
    else:
        angle_BNF = (position_BNA.unsqueeze(-1) * rope.bands).flatten(-2)
    return _layout(angle_BNF, option_of(rope, "rotate_half"))


def _mixed_embeds(
    rope: RotaryEmbeddingMixed, position_BNA: Tensor, kept_BN1: Tensor, dtype: torch.dtype
) -> Iterator[Tensor]:
    """Yield for each block sines and cosines [B, heads, N, 2 * D], one at a time: all together are large."""
    first_B1N1, second_B1N1 = position_BNA[:, None, :, :1], position_BNA[:, None, :, 1:]
    for freqs_AHF in rope.freqs.float().unbind(1):
        first_H1F, second_H1F = freqs_AHF.unsqueeze(-2).unbind(0)
        angle_BHNF = first_B1N1 * first_H1F + second_B1N1 * second_H1F
        yield (_layout(angle_BHNF, rotate_half=False) * kept_BN1.unsqueeze(1)).to(dtype)


def _layout(angle: Tensor, rotate_half: bool) -> Tensor:
    """Return sines, then cosines, each frequency twice: neighbours, or with `rotate_half` half a head apart."""
    values = torch.stack([angle.sin(), angle.cos()], dim=-2)
    doubled = torch.cat([values, values], dim=-1) if rotate_half else values.repeat_interleave(2, dim=-1)
    return doubled.flatten(-2)
