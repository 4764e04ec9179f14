"""Which layers of a model are quantized, and the same model eagerly with just those layers quantized.

Quantized are the linear layers of the blocks, where nearly all of the work is. All else stays in more digits: position
arithmetic and the patch embedding, norms, softmax and the products of attention, pooling and the head.

The eager form is the gate's baseline, and shares nothing with the graph that is judged: it takes its scales from the
values at hand, where a graph has them from calibration.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

import torch
from torch import Tensor, nn

from naflex_export.errors import RequestError
from naflex_export.models.encoder_adapter import EncoderAdapter
from naflex_export.models.kept_parts import blocks_of, close_names, is_within, kept_of, no_pattern
from naflex_export.precision import Precision

LARGEST = {"int8": 127.0, "fp8": 448.0}
"""The largest number of each kind; of FP8 in its form with 4 bits of exponent and 3 of mantissa."""


def quantized_layers(adapter: EncoderAdapter, precision: Precision) -> tuple[str, ...]:
    """Return the names of the layers of a model's tower that a precision quantizes, in their order.

    Args:
        adapter: of the model, or of a copy of it in any dtype.
        precision: which may keep some of them.

    Raises:
        RequestError: there is no such layer, a name that is to be kept is none of a module, changes nothing, or nothing
            is left to be quantized; or a layer is to be in float32 as well.
    """
    if not precision.quantized:
        return ()
    modules, blocks = dict(adapter.tower.named_modules()), blocks_of(adapter)
    layers = [name for name in modules if is_within(name, blocks) and isinstance(modules[name], nn.Linear)]
    if not layers:
        raise RequestError(f"dtype {precision.quantized!r} quantizes linear layers of blocks, and this model has none")
    for name in precision.keep_unquantized:
        if name not in modules:
            close = close_names(name, filter(None, modules)) or [*blocks[:1], *layers[:2]]
            raise RequestError(
                f"keep_unquantized {name!r} is no module of this model{no_pattern(name)}: expected a module's name, "
                f"such as {', '.join(close)}"
            )
        others = [other for other in precision.keep_unquantized if other != name]
        if not any(is_within(layer, [name]) and not is_within(layer, others) for layer in layers):
            raise RequestError(
                f"keep_unquantized {name!r} changes nothing: of it alone no layer would be quantized, which linear "
                f"layers of blocks are, such as {layers[0]}; leave it out"
            )
    left = tuple(layer for layer in layers if not is_within(layer, precision.keep_unquantized))
    if not left:
        raise RequestError(
            f"keep_unquantized {','.join(precision.keep_unquantized)!r} leaves no layer to be quantized: keep less, or "
            "export with --dtype float16"
        )
    kept = kept_of(adapter, precision)
    for layer in left:
        if kept.holds(layer):
            raise RequestError(
                f"keep_float32 {','.join(precision.keep_float32)!r} holds {layer}, which is quantized to "
                f"{precision.quantized}: expected what is kept in float32 to be kept unquantized too "
                f"(--keep-unquantized), or to be none of the linear layers of blocks"
            )
    return left


def quantize_eagerly(adapter: EncoderAdapter, layers: Collection[str], kind: str) -> list[Any]:
    """Round the weights of these layers, in place, and the inputs of each at each call; return the hooks' handles.

    Each output channel of a weight has a scale of its own, and an input one for all of it, from its largest value.

    Args:
        adapter: of a copy of the model that nobody else has.
        layers: names in its tower.
        kind: "int8" or "fp8".
    """
    handles = []
    for name in layers:
        layer = adapter.tower.get_submodule(name)
        assert isinstance(layer, nn.Linear)
        with torch.no_grad():
            layer.weight.copy_(rounded_to(kind, layer.weight, layer.weight.abs().amax(dim=1, keepdim=True)))
        handles.append(layer.register_forward_pre_hook(_input_rounded_to(kind)))
    return handles


def rounded_to(kind: str, values: Tensor, largest: Tensor) -> Tensor:
    """Return values as 8 bits hold them, in their own dtype.

    Args:
        kind: "int8" or "fp8".
        values: of any shape.
        largest: magnitude that the largest number stands for, to be broadcast; larger ones become it.
    """
    scale = largest.float().clamp(min=torch.finfo(torch.float32).tiny) / LARGEST[kind]
    scaled = (values.float() / scale).clamp(-LARGEST[kind], LARGEST[kind])
    held = scaled.round() if kind == "int8" else scaled.to(torch.float8_e4m3fn).float()
    return (held * scale).to(values.dtype)


def _input_rounded_to(kind: str) -> Callable[..., Any]:
    def hook(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (rounded_to(kind, args[0], args[0].abs().amax()), *args[1:])

    return hook
