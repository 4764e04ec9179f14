"""What ports get wrong, each as a way to run the untouched eager model wrong: the fingerprints of a pack."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from naflex_export.accuracy.reference import SoundInterpolate
from naflex_export.batch import Batch
from naflex_export.models.adapter import ModelAdapter
from naflex_export.models.copies import whole_copy

IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class TypicalFault:
    """A fault that ports have.

    Attributes:
        says: what is wrong, in a sentence.
        run: returns the features that a model with the fault gives for a batch.
        remedy: what to do.
    """

    says: str
    run: Callable[[ModelAdapter, Batch], Tensor]
    remedy: str


class _OtherResize(TorchFunctionMode):
    """Resizes position embeddings with other options than the model asks for."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.options = options

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func is torch.nn.functional.interpolate:
            kwargs |= self.options
            if kwargs.get("mode") == "nearest":
                kwargs["antialias"], kwargs["align_corners"] = False, None
        return func(*args, **kwargs)


def features_of(adapter: ModelAdapter, batch: Batch) -> Tensor:
    """Return what the untouched model gives for a batch, in float32."""
    with torch.no_grad(), SoundInterpolate():
        dtype = next(adapter.model.parameters()).dtype
        inputs = (t.to(dtype) if t.is_floating_point() else t for t in adapter.input_format.arrange(batch))
        found: Tensor = adapter.encoder(("features",))(*inputs)[0]
        return found.float()


def _resized(**options: Any) -> Callable[[ModelAdapter, Batch], Tensor]:
    def run(adapter: ModelAdapter, batch: Batch) -> Tensor:
        with _OtherResize(**options):
            return features_of(adapter.by_interpolate(), batch)

    return run


def _fed(change: Callable[[ModelAdapter, Batch], Batch]) -> Callable[[ModelAdapter, Batch], Tensor]:
    return lambda adapter, batch: features_of(adapter, change(adapter, batch))


def _pixels(change: Callable[[ModelAdapter, Tensor], Tensor]) -> Callable[[ModelAdapter, Batch], Tensor]:
    """Return what is fed with changed pixels [B, N, P, P, C]; padding stays as it is."""

    def changed(adapter: ModelAdapter, batch: Batch) -> Batch:
        side = patch_side(adapter.preprocessing())
        pixels = batch.patches.reshape(*batch.patches.shape[:2], side, side, -1)
        made = change(adapter, pixels).reshape(batch.patches.shape)
        return replace(batch, patches=torch.where(batch.patch_valid.unsqueeze(-1), made, batch.patches))

    return _fed(changed)


def patch_side(preprocessing: dict[str, Any]) -> int:
    """Return the pixels of a patch's side, which some families say once and some for each side."""
    said = preprocessing["patch_size"]
    return int(said if isinstance(said, int) else said[0])


def pixel_statistics(preprocessing: dict[str, Any]) -> tuple[list[float], list[float]]:
    """Return mean and deviation that pixels are normalized by, under the names of either library."""
    mean, std = (preprocessing.get(name) or preprocessing[f"image_{name}"] for name in ("mean", "std"))
    return list(mean), list(std)


def _statistics(adapter: ModelAdapter) -> tuple[Tensor, Tensor]:
    mean, std = pixel_statistics(adapter.preprocessing())
    return torch.tensor(mean), torch.tensor(std)


def _raw(adapter: ModelAdapter, pixels: Tensor) -> Tensor:
    """Return pixels from 0 to 1, as they were before they were normalized."""
    mean, std = _statistics(adapter)
    return pixels * std + mean


def _imagenet(adapter: ModelAdapter, pixels: Tensor) -> Tensor:
    mean, std = (torch.tensor(values) for values in IMAGENET)
    return (_raw(adapter, pixels) - mean) / std


def _mean_for_std(adapter: ModelAdapter, pixels: Tensor) -> Tensor:
    mean, std = _statistics(adapter)
    return (_raw(adapter, pixels) - std) / mean


def _swapped(adapter: ModelAdapter, batch: Batch) -> Batch:
    turned = tuple(type(grid)(grid.width, grid.height) for grid in batch.grids)
    return replace(batch, patch_coord=batch.patch_coord.flip(-1), grids=turned)


def _without_last(adapter: ModelAdapter, batch: Batch) -> Batch:
    valid = batch.patch_valid.clone()
    for row, grid in enumerate(batch.grids):
        valid[row, grid.tokens - 1] = grid.tokens == 1
    return replace(batch, patch_valid=valid)


def _transposed(module: nn.Module) -> None:
    """Exchange the axes of a learned grid of positions: timm's [1, H, W, C], or transformers' square [H * W, C]."""
    for name, child in module.named_parameters(recurse=False):
        if name == "pos_embed" and child.ndim == 4:
            child.data = child.data.swapaxes(1, 2).contiguous()
    for name, inner in module.named_children():
        if name == "position_embedding" and isinstance(inner, nn.Embedding):
            side = math.isqrt(inner.num_embeddings)
            if side * side == inner.num_embeddings:
                weight = inner.weight.data.reshape(side, side, -1)
                inner.weight.data = weight.swapaxes(0, 1).flatten(0, 1).contiguous()


@contextmanager
def _changed(adapter: ModelAdapter, change: Callable[[nn.Module], object]) -> Iterator[ModelAdapter]:
    twin = whole_copy(adapter.model)
    for module in twin.modules():
        change(module)
    yield adapter.of(twin)


def _modules(change: Callable[[nn.Module], object]) -> Callable[[ModelAdapter, Batch], Tensor]:
    def run(adapter: ModelAdapter, batch: Batch) -> Tensor:
        with _changed(adapter, change) as other:
            return features_of(other, batch)

    return run


def _padding_first(adapter: ModelAdapter, batch: Batch) -> Batch:
    """Return the batch with each image's padding in front of its tokens, where its positions are then counted from."""
    patches, coord, valid = batch.patches.clone(), batch.patch_coord.clone(), batch.patch_valid.clone()
    for row, grid in enumerate(batch.grids):
        for tensor in (patches, coord, valid):
            tensor[row] = tensor[row].roll(-grid.tokens, dims=0)
    return replace(batch, patches=patches, patch_coord=coord, patch_valid=valid)


class _NarrowAttention(TorchFunctionMode):
    """Lets attention alone compute in float16."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func is not torch.nn.functional.scaled_dot_product_attention:
            return func(*args, **kwargs)
        dtype, lowest = args[0].dtype, torch.finfo(torch.float16).min

        def narrow(value: Any) -> Any:
            is_float = isinstance(value, Tensor) and value.is_floating_point()
            return value.clamp(lowest, -lowest).half() if is_float else value

        narrowed = {name: narrow(value) for name, value in kwargs.items()}
        return func(*map(narrow, args), **narrowed).to(dtype)


def _narrow_attention(adapter: ModelAdapter, batch: Batch) -> Tensor:
    with _NarrowAttention():
        return features_of(adapter, batch)


def _other_eps(module: nn.Module) -> None:
    if isinstance(module, nn.LayerNorm):
        module.eps = 1e-5


def _other_gelu(module: nn.Module) -> None:
    """Exchange the exact GELU and its approximation through tanh."""
    for name, child in module.named_children():
        kind = type(child).__name__.lower()
        if "gelu" in kind:
            is_tanh = "tanh" in kind or getattr(child, "approximate", "none") == "tanh"
            setattr(module, name, nn.GELU(approximate="none" if is_tanh else "tanh"))


def _narrow(dtype: torch.dtype) -> Callable[[ModelAdapter, Batch], Tensor]:
    def run(adapter: ModelAdapter, batch: Batch) -> Tensor:
        return features_of(adapter.of(whole_copy(adapter.model).to(dtype)), batch)

    return run


FAULTS: dict[str, TypicalFault] = {
    "no-antialias": TypicalFault(
        "the position embedding is resized without antialias",
        _resized(antialias=False),
        "widen the filter where the target is smaller than the source, as torch's antialias=True does",
    ),
    "align-corners": TypicalFault(
        "the position embedding is resized with align_corners",
        _resized(align_corners=True, antialias=False),
        "sample at (i + 0.5) * source / target - 0.5",
    ),
    "bilinear": TypicalFault(
        "the position embedding is resized by bilinear interpolation",
        _resized(mode="bilinear"),
        "take the interpolation that the manifest's model names",
    ),
    "bicubic": TypicalFault(
        "the position embedding is resized by bicubic interpolation",
        _resized(mode="bicubic"),
        "take the interpolation that the manifest's model names",
    ),
    "bicubic-no-antialias": TypicalFault(
        "the position embedding is resized by bicubic interpolation without antialias",
        _resized(mode="bicubic", antialias=False),
        "take the interpolation that the manifest's model names, widened where the target is smaller",
    ),
    "bilinear-no-antialias": TypicalFault(
        "the position embedding is resized by bilinear interpolation without antialias",
        _resized(mode="bilinear", antialias=False),
        "take the interpolation that the manifest's model names, widened where the target is smaller",
    ),
    "nearest": TypicalFault(
        "the position embedding is resized to its nearest cells",
        _resized(mode="nearest"),
        "take the interpolation that the manifest's model names",
    ),
    "no-position": TypicalFault(
        "the position embedding is left out",
        lambda adapter, batch: features_of(adapter.without_position(), batch),
        "add the position embedding, resized to each image's grid",
    ),
    "height-width-swapped": TypicalFault(
        "the position embedding is resized to width x height in place of height x width",
        _fed(_swapped),
        "coordinates and grids are (height, width), row by row",
    ),
    "axes-swapped": TypicalFault(
        "height and width are swapped where the position embedding is read: a token at (y, x) gets that of (x, y)",
        _modules(_transposed),
        "coordinates and grids are (height, width), row by row",
    ),
    "mask-dropped": TypicalFault(
        "the mask is dropped: padding is attended to and pooled",
        _fed(lambda adapter, batch: replace(batch, patch_valid=torch.ones_like(batch.patch_valid))),
        "mask padding's keys in each attention, that of pooling too",
    ),
    "last-token-dropped": TypicalFault(
        "the last token of each image is taken for padding", _fed(_without_last), "count the valid tokens again"
    ),
    "bgr": TypicalFault(
        "channels are read as blue, green, red",
        _pixels(lambda adapter, pixels: pixels.flip(-1)),
        "values of a pixel are red, green, blue",
    ),
    "channels-first": TypicalFault(
        "a patch is flattened channel by channel",
        _pixels(lambda adapter, pixels: pixels.movedim(-1, 2).contiguous()),
        "flatten a patch by row, column, channel",
    ),
    "patch-transposed": TypicalFault(
        "a patch is flattened column by column",
        _pixels(lambda adapter, pixels: pixels.transpose(2, 3)),
        "flatten a patch by row, column, channel",
    ),
    "not-normalized": TypicalFault(
        "pixels are from 0 to 1, and not normalized", _pixels(_raw), "subtract the mean and divide by the deviation"
    ),
    "imagenet-statistics": TypicalFault(
        "pixels are normalized by ImageNet's mean and deviation",
        _pixels(_imagenet),
        "take mean and deviation from the manifest",
    ),
    "mean-for-deviation": TypicalFault(
        "mean and deviation of the pixels are exchanged",
        _pixels(_mean_for_std),
        "subtract the mean and divide by the deviation",
    ),
    "norm-eps": TypicalFault("norms have an eps of 1e-5", _modules(_other_eps), "take the model's own eps"),
    "other-gelu": TypicalFault(
        "GELU is the other one of the exact and the one through tanh", _modules(_other_gelu), "take the model's own"
    ),
    "padding-in-front": TypicalFault(
        "padding stands in front of an image's tokens, and positions are counted from there",
        _fed(_padding_first),
        "put padding behind the tokens, or count positions from the first valid one",
    ),
    "float16-attention": TypicalFault(
        "attention computes in float16, and all else in float32",
        _narrow_attention,
        "compute products of queries and keys, softmax and the sum of values in float32",
    ),
    "float16": TypicalFault("it computes in float16", _narrow(torch.float16), "judge it with --dtype float16"),
    "bfloat16": TypicalFault("it computes in bfloat16", _narrow(torch.bfloat16), "judge it with --dtype bfloat16"),
}
"""Each by its name in a pack. What a fault does not change of a model leaves no fingerprint."""

ROUNDING = ("float16", "bfloat16", "float16-attention")
"""Faults of which two implementations do not have the same fingerprint: sums are rounded in another order."""
