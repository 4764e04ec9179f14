"""A model cast to 16 bits, but for what is to stay in float32: the casts, put on a copy of it.

Each module that has weights takes its inputs in their dtype. What is kept gives its outputs in 16 bits again, so that
all else computes as ever, but where the next reader is in float32 by the same request: what is added to a residual
stream that is kept, and what follows the blocks. The same copy is traced, and is the gate's baseline: what eager gives
in the same precision. The reference never sees any of it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from naflex_export.errors import RequestError
from naflex_export.models.encoder_adapter import EncoderAdapter
from naflex_export.models.kept_parts import Tower, is_norm, is_within, kept_of
from naflex_export.precision import ALL_LOW, Kept, Precision


def cast_model(adapter: EncoderAdapter, precision: Precision) -> Kept:
    """Cast a model to a precision, in place, and return what of it stayed in float32.

    Args:
        adapter: of a copy of the model that nobody else has, in float32.
        precision: to cast it to.

    Raises:
        RequestError: as `kept_of`.
    """
    kept = kept_of(adapter, precision)
    low = precision.torch_dtype
    if kept == ALL_LOW:
        adapter.model.to(low)
        return kept
    tower = Tower.of(adapter)
    names = {id(module): name for name, module in tower.modules.items()}
    for module in adapter.model.modules():
        dtype = torch.float32 if kept.holds(names.get(id(module), "")) else low
        module._apply(_casting(dtype), recurse=False)
    for name, module in tower.modules.items():
        if kept.residual and name in tower.blocks and name not in kept.modules:
            module.register_forward_pre_hook(_first_cast_to(torch.float32), with_kwargs=True)
            continue
        if name in kept.modules:
            module.register_forward_pre_hook(_inputs_cast_to(torch.float32), with_kwargs=True)
            if not _stays(name, kept, precision, tower):
                module.register_forward_hook(_output_cast_to(low))
        elif any(parameter.is_floating_point() for parameter in module.parameters(recurse=False)):
            dtype = torch.float32 if kept.holds(name) else low
            module.register_forward_pre_hook(_inputs_cast_to(dtype), with_kwargs=True)
    if "pooling" in precision.keep_float32:
        tower.modules[tower.blocks[-1]].register_forward_hook(_output_cast_to(torch.float32))
    return kept


def _stays(name: str, kept: Kept, precision: Precision, tower: Tower) -> bool:
    """Whether what a kept module gives stays in float32, for what reads it is."""
    if not is_within(name, tower.blocks):
        # the stream of tokens begins with what the embedding gives
        stages = ("pooling", "embedding") if kept.residual else ("pooling",)
        return any(stage in precision.keep_float32 and name in tower.chosen_by(stage) for stage in stages)
    is_part = name in tower.blocks or name.rpartition(".")[0] in tower.blocks
    return kept.residual and is_part and not is_norm(tower.modules[name])


def cast_encoder(encoder: nn.Module, precision: Precision) -> nn.Module:
    """Return the encoder of a cast model, which gives its outputs in the dtype of the precision.

    Args:
        encoder: changed in place.
        precision: of its model.
    """
    if precision.keep_float32:
        encoder.register_forward_hook(_output_cast_to(precision.torch_dtype))
    return encoder


def keeping_softmax(kept: Kept) -> contextlib.AbstractContextManager[Any]:
    """Return a context in which a cast model computes its scores in float32, if that is asked for.

    Args:
        kept: of the model.
    """
    return _Float32Scores() if kept.softmax else contextlib.nullcontext()


class _Float32Scores(TorchFunctionMode):
    """Computes the scores of attention in 16 bits, and their softmax, in float32; its products stay as they are."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        given = args[0] if args else kwargs.get("query", kwargs.get("input"))
        if not isinstance(given, Tensor) or given.dtype not in (torch.float16, torch.bfloat16):
            return func(*args, **kwargs)
        if func is nn.functional.scaled_dot_product_attention:
            return _attention(*args, **kwargs)
        if func in (nn.functional.softmax, torch.softmax, Tensor.softmax):
            return func(*args, **{**kwargs, "dtype": torch.float32}).to(kwargs.get("dtype") or given.dtype)
        return func(*args, **kwargs)


def _attention(query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, **options: Any) -> Tensor:
    """Return scaled dot product attention whose scores are float32, in the dtype of the values.

    Args:
        query: [..., N, D].
        key: [..., M, D].
        value: [..., M, E].
        attn_mask: added to the scores, or bool with False for what is not to be seen.
        options: further ones of torch's own function, by name.

    Raises:
        RequestError: it drops out, or is causal.
    """
    if options.get("dropout_p") or options.get("is_causal"):
        raise RequestError("keep_float32 'softmax' knows no dropout and no causal attention: name modules in its place")
    if options.get("enable_gqa"):
        count = query.shape[-3] // key.shape[-3]
        key, value = key.repeat_interleave(count, -3), value.repeat_interleave(count, -3)
    scale = options.get("scale")
    scaled = query.float() * (query.shape[-1] ** -0.5 if scale is None else scale)
    scores = scaled @ key.float().transpose(-2, -1)
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        scores = scores.masked_fill(~attn_mask, torch.finfo(torch.float32).min / 2)
    elif attn_mask is not None:
        scores = scores + attn_mask.float()
    return scores.softmax(dim=-1).to(value.dtype) @ value


def _casting(dtype: torch.dtype) -> Callable[[Tensor], Tensor]:
    return lambda tensor: tensor.to(dtype) if tensor.is_floating_point() else tensor


def _inputs_cast_to(dtype: torch.dtype) -> Callable[..., Any]:
    return lambda module, args, kwargs: (_cast(args, dtype), _cast(kwargs, dtype))


def _first_cast_to(dtype: torch.dtype) -> Callable[..., Any]:
    """Return a hook that casts what a block is given to change, its first input, and not the mask beside it."""

    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if args:
            return (_cast(args[0], dtype), *args[1:]), kwargs
        name = next(name for name, value in kwargs.items() if isinstance(value, Tensor) and value.is_floating_point())
        return args, {**kwargs, name: _cast(kwargs[name], dtype)}

    return hook


def _output_cast_to(dtype: torch.dtype) -> Callable[..., Any]:
    return lambda module, args, output: _cast(output, dtype)


def _cast(value: Any, dtype: torch.dtype) -> Any:
    """Return a value with every floating tensor in it in a dtype; those that have it already as they are."""
    if isinstance(value, Tensor):
        return value.to(dtype) if value.is_floating_point() and value.dtype != dtype else value
    if isinstance(value, tuple | list):
        return type(value)(_each_cast(value, dtype))
    if isinstance(value, Mapping):
        for name, item in list(value.items()):  # in place: transformers' outputs are mappings of a class of their own
            value[name] = _cast(item, dtype)  # type: ignore[index]
    return value


def _each_cast(values: Any, dtype: torch.dtype) -> Iterator[Any]:
    yield from (_cast(value, dtype) for value in values)
