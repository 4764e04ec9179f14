"""timm's NaFlexVit with patches of another size than its own: the interpolator, and its kernel folded for export."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, cast

import torch
from timm.layers.helpers import to_2tuple
from timm.layers.patch_embed import PatchEmbedInterpolator
from timm.models import NaFlexVit
from torch import Tensor, nn

from naflex_export.errors import UnsupportedModelError
from naflex_export.grid import check_patch_sizes
from naflex_export.models.copies import shared_copy
from naflex_export.models.timm_known import option_of
from naflex_export.resample.patch_kernel import axis_pinv, resample_kernel, resample_weight
from naflex_export.resample.weights import Mode, Resampling


class VectorizedPatchInterpolator(PatchEmbedInterpolator):
    """`PatchEmbedInterpolator` that resamples its weight by two small matmuls, with matrices made in float64.

    Replaces two methods of timm 1.0.31, with the same result. Under autocast it stays in float32, where timm's rounds.
    A compiled model has one graph for all sizes but its own.
    """

    def resample_linear_weight(self, weight: Tensor, target_patch_size: tuple[int, int]) -> Tensor:
        base, resampling, last = self.base_patch_size, interpolation_of(self), option_of(self, "channels_last")
        return resample_weight(weight, base, target_patch_size, resampling, channels_last=last)

    def resample_conv_weight(self, weight: Tensor, target_patch_size: tuple[int, int]) -> Tensor:
        return resample_kernel(weight, target_patch_size, interpolation_of(self))

    def prewarm(
        self, target_patch_sizes: Iterable[int | tuple[int, int]], device: torch.device | str | None = None
    ) -> None:
        """Make the matrices of these sizes now, on the device, by default the module's own."""
        # a tensor on it, for "cuda" alone does not say which
        at = self.resampler._cache_device_anchor.device if device is None else torch.empty(0, device=device).device
        resampling = interpolation_of(self)
        for size in target_patch_sizes:
            for source, length in zip(self.base_patch_size, to_2tuple(size), strict=True):
                axis_pinv(source, length, resampling, at)


def interpolation_of(interpolator: PatchEmbedInterpolator) -> Resampling:
    """Return the resize whose pseudo-inverse an interpolator applies."""
    return Resampling(cast(Mode, interpolator.interpolation), interpolator.antialias)


def check_interpolates(model: NaFlexVit, patch_size: int) -> None:
    """Check that a model takes patches of other sizes than its own, so that eager can be the judge of them.

    Raises:
        RequestError: the size is below 1.
        UnsupportedModelError: the model does not; the message says how to make one that does.
    """
    check_patch_sizes([patch_size])
    embeds = model.embeds
    supports = embeds.is_linear and embeds.norm_input is None and embeds.patch_interpolator is not None
    if getattr(embeds, "supports_patch_interpolation", supports):
        return
    if model.embeds.patch_interpolator is None:
        why, remedy = (
            "it has no patch interpolator",
            "make it with timm.create_model(..., enable_patch_interpolator=True)",
        )
    else:
        why = "with patch_coord timm resamples a linear projection only, without a norm ahead of it"
        remedy = "expected embed_proj_type='linear' and embeds.norm_input=None"
    raise UnsupportedModelError(f"patch size {patch_size} is not one this model takes: {why}; {remedy}")


def folded(model: NaFlexVit, patch_size: int) -> NaFlexVit:
    """Return the model for flat patches of another size: its weight resampled in float32, all else shared."""
    twin = shared_copy(model)
    embeds, size = twin.embeds, (patch_size, patch_size)
    resampling = interpolation_of(embeds.patch_interpolator)
    with torch.no_grad():
        last = option_of(embeds, "channels_last")
        weight = resample_weight(embeds.proj.weight, embeds.patch_size, size, resampling, channels_last=last)
    projection = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    projection.weight = nn.Parameter(weight)
    projection.bias = embeds.proj.bias
    embeds.proj, embeds.patch_size = projection, size
    embeds.patch_interpolator, embeds.enable_patch_interpolator = None, False
    embeds.supports_patch_interpolation = twin.supports_patch_interpolation = False
    return twin


class Unflattened(nn.Module):
    """An eager encoder that gets flat patches as the 5-D ones by which timm knows their size."""

    def __init__(self, encoder: nn.Module, patch_size: int, channels_last: bool) -> None:
        super().__init__()
        self.encoder = encoder
        self.shape = (patch_size, patch_size, -1) if channels_last else (-1, patch_size, patch_size)

    def forward(self, patches: Tensor, *rest: Tensor) -> Any:
        """Return what the encoder returns for patches [B, N, P*P*C] seen as [B, N, P, P, C] (or [B, N, C, P, P])."""
        return self.encoder(patches.reshape(*patches.shape[:2], *self.shape), *rest)
