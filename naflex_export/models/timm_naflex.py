"""timm's NaFlexVit: its position embedding without the per-image loop.

Only `NaFlexEmbeds` changes, and in it only the method that resizes a learned grid for each image. Everything else,
the patch projection, prefix tokens, blocks, pooling and head, is timm's own code.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, cast

import torch
from PIL.Image import Image
from timm.data.config import resolve_data_config
from timm.data.transforms_factory import create_transform
from timm.models import NaFlexVit
from timm.models.naflexvit import NaFlexEmbeds
from torch import Tensor, nn

from naflex_export.errors import UnsupportedModelError
from naflex_export.layouts import TIMM
from naflex_export.models.family import Family, check_outputs
from naflex_export.resample import Mode, Resampling, resample_at


class VectorizedNaFlexEmbeds(NaFlexEmbeds):
    """`NaFlexEmbeds` that resizes its learned grid for all images of a batch at once.

    Replaces `NaFlexEmbeds._apply_learned_naflex_pos_embed` of timm 1.0.31, with the same result to float32 rounding,
    for padding tokens too.
    """

    def _apply_learned_naflex_pos_embed(self, x: Tensor, patch_coord: Tensor) -> None:
        """Add to `x` [B, N, C], in place, the position embedding of each token of `patch_coord` [B, N, 2]."""
        grid_HWC = cast(Tensor, self.pos_embed)[0]
        lengths_B2 = self._square_lengths(patch_coord) if self.pos_embed_ar_preserving else None
        x.add_(resample_at(grid_HWC, patch_coord, resampling_of(self), lengths_B2).to(x.dtype))

    def _square_lengths(self, patch_coord: Tensor) -> Tensor:
        """Return the [B, 2] lengths that keep the grid's aspect ratio: each image's longer side, twice."""
        height, width = cast(Tensor, self.pos_embed).shape[1:3]
        grid_B2 = patch_coord.amax(dim=1) + 1
        square_B2 = grid_B2.amax(dim=1, keepdim=True).expand_as(grid_B2)
        if height == width:
            return square_B2
        # timm takes the source grid as it is for an image of just its size, aspect-preserving or not.
        source_2 = torch.tensor([height, width], device=grid_B2.device)
        return torch.where((grid_B2 == source_2).all(dim=1, keepdim=True), grid_B2, square_B2)


def resampling_of(embeds: NaFlexEmbeds) -> Resampling:
    """Return the resize that an embedding module asks `F.interpolate` for."""
    return Resampling(
        mode=cast(Mode, embeds.pos_embed_interp_mode),
        antialias=getattr(embeds, "pos_embed_antialias", True),
        align_corners=getattr(embeds, "pos_embed_align_corners", False),
    )


class TimmEncoder(nn.Module):
    """A NaFlexVit whose forward takes the three tensors and returns a tuple of the outputs asked for."""

    def __init__(self, model: NaFlexVit, outputs: tuple[str, ...]) -> None:
        super().__init__()
        self.model = model
        self.outputs = outputs

    def forward(self, patches: Tensor, patch_coord: Tensor, patch_valid: Tensor) -> tuple[Tensor, ...]:
        """Return `features` [B, F] (pooled, through the head) and `tokens` [B, prefix + N, C], as asked for."""
        encoded = self.model.forward_features(patches, patch_coord=patch_coord, patch_valid=patch_valid)
        made = {"tokens": encoded["patches"]}
        if "features" in self.outputs:
            made["features"] = self.model.forward_head(**encoded)
        return tuple(made[name] for name in self.outputs)


class TimmNaFlex(Family):
    """The family of timm's `NaFlexVit`."""

    name = "timm NaFlexVit"
    package = "timm"
    layout = TIMM

    def owns(self, model: Any) -> bool:
        return isinstance(model, NaFlexVit)

    def is_vectorized(self, model: Any) -> bool:
        return isinstance(model.embeds, VectorizedNaFlexEmbeds)

    def vectorize(self, model: Any) -> nn.Module:
        if self.is_vectorized(model):
            return model
        embeds = model.embeds
        _refuse_unknown(model)
        shared = {id(tensor): tensor for tensor in [*model.parameters(), *model.buffers()]}
        twin = copy.deepcopy(model, shared)
        if embeds.pos_embed_type == "learned":
            twin.embeds.__class__ = VectorizedNaFlexEmbeds
        return twin

    def encoder(self, model: Any, outputs: tuple[str, ...]) -> nn.Module:
        check_outputs(outputs)
        return TimmEncoder(model, outputs)

    def token_width(self, model: Any) -> int:
        embeds = model.embeds
        return embeds.patch_size[0] * embeds.patch_size[1] * embeds.in_chans

    def num_prefix_tokens(self, model: Any) -> int:
        return model.num_prefix_tokens

    def num_classes(self, model: Any) -> int:
        return model.num_classes

    def preprocessing(self, model: Any) -> dict[str, Any]:
        data = resolve_data_config(model=model)
        embeds = model.embeds
        return {
            "library": "timm.data.create_transform",
            "mean": list(data["mean"]),
            "std": list(data["std"]),
            "interpolation": data["interpolation"],
            "patch_size": list(embeds.patch_size),
            "channels_last": getattr(embeds, "channels_last", True),
        }

    def transform(self, model: Any, tokens: int) -> Callable[[Image], dict[str, Tensor]]:
        settings = self.preprocessing(model)
        return create_transform(
            is_training=False,
            naflex=True,
            patchify=True,
            max_seq_len=tokens,
            patch_size=tuple(settings["patch_size"]),
            mean=settings["mean"],
            std=settings["std"],
            interpolation=settings["interpolation"],
            patchify_channels_last=settings["channels_last"],
        )

    def describe(self, model: Any) -> dict[str, Any]:
        naflex: NaFlexVit = model
        embeds = naflex.embeds
        return {
            "architecture": (naflex.pretrained_cfg or {}).get("architecture", ""),
            "width": naflex.embed_dim,
            "depth": len(naflex.blocks),
            "num_classes": naflex.num_classes,
            "global_pool": naflex.global_pool,
            "num_prefix_tokens": naflex.num_prefix_tokens,
            "pos_embed": embeds.pos_embed_type,
            "pos_embed_grid": list(embeds.pos_embed_grid_size or ()),
            "pos_embed_mode": embeds.pos_embed_interp_mode,
            "pos_embed_ar_preserving": embeds.pos_embed_ar_preserving,
        }


def _refuse_unknown(model: NaFlexVit) -> None:
    """Raise for what would come out wrong, or not compile, in a vectorized model."""
    embeds = model.embeds
    if type(embeds) is not NaFlexEmbeds:
        raise UnsupportedModelError(
            f"the model's embeds are a {type(embeds).__qualname__}, not timm's NaFlexEmbeds: "
            "a subclass may resize its grid in a way we cannot know"
        )
    if embeds.pos_embed_type == "learned" and getattr(embeds, "pos_embed_use_grid_sample", False):
        raise UnsupportedModelError("pos_embed_use_grid_sample=True is not supported by this release")
    if embeds.pos_embed_type not in ("learned", "none"):
        raise UnsupportedModelError(f"pos_embed={embeds.pos_embed_type!r} is not supported by this release")
    if model.rope is not None:
        raise UnsupportedModelError(
            f"{type(model.rope).__name__} is not supported by this release: expected a model without RoPE"
        )
    if not embeds.is_linear:
        raise UnsupportedModelError(
            "embed_proj_type='conv' takes whole images, not patches: NaFlex mode needs a linear projection"
        )
