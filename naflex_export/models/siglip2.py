"""transformers' SigLIP 2: its vision tower without the per-image loop.

Only `Siglip2VisionEmbeddings` changes, and in it only the method that resizes the learned grid for each image.
Everything else, the patch projection, encoder, attention mask and pooling head, is transformers' own code.
"""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Self, cast

import numpy as np
import PIL.Image
import torch
from PIL.Image import Image
from torch import Tensor, nn
from transformers import Siglip2ForImageClassification, Siglip2ImageProcessor, Siglip2Model, Siglip2VisionModel
from transformers.image_processing_backends import TorchvisionBackend
from transformers.modeling_outputs import BaseModelOutputWithPooling, ImageClassifierOutput
from transformers.models.siglip2.modeling_siglip2 import Siglip2VisionEmbeddings

from naflex_export.embed.preprocessing import of_processor
from naflex_export.errors import RequestError, UnsupportedModelError
from naflex_export.grid import Grid
from naflex_export.models.adapter import ModelAdapter, refuse_replaced
from naflex_export.models.copies import replaced_methods, shared_copy
from naflex_export.models.original import Original, is_watched
from naflex_export.models.output_names import check_outputs
from naflex_export.models.preprocessing import GIVEN, PHOTO_CHANNELS, how_to_give
from naflex_export.models.text_tower import TextTower
from naflex_export.resample.add import add_resampled
from naflex_export.resample.coordinates import whole_numbers
from naflex_export.resample.stored import Axis
from naflex_export.resample.weights import Resampling
from naflex_export.serving.input_formats import TRANSFORMERS, InputFormat

BILINEAR = Resampling(mode="bilinear", antialias=True, align_corners=False)

_DEFAULTS = "defaults"

_NO_SETTINGS = frozenset({"image_processor_type", "feature_extractor_type", "processor_class", "auto_map"})
"""What a saved processor holds besides its settings."""

PROCESSOR_FILES = ("preprocessor_config.json", "processor_config.json")
"""Where transformers saves an image processor: alone, or with a tokenizer's as part of a processor."""


class VectorizedSiglip2VisionEmbeddings(Siglip2VisionEmbeddings):
    """`Siglip2VisionEmbeddings` that resizes its learned grid for all images of a batch at once.

    Replaces `resize_positional_embeddings` of transformers 5.17 to 5.24, with the same result to float32 rounding, for
    padding tokens too. (5.24 itself has no loop any more: it multiplies each token's weights with all cells, in the
    dtype that autocast asks for.) Eager refuses a shape below 1x1, or of more tokens than the batch is padded to. So
    does this on a CPU; on a GPU it would have to wait for the shapes, and such an image comes out wrong instead. A
    Runner checks for both everywhere.

    Attributes:
        original: the model that this one was made from.
    """

    original = Original()

    def forward(self, pixel_values: Tensor, spatial_shapes: Tensor) -> Tensor:
        """Return the embedded patches [B, N, C].

        Raises:
            InputError: on a CPU, a shape is below 1x1, or has more patches than there are tokens.
        """
        if is_watched():
            self.original.warn_of_changes()
            TRANSFORMERS.check_grids(spatial_shapes, pixel_values.shape[1])
        return super().forward(pixel_values, spatial_shapes)

    @staticmethod
    def resize_positional_embeddings(positional_embeddings: Tensor, spatial_shapes: Tensor, max_length: int) -> Tensor:
        """Return the position embedding of each token.

        Args:
            positional_embeddings: [H, W, C] the learned grid, any floating dtype; resampled in float32, as eager does
                on a CPU.
            spatial_shapes: [B, 2] integer (height, width) of each image, in patches.
            max_length: number of tokens N.

        Returns:
            [B, N, C] in the grid's dtype; padding holds the embedding of the image's first token, as eager has it.
        """
        grid_B2 = whole_numbers(spatial_shapes).to(positional_embeddings.device)
        height_B1, width_B1 = grid_B2[:, :1], grid_B2[:, 1:]
        token_N = torch.arange(max_length, device=grid_B2.device)
        valid_BN = token_N < height_B1 * width_B1
        token_BN = torch.where(valid_BN, token_N, 0)
        row_BN = token_BN // width_B1.clamp(min=1)  # a width of zero is wrong input, and would end some backends
        coord_BN2 = torch.stack([row_BN, token_BN - row_BN * width_B1], dim=-1)
        zero_BNC = positional_embeddings.new_zeros(*token_BN.shape, positional_embeddings.shape[-1])
        return add_resampled(zero_BNC, positional_embeddings, coord_BN2, BILINEAR, grid_B2, fill_padding=True)


class InterpolatedSiglip2VisionEmbeddings(Siglip2VisionEmbeddings):
    """`Siglip2VisionEmbeddings` as transformers had it before 5.24: one `F.interpolate` for each image."""

    @staticmethod
    def resize_positional_embeddings(positional_embeddings: Tensor, spatial_shapes: Tensor, max_length: int) -> Tensor:
        """Return the position embedding of each token.

        Args:
            positional_embeddings: [H, W, C] the learned grid, resampled in float32.
            spatial_shapes: [B, 2] integer (height, width) of each image, in patches.
            max_length: number of tokens N.

        Returns:
            [B, N, C] in the grid's dtype; padding holds the embedding of the image's first token.
        """
        grid_1CHW = positional_embeddings.permute(2, 0, 1).unsqueeze(0).float()
        rows = []
        for shape in spatial_shapes.tolist():
            resized_1CHW = nn.functional.interpolate(
                grid_1CHW, size=tuple(shape), mode="bilinear", align_corners=False, antialias=True
            )
            token_TC = resized_1CHW[0].flatten(1).T
            rows.append(torch.cat([token_TC, token_TC[:1].expand(max_length - len(token_TC), -1)]))
        return torch.stack(rows).to(positional_embeddings.dtype)


class PatchesOnly(Siglip2VisionEmbeddings):
    """`Siglip2VisionEmbeddings` that adds no position embedding."""

    def forward(self, pixel_values: Tensor, spatial_shapes: Tensor) -> Tensor:
        """Return the projected patches [B, N, C]."""
        return self.patch_embedding(pixel_values.to(dtype=self.patch_embedding.weight.dtype))


class Siglip2Embedding(nn.Module):
    """All that a vision tower does ahead of its first block, but for the mask."""

    def __init__(self, tower: Siglip2VisionModel) -> None:
        super().__init__()
        self.embeddings = tower.embeddings

    def forward(self, pixel_values: Tensor, pixel_attention_mask: Tensor, spatial_shapes: Tensor) -> tuple[Tensor, ...]:
        """Return tokens [B, N, C]."""
        return (self.embeddings(pixel_values, spatial_shapes),)


class Siglip2Encoder(nn.Module):
    """A vision tower whose forward returns a tuple of the outputs asked for."""

    def __init__(self, tower: Siglip2VisionModel, outputs: tuple[str, ...]) -> None:
        super().__init__()
        self.model = tower
        self.outputs = outputs

    def forward(self, pixel_values: Tensor, pixel_attention_mask: Tensor, spatial_shapes: Tensor) -> tuple[Tensor, ...]:
        """Return `features` [B, C] (the pooling head's) and `tokens` [B, N, C] (the encoder's), as asked for."""
        given = self.model(pixel_values, pixel_attention_mask, spatial_shapes, return_dict=True)
        if not isinstance(given, BaseModelOutputWithPooling):
            kind = "Tensor" if isinstance(given, Tensor) else type(given).__qualname__  # tracers have their own
            raise UnsupportedModelError(
                f"a call of the model, a {type(self.model).__qualname__}, returns a {kind}: "
                "expected a BaseModelOutputWithPooling. Does its forward, or a hook on it, return something else?"
            )
        made = _outputs(given)
        return tuple(made[name] for name in self.outputs)


class Siglip2Classifier(nn.Module):
    """An image classifier whose forward returns a tuple of the outputs asked for."""

    def __init__(self, model: Siglip2ForImageClassification, outputs: tuple[str, ...]) -> None:
        super().__init__()
        self.model = model
        self.outputs = outputs

    def forward(self, pixel_values: Tensor, pixel_attention_mask: Tensor, spatial_shapes: Tensor) -> tuple[Tensor, ...]:
        """Return `features` [B, K] (the logits) and `tokens` [B, N, C] (the encoder's), as asked for."""
        inputs, made = (pixel_values, pixel_attention_mask, spatial_shapes), {}
        if "features" in self.outputs:
            made["features"] = self.model(*inputs, return_dict=True).logits
        if "tokens" in self.outputs:  # a graph holds the encoder once: what is computed twice in it is one
            made["tokens"] = self.model.vision_model(*inputs, return_dict=True).last_hidden_state
        return tuple(made[name] for name in self.outputs)


class Siglip2(ModelAdapter):
    """Of transformers' `Siglip2VisionModel`, alone, in a `Siglip2Model` or in a `Siglip2ForImageClassification`."""

    name = "transformers Siglip2"
    package = "transformers"
    input_format: InputFormat = TRANSFORMERS
    options = frozenset({"output_attentions", "output_hidden_states", "return_dict"})
    model: Any

    @classmethod
    def owns(cls, model: Any) -> bool:
        return isinstance(model, Siglip2VisionModel | Siglip2Model | Siglip2ForImageClassification)

    @property
    def tower(self) -> Any:
        return self.model.vision_model if isinstance(self.model, Siglip2Model) else self.model

    @property
    def _vision(self) -> Any:
        """The vision tower itself."""
        return self.model if isinstance(self.model, Siglip2VisionModel) else self.model.vision_model

    @property
    def _is_classifier(self) -> bool:
        return isinstance(self.model, Siglip2ForImageClassification)

    def text_tower(self, tokenizer: str | None = None) -> TextTower:
        from naflex_export.models.siglip2_text import Siglip2Text  # with a tokenizer, which few exports need

        if not isinstance(self.model, Siglip2Model):
            raise UnsupportedModelError(
                f"a {type(self.model).__qualname__} has no text tower: --tower image,text is for a whole Siglip2Model"
            )
        self._refuse_own_features("get_text_features", "text")
        return Siglip2Text.beside(self.model, tokenizer)

    @property
    def is_vectorized(self) -> bool:
        return isinstance(self._vision.embeddings, VectorizedSiglip2VisionEmbeddings)

    @property
    def default_outputs(self) -> tuple[str, ...]:
        return ("features",) if self._is_classifier or self._vision.use_head else ("tokens",)

    @property
    def remarks(self) -> tuple[str, ...]:
        found = []
        if self._is_classifier:
            found.append(f"the model is an image classifier: its features are the logits of {self.num_classes} classes")
        if self.default_outputs == ("tokens",):
            found.append("the model has no pooling head (vision_use_head=False): it has tokens, no features")
        if self.why_no_photos:
            found.append(f"{self.why_no_photos}: it is judged on generated batches alone")
        if caution := self._caution(*self._processor()):
            found.append(caution)
        return tuple(found)

    @property
    def original(self) -> Original:
        return cast(Original, self._vision.embeddings.original) if self.is_vectorized else Original()

    def vectorized(self) -> Self:
        if self.is_vectorized:
            return self
        embeddings = self._vision.embeddings
        if type(embeddings) is not Siglip2VisionEmbeddings:
            raise UnsupportedModelError(
                f"the model's embeddings are a {type(embeddings).__qualname__}, not transformers' "
                "Siglip2VisionEmbeddings: a subclass may resize its grid in a way we cannot know"
            )
        twin = self.of(shared_copy(self.model))
        refuse_replaced(twin._vision.embeddings, vars(VectorizedSiglip2VisionEmbeddings), "embeddings")
        twin._vision.embeddings.__class__ = VectorizedSiglip2VisionEmbeddings
        vars(twin._vision.embeddings)["original"] = Original(self.model, twin.model)
        return twin

    def encoder(self, outputs: tuple[str, ...]) -> nn.Module:
        check_outputs(outputs)
        if isinstance(self.model, Siglip2Model):
            self._refuse_own_features("get_image_features", "vision")
        if self._is_classifier:
            return Siglip2Classifier(self.model, outputs)
        if "features" in outputs and not self._vision.use_head:
            raise RequestError(
                "the model has no pooling head (vision_use_head=False), so it has no features: ask for "
                "outputs=('tokens',), on the command line --outputs tokens"
            )
        return Siglip2Encoder(self._vision, outputs)

    def _refuse_own_features(self, name: str, tower: str) -> None:
        """Check that a method that a user calls, such as `get_image_features`, is its tower's call and nothing more.

        Args:
            name: of the method.
            tower: "vision" or "text".

        Raises:
            UnsupportedModelError: it was overridden, or replaced on the instance.
        """
        if name in replaced_methods(self.model) or getattr(type(self.model), name) is not getattr(Siglip2Model, name):
            raise UnsupportedModelError(
                f"the {name} of {type(self.model).__qualname__} is not transformers' own: what it adds to its "
                f"{'image' if tower == 'vision' else tower} tower would be lost. Export model.{tower}_model, or do the "
                f"same in a subclass of Siglip2{tower.title()}Model"
            )

    def embedding(self) -> nn.Module:
        return Siglip2Embedding(self._vision)

    def without_position(self) -> Self:
        twin = self.of(shared_copy(self.model))
        twin._vision.embeddings.__class__ = PatchesOnly
        return twin

    def by_interpolate(self) -> Self:
        twin = self.of(shared_copy(self.model))
        twin._vision.embeddings.__class__ = InterpolatedSiglip2VisionEmbeddings
        return twin

    def unpack(self, output: Any) -> Any:
        if isinstance(output, ImageClassifierOutput):
            return {"features": output.logits}
        return _outputs(output) if isinstance(output, BaseModelOutputWithPooling) else output

    @property
    def position_axes(self) -> tuple[Axis, ...]:
        return ((self._vision.embeddings.position_embedding_size, BILINEAR),)

    @property
    def token_width(self) -> int:
        config = self._vision.config
        return config.patch_size * config.patch_size * config.num_channels

    @property
    def num_classes(self) -> int:
        return self.model.num_labels if self._is_classifier else 0

    @property
    def channels(self) -> int:
        return self._vision.config.num_channels

    def _processor(self) -> tuple[Any, str]:
        """Return the image processor, and where its settings are from."""
        return _processor(self.model) if self.given is None else (_given_processor(self.given, self.channels), GIVEN)

    def _caution(self, processor: Any, origin: str) -> str:
        """Return what a user must know of a processor that nobody has chosen for the model; empty where one has."""
        name = self.model.name_or_path
        if origin in (GIVEN, name) or not name or self.why_no_photos:  # without a name it was made from a config
            return ""
        if origin == _DEFAULTS:
            origin = f"{_DEFAULTS}, since {name} has no {PROCESSOR_FILES[0]}"
        return _said_of_defaults(origin, json.loads(processor.to_json_string()))

    def check_preprocessing(self) -> None:
        self._processor()

    def preprocessing(self) -> dict[str, Any]:
        processor, origin = self._processor()
        settings = json.loads(processor.to_json_string())
        if caution := self._caution(processor, origin):
            warnings.warn(caution, stacklevel=2)
        if self.why_no_photos and origin != GIVEN:  # nobody has said it of images that are no photos
            settings["image_mean"] = settings["image_std"] = []
        del settings["max_num_patches"], settings["patch_size"]  # a bucket's tokens; the model's own
        library = f"transformers.{type(processor).__name__}"
        is_torchvision = isinstance(processor, TorchvisionBackend)
        size = self._vision.config.patch_size
        said = of_processor(library, size, settings, is_torchvision, _alpha_of(processor))
        return {"settings_from": origin, "channels": self.channels, **settings, **said.fields()}

    def transform(self, tokens: int) -> Callable[[Image], dict[str, Tensor]]:
        if self.why_no_photos:
            raise UnsupportedModelError(f"{self.why_no_photos}: there is no transform of them")
        processor, _ = self._processor()
        patch_size = self._vision.config.patch_size

        def patchify(image: Image) -> dict[str, Tensor]:
            made = processor(images=image, patch_size=patch_size, max_num_patches=tokens, return_tensors="pt")
            grid = Grid(*made["spatial_shapes"][0].tolist())
            return {
                "patches": made["pixel_values"][0, : grid.tokens],
                "patch_coord": torch.tensor(grid.coordinates()),
                "patch_valid": torch.ones(grid.tokens, dtype=torch.bool),
            }

        return patchify

    def describe(self) -> dict[str, Any]:
        config = self._vision.config
        return {
            "architecture": type(self.model).__name__,
            "attention": config._attn_implementation,
            "vision_config": json.loads(config.to_json_string(use_diff=False)),
        }


def _outputs(encoded: BaseModelOutputWithPooling) -> dict[str, Tensor]:
    return {"features": encoded.pooler_output, "tokens": encoded.last_hidden_state}


def _alpha_of(processor: Any) -> str:
    """Return what a processor makes of transparency once it is told to convert: that changed between releases."""
    clear = PIL.Image.new("RGBA", (8, 8), (0, 0, 0, 0))
    try:
        made = processor(images=clear, do_convert_rgb=True, max_num_patches=1, patch_size=8, return_tensors="np")
    except Exception:  # it takes no such images at all, and any policy will do
        return "white"
    return "white" if float(np.asarray(made["pixel_values"]).min()) > 0 else "drop"


def _said_of_defaults(origin: str, settings: dict[str, Any]) -> str:
    """Return what a user must know where a model's own image processor could not be had."""
    given = ", ".join(f"{name} {settings[name]}" for name in ("image_mean", "image_std", "resample"))
    return (
        f"preprocessing is by {origin}: {given}. Check that they are the model's, or load it from a folder with its "
        f"{PROCESSOR_FILES[0]}, or {how_to_give('it')}"
    )


def _given_processor(given: Mapping[str, Any], channels: int) -> Any:
    """Return the image processor of settings that a caller gave, under transformers' names.

    Raises:
        RequestError: they are those of another processor, or not possible.
    """
    kind = str(given.get("image_processor_type", "Siglip2ImageProcessor"))
    if not kind.startswith("Siglip2ImageProcessor"):
        raise RequestError(f"preprocessing is of a {kind}: expected a Siglip2ImageProcessor")
    known = {*Siglip2ImageProcessor().to_dict(), *_NO_SETTINGS}
    if unknown := set(given) - known:
        raise RequestError(f"preprocessing has {min(unknown)!r}: expected {', '.join(sorted(known - _NO_SETTINGS))}")
    for name in ("image_mean", "image_std"):
        values = given.get(name)
        values = values if isinstance(values, tuple | list) else [0.5 if values is None else values]
        is_right = all(
            isinstance(one, int | float) and math.isfinite(one) and ("std" not in name or one > 0) for one in values
        )
        if not is_right or len(values) not in (1, channels):
            above = ", each above 0" if "std" in name else ""
            raise RequestError(f"{name} of preprocessing is {given[name]!r}: expected one number, or {channels}{above}")
    try:
        made = Siglip2ImageProcessor.from_dict({name: value for name, value in given.items() if value is not None})
        if channels == PHOTO_CHANNELS:
            made(images=PIL.Image.new("RGB", (8, 8)), patch_size=4, max_num_patches=4, return_tensors="pt")
        return made
    except Exception as error:  # transformers' validation raises classes of several libraries
        raise RequestError(f"preprocessing is not possible ({str(error).strip().splitlines()[0][:300]})") from error


def _processor(model: Any) -> tuple[Any, str]:
    """Return the image processor saved beside the model's weights, or a default one where none is, and which it is.

    A hub that is out of reach gives no processor either; every published SigLIP 2 has the default one.

    Raises:
        RequestError: there is one in the model's folder and it cannot be read.
    """
    origin = model.name_or_path
    folder = Path(origin)
    if not origin or (folder.is_dir() and not any((folder / name).is_file() for name in PROCESSOR_FILES)):
        return Siglip2ImageProcessor(), _DEFAULTS
    try:
        return Siglip2ImageProcessor.from_pretrained(origin), origin
    except Exception as error:  # the hub's client raises classes of many libraries
        if not folder.exists():
            return Siglip2ImageProcessor(), f"{_DEFAULTS}, since that of {origin} cannot be had"
        raise RequestError(
            f"the image processor of {origin!r}, where the model was loaded from, cannot be had "
            f"({str(error).strip().splitlines()[0][:300]}): expected a {PROCESSOR_FILES[0]} there"
        ) from error
