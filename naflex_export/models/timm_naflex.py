"""timm's NaFlexVit: its position embeddings without the per-image loop.

In `NaFlexEmbeds` only the forward of patches changes; in a model with RoPE, also the method that makes its angles, in
`timm_rope.py`. Everything else, the layers themselves, whole images, blocks, pooling and head, is timm's own code.
"""

from __future__ import annotations

import contextlib
import functools
import warnings
from collections.abc import Callable, Iterator
from typing import Any, Self, cast

import torch
from PIL.Image import Image
from timm.data.transforms_factory import create_transform
from timm.layers.patch_embed import PatchEmbedInterpolator
from timm.models import NaFlexVit
from timm.models.naflexvit import NaFlexEmbeds, create_attention_mask
from torch import Tensor, nn

from naflex_export.embed.preprocessing import Preprocessing
from naflex_export.errors import RequestError, UnsupportedModelError
from naflex_export.models.adapter import ModelAdapter, one_tensor, refuse_replaced
from naflex_export.models.copies import shared_copy
from naflex_export.models.original import Original, is_watched
from naflex_export.models.output_names import check_outputs
from naflex_export.models.timm_known import option_of, refuse_unknown
from naflex_export.models.timm_patch_size import (
    Unflattened,
    VectorizedPatchInterpolator,
    check_interpolates,
    folded,
)
from naflex_export.models.timm_photos import PhotoSettings, photo_settings, pretrained_cfg_of
from naflex_export.models.timm_rope import VectorizedNaFlexVit
from naflex_export.resample.add import add_resampled
from naflex_export.resample.coordinates import grids_of, whole_numbers
from naflex_export.resample.graph_form import resample_axes_at
from naflex_export.resample.stored import Axis
from naflex_export.resample.weights import Mode, Resampling, reads_few_cells
from naflex_export.serving.input_formats import TIMM, InputFormat

STEM = ("embeds", "rope", "norm_pre")
"""The parts of a NaFlexVit ahead of its first block."""


class VectorizedNaFlexEmbeds(NaFlexEmbeds):
    """`NaFlexEmbeds` that resizes its learned embedding for all images of a batch at once.

    Replaces the forward of timm 1.0.31 for patches [B, N, P*P*C] or, of any patch size, 5-D, with the same result to
    float32 rounding, for padding tokens too. Whole images, [B, C, H, W], keep to timm's own methods.

    Attributes:
        original: the model that this one was made from.
        strict: refuse tokens that do not go row by row through a grid.
    """

    original = Original()
    strict = False

    def forward(
        self, x: Tensor, patch_coord: Tensor | None = None, patch_valid: Tensor | None = None
    ) -> tuple[Tensor, tuple[int, int] | None]:
        """Return the embedded patches [B, prefix + N, C], and None for the grid size, as timm does.

        Raises:
            InputError: the model is strict, and tokens do not go row by row through a grid.
        """
        if is_watched():
            self.original.warn_of_changes()
            if self.strict and patch_coord is not None:
                valid_BN = (
                    torch.ones_like(patch_coord[..., 0], dtype=torch.bool) if patch_valid is None else patch_valid
                )
                TIMM.check_tokens((x, patch_coord, valid_BN))
        if patch_coord is None or not self.is_linear or self.pos_embed_type not in ("learned", "factorized"):
            return super().forward(x, patch_coord, patch_valid)
        patch_coord = whole_numbers(patch_coord)
        x = self.add_position(self._projected(x), patch_coord).view(*patch_coord.shape[:2], -1)
        # by the shape: len() is a number, and would be the batch size of every graph
        prefix = [token.expand(x.shape[0], -1, -1) for token in (self.cls_token, self.reg_token) if token is not None]
        if prefix:
            x = torch.cat([*prefix, x], dim=1)
        return self.pos_drop(x), None

    def _projected(self, x: Tensor) -> Tensor:
        """Return the projected patches [B, N, C], or [B * N, C] where a 3-D product would be a view.

        A position is added in place, and autograd copies the whole of what a view is of, in either direction.
        """
        if self.enable_patch_interpolator and x.ndim == 5:
            patch_size = tuple(x.shape[2:4] if option_of(self, "channels_last") else x.shape[3:5])
            x = self.patch_interpolator(x, self.proj.weight, self.proj.bias, patch_size=patch_size, is_linear=True)
        else:
            x = x.flatten(2)
            if self.norm_input is not None:
                x = self.norm_input(x)
            x = self.proj(x if torch.compiler.is_compiling() else x.flatten(0, 1))
        return self.norm(x)

    def add_position(self, x: Tensor, patch_coord: Tensor) -> Tensor:
        """Return `x` [B * N, C] or [B, N, C], changed in place, with the embedding of each token of [B, N, 2] added."""
        fill_padding = self.pos_embed_use_grid_sample
        if self.pos_embed_type == "learned":
            grid_HWC = cast(Tensor, self.pos_embed).squeeze(0)
            # timm's grid_sample resizes a grid of just its size too, the others take it as it is
            lengths_B2 = self._lengths(patch_coord, None if fill_padding else (grid_HWC.shape[0], grid_HWC.shape[1]))
            return add_resampled(x, grid_HWC, patch_coord, resampling_of(self), lengths_B2, fill_padding=fill_padding)
        table_HC, table_WC = cast(Tensor, self.pos_embed_y).squeeze(0), cast(Tensor, self.pos_embed_x).squeeze(0)
        pos_BNC = resample_axes_at(
            table_HC,
            table_WC,
            patch_coord,
            resampling_of(self),
            self._lengths(patch_coord),
            fill_padding=fill_padding,
        )
        return x.add_(pos_BNC.to(x.dtype).view(x.shape))

    def _lengths(self, patch_coord: Tensor, own_size: tuple[int, int] | None = None) -> Tensor | None:
        """Return the [B, 2] lengths that keep the aspect ratio, each image's longer side twice; None for its own grid.

        timm's `F.interpolate` path takes a grid as it is for an image of just its size, `own_size`, aspect-preserving
        or not; the others do not.
        """
        return self.square_lengths(grids_of(patch_coord), own_size) if self.pos_embed_ar_preserving else None

    def square_lengths(self, grid_B2: Tensor, own_size: tuple[int, int] | None = None) -> Tensor:
        """Return the lengths that keep the aspect ratio of images of these grids, as `_lengths`."""
        square_B2 = grid_B2.amax(dim=1, keepdim=True).expand_as(grid_B2)
        if own_size is None or own_size[0] == own_size[1]:
            return square_B2
        source_2 = torch.tensor(own_size, device=grid_B2.device)
        return torch.where((grid_B2 == source_2).all(dim=1, keepdim=True), grid_B2, square_B2)


def resampling_of(embeds: NaFlexEmbeds) -> Resampling:
    """Return the resize that an embedding module asks `F.interpolate` or `F.grid_sample` for.

    With its border clamped, as timm has it, `grid_sample` reads what `interpolate` without antialias does.
    """
    if embeds.pos_embed_type == "factorized":  # timm's factorized tables are resized one way only
        return Resampling("bilinear", antialias=False)
    return Resampling(
        mode=cast(Mode, embeds.pos_embed_interp_mode),
        antialias=option_of(embeds, "pos_embed_antialias") and not embeds.pos_embed_use_grid_sample,
        align_corners=option_of(embeds, "pos_embed_align_corners"),
    )


class TimmEncoder(nn.Module):
    """A NaFlexVit whose forward takes the three tensors and returns a tuple of the outputs asked for."""

    def __init__(self, model: NaFlexVit, outputs: tuple[str, ...]) -> None:
        super().__init__()
        self.model = model
        self.outputs = outputs

    def forward(self, patches: Tensor, patch_coord: Tensor, patch_valid: Tensor) -> tuple[Tensor, ...]:
        """Return `features` (what a call of the model returns) and `tokens` [B, prefix + N, C], as asked for.

        Tokens are those that the model's `forward_features` returns, in the model's own call where features are asked
        for too.
        """
        inputs = {"patch_coord": patch_coord, "patch_valid": patch_valid}
        if "features" not in self.outputs:
            return (_patches(self.model.forward_features(patches, **inputs)),)
        if "tokens" not in self.outputs:
            return (one_tensor(self.model(patches, **inputs), self.model),)
        with _hearing(self.model) as heard:
            made = {"features": one_tensor(self.model(patches, **inputs), self.model)}
        if not heard:
            raise RequestError(
                f"the forward of {type(self.model).__qualname__} does not call forward_features, so that its call "
                "has no 'tokens': ask for outputs=('features',), or export 'tokens' alone"
            )
        made["tokens"] = _patches(heard[-1])
        return tuple(made[name] for name in self.outputs)


def _patches(encoded: Any) -> Tensor:
    """Return the tokens among what `forward_features` gave."""
    return cast(Tensor, encoded["patches"] if isinstance(encoded, dict) else encoded)


@contextlib.contextmanager
def _hearing(model: nn.Module) -> Iterator[list[Any]]:
    """Keep what `forward_features` returns, for as long as the block runs."""
    heard: list[Any] = []
    own = cast(Callable[..., Any], model.forward_features)
    before = vars(model).get("forward_features")

    def listened(*args: Any, **kwargs: Any) -> Any:
        heard.append(own(*args, **kwargs))
        return heard[-1]

    vars(model)["forward_features"] = listened
    try:
        yield heard
    finally:
        if before is None:
            del vars(model)["forward_features"]
        else:
            vars(model)["forward_features"] = before


class GraphRewrites:
    """Two of timm's expressions, written so that a graph of them runs anywhere; to be put ahead of a model's class.

    A key-only mask has a row for each query, which ONNX Runtime's `Attention` asks for. The masked maximum fills
    padding by a select: an assignment through a boolean index is exported as `NonZero`.
    """

    def _forward_embeds(self: Any, x: Tensor, patch_coord: Any, patch_valid: Any, attn_mask: Any) -> Any:
        dropped = self.training and self.patch_drop is not None  # which tokens are left is known later only
        if attn_mask is None and patch_valid is not None and option_of(self, "use_key_only_attn_mask") and not dropped:
            attn_mask = create_attention_mask(patch_valid, self.num_prefix_tokens, symmetric=False, dtype=x.dtype)
        return super()._forward_embeds(x, patch_coord, patch_valid, attn_mask)  # type: ignore[misc]

    def _pool(self: Any, x: Tensor, pool_type: str | None = None, patch_valid: Tensor | None = None) -> Tensor:
        kind = self.global_pool if pool_type is None else pool_type
        if self.attn_pool is not None or kind not in ("max", "avgmax") or patch_valid is None:
            return cast(Tensor, super()._pool(x, pool_type, patch_valid))  # type: ignore[misc]
        prefix = self.num_prefix_tokens
        if self.pool_include_prefix:
            read_BNC, valid_BN = x, nn.functional.pad(patch_valid, (prefix, 0), value=True)
        else:
            read_BNC, valid_BN = x[:, prefix:], patch_valid
        largest_BC = read_BNC.masked_fill(~valid_BN.unsqueeze(-1), torch.finfo(read_BNC.dtype).min).amax(dim=1)
        if kind == "max":
            return largest_BC
        return 0.5 * (cast(Tensor, super()._pool(x, "avg", patch_valid)) + largest_BC)  # type: ignore[misc]


@functools.cache
def _graph_class(kind: type[NaFlexVit]) -> type[NaFlexVit]:
    return cast(type[NaFlexVit], type(kind.__name__, (GraphRewrites, kind), {}))


def as_graph(model: NaFlexVit) -> NaFlexVit:
    """Return a model that shares all with this one and computes as `GraphRewrites` has it."""
    twin = shared_copy(model)
    twin.__class__ = _graph_class(cast(Any, type(model)))
    return twin


class TimmEmbedding(nn.Module):
    """All that a NaFlexVit does ahead of its first block, but for the mask and dropped patches."""

    def __init__(self, model: NaFlexVit) -> None:
        super().__init__()
        self.model = _stem_of(model)

    def forward(self, patches: Tensor, patch_coord: Tensor, patch_valid: Tensor) -> tuple[Tensor, ...]:
        """Return tokens [B, prefix + N, C], and what rotary embeddings the model makes."""
        model = self.model
        x, _ = model.embeds(patches, patch_coord=patch_coord, patch_valid=patch_valid)
        rope = () if model.rope is None else model._generate_rope_naflex(x, patch_coord)
        return (model.norm_pre(x), *((rope,) if isinstance(rope, Tensor) else rope))


def _stem_of(model: NaFlexVit) -> NaFlexVit:
    """Return a model that is this one without what comes from its first block on, so that a copy of it costs little."""
    stem: NaFlexVit = object.__new__(type(model))
    held = vars(model)
    vars(stem).update(held)
    vars(stem)["_modules"] = {name: held["_modules"][name] for name in STEM if name in held["_modules"]}
    return stem


class TimmNaFlex(ModelAdapter):
    """Of timm's `NaFlexVit`."""

    name = "timm NaFlexVit"
    package = "timm"
    input_format: InputFormat = TIMM
    model: Any

    @classmethod
    def owns(cls, model: Any) -> bool:
        return isinstance(model, NaFlexVit)

    @property
    def original(self) -> Original:
        return cast(Original, self.model.embeds.original) if self.is_vectorized else Original()

    def be_strict(self) -> None:
        vars(self.model.embeds)["strict"] = True

    @property
    def is_vectorized(self) -> bool:
        return isinstance(self.model.embeds, VectorizedNaFlexEmbeds)

    def vectorized(self) -> Self:
        model = self.model if self.patch_size is None else folded(self.model, self.patch_size)
        if isinstance(model.embeds, VectorizedNaFlexEmbeds):
            return self.of(model)
        refuse_unknown(model)
        twin = shared_copy(model)
        refuse_replaced(twin.embeds, ("forward", *vars(VectorizedNaFlexEmbeds)), "embeds")
        refuse_replaced(twin, vars(VectorizedNaFlexVit), "model")
        twin.embeds.__class__ = VectorizedNaFlexEmbeds
        if type(twin.embeds.patch_interpolator) is PatchEmbedInterpolator:
            twin.embeds.patch_interpolator.__class__ = VectorizedPatchInterpolator
        if twin.rope is not None:
            twin.__class__ = VectorizedNaFlexVit
        vars(twin.embeds)["original"] = Original(model, twin)
        return self.of(twin)

    def encoder(self, outputs: tuple[str, ...]) -> nn.Module:
        check_outputs(outputs)
        if not self.model.embeds.is_linear:
            raise UnsupportedModelError(
                "embed_proj_type='conv' takes whole images, not patches, in timm too: "
                "a graph of patches needs embed_proj_type='linear'"
            )
        model = as_graph(self.model) if self.is_vectorized else self.model
        return self._taking_flat_patches(TimmEncoder(model, outputs))

    def embedding(self) -> nn.Module:
        return self._taking_flat_patches(TimmEmbedding(self.model))

    def _taking_flat_patches(self, module: nn.Module) -> nn.Module:
        """Return a module of the model that takes flat patches, of another size than the model's own too."""
        if self.patch_size is None or self.is_vectorized:
            return module
        return Unflattened(module, self.patch_size, option_of(self.model.embeds, "channels_last"))

    def without_position(self) -> Self:
        twin = shared_copy(self.model)
        twin.embeds.pos_embed_type = "none"
        twin.rope = None
        return self.of(twin)

    @property
    def position_axes(self) -> tuple[Axis, ...]:
        embeds = self.model.embeds
        if embeds.pos_embed_type not in ("learned", "factorized"):
            return ()
        is_grid, resampling = embeds.pos_embed_type == "learned", resampling_of(embeds)
        source = embeds.pos_embed.shape[1:3] if is_grid else (embeds.pos_embed_y.shape[1], embeds.pos_embed_x.shape[1])
        if is_grid and reads_few_cells(source, resampling):
            return ()
        return tuple(dict.fromkeys((length, resampling) for length in source))

    @property
    def default_outputs(self) -> tuple[str, ...]:
        pools = self.model.attn_pool is not None or bool(self.model.global_pool)
        return ("features",) if pools else ("tokens",)

    @property
    def remarks(self) -> tuple[str, ...]:
        pools = self.default_outputs == ("features",)
        found = ["" if pools else "the model pools nothing: it has tokens, no features", self._photo_settings.caution]
        if self.why_no_photos:
            found.append(f"{self.why_no_photos}: it is judged on generated batches alone")
        return tuple(filter(None, found))

    @property
    def ignored_inputs(self) -> tuple[str, ...]:
        knows_position = self.model.embeds.pos_embed_type != "none" or self.model.rope is not None
        return () if knows_position else ("patch_coord",)

    @property
    def token_width(self) -> int:
        height, width = self._patch_size
        return height * width * self.channels

    @property
    def channels(self) -> int:
        return self.model.embeds.in_chans

    @property
    def _patch_size(self) -> tuple[int, int]:
        """Height and width of the flat patches, in pixels."""
        return self.model.embeds.patch_size if self.patch_size is None else (self.patch_size, self.patch_size)

    @property
    def num_prefix_tokens(self) -> int:
        return self.model.num_prefix_tokens

    @property
    def num_classes(self) -> int:
        return self.model.num_classes

    @property
    def _photo_settings(self) -> PhotoSettings:
        return photo_settings(self.model, self.given)

    def check_preprocessing(self) -> None:
        photo_settings(self.model, self.given)

    def preprocessing(self) -> dict[str, Any]:
        if caution := self._photo_settings.caution:
            warnings.warn(caution, stacklevel=2)
        return self._preprocessing()

    def _preprocessing(self) -> dict[str, Any]:
        settings, (height, width) = self._photo_settings, self._patch_size
        said = Preprocessing(
            library="timm.data.create_transform",
            patch_size=(height, width),
            mean=tuple(settings.mean),
            std=tuple(settings.std),
            interpolation=settings.interpolation,
            channels_last=option_of(self.model.embeds, "channels_last"),
        )
        return {"settings_from": settings.origin, "channels": self.channels, **said.fields()}

    def transform(self, tokens: int) -> Callable[[Image], dict[str, Tensor]]:
        if self.why_no_photos:
            raise UnsupportedModelError(f"{self.why_no_photos}: there is no transform of them")
        settings = self._preprocessing()
        # an older timm knows one order of a patch's values only, and no argument for it
        order = {} if settings["channels_last"] else {"patchify_channels_last": False}
        return create_transform(
            is_training=False,
            naflex=True,
            patchify=True,
            max_seq_len=tokens,
            patch_size=tuple(settings["patch_size"]),
            mean=settings["mean"],
            std=settings["std"],
            interpolation=settings["interpolation"],
            **order,
        )

    def describe(self) -> dict[str, Any]:
        naflex: NaFlexVit = self.model
        embeds = naflex.embeds
        return {
            "architecture": pretrained_cfg_of(naflex).get("architecture") or "",
            "width": naflex.embed_dim,
            "depth": len(naflex.blocks),
            "num_classes": naflex.num_classes,
            "global_pool": naflex.global_pool,
            "num_prefix_tokens": naflex.num_prefix_tokens,
            "pos_embed": embeds.pos_embed_type,
            "pos_embed_grid": list(embeds.pos_embed_grid_size or ()),
            "pos_embed_mode": embeds.pos_embed_interp_mode,
            "pos_embed_ar_preserving": embeds.pos_embed_ar_preserving,
            "pos_embed_antialias": option_of(embeds, "pos_embed_antialias"),
            "pos_embed_align_corners": option_of(embeds, "pos_embed_align_corners"),
            "pos_embed_use_grid_sample": embeds.pos_embed_use_grid_sample,
            "rope": "" if naflex.rope is None else type(naflex.rope).__name__,
        }

    def at_patch_size(self, patch_size: int) -> Self:
        check_interpolates(self.model, patch_size)
        return type(self)(self.model, patch_size, self.given)
