"""What stands in the way of an export or a judgement, found before anything is built: the caller's modes, and wrappers.

Each is named with its remedy. Left alone, they end in errors of torch.export that speak of something else, or in a
reference that is not in float32.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from naflex_export.errors import RequestError, UnsupportedModelError


def refuse_modes(what: str) -> None:
    """Check that the caller is in none of torch's modes that change what a model computes.

    Args:
        what: is about to be done, for the message.

    Raises:
        RequestError: it is in inference mode, or under autocast.
    """
    if torch.is_inference_mode_enabled():
        raise RequestError(f"{what} was called inside torch.inference_mode(): call it outside of that block")
    for kind in ("cpu", "cuda"):
        if torch.is_autocast_enabled(kind):
            raise RequestError(
                f"{what} was called under torch.autocast({kind!r}), which would round the reference too: call it "
                "outside of that block, and ask for dtype='float16' or 'bfloat16'"
            )


def refuse_uncopied(model: nn.Module) -> None:
    """Check that no library has put on a model what a copy that shares its parameters cannot have too.

    Args:
        model: to be copied.

    Raises:
        UnsupportedModelError: one has; the message names what was found, and the remedy.
    """
    for name, module in model.named_modules():
        held, where, kind = vars(module), name or "the model", type(module)
        if "_hf_hook" in held:
            raise UnsupportedModelError(
                f"accelerate has put a hook on {where} (device_map, offloading): load the model without device_map, or "
                "call accelerate.hooks.remove_hook_from_module(model, recurse=True) with all weights in memory"
            )
        if kind.__module__.startswith("bitsandbytes"):
            raise UnsupportedModelError(
                f"{where} is a {kind.__module__}.{kind.__qualname__}, a quantized layer, which changes its weight when "
                "it is moved or called: give the model as it was before it was quantized"
            )
        if held.get("qconfig") is not None:
            raise UnsupportedModelError(
                f"{where} has a qconfig: it is prepared to be quantized by torch.ao. Give the model as it was before, "
                "and quantize what comes of it"
            )


def refuse_unexportable(model: nn.Module) -> None:
    """Check that a model is one of plain tensors and layers that a graph can be traced with.

    Args:
        model: to be exported.

    Raises:
        UnsupportedModelError: it is not; the message names what was found, and the remedy.
    """
    refuse_not_plain(model)
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if tensor.is_inference():
            raise UnsupportedModelError(
                f"{name} was made inside torch.inference_mode(), and no graph can be traced with it: make or load the "
                "model outside of that block"
            )


def refuse_not_plain(model: nn.Module) -> None:
    """Check that a model is one of plain tensors and layers, with no wrapper of another library on it.

    Args:
        model: to be exported, or a reference.

    Raises:
        UnsupportedModelError: it is not; the message names what was found, and the remedy.
    """
    refuse_uncopied(model)
    for name, module in model.named_modules():
        held, where = vars(module), name or "the model"
        if "_original_forward" in held:
            raise UnsupportedModelError(
                f"{where} was prepared by accelerate, which put its own forward on it: pass "
                "accelerator.unwrap_model(model, keep_fp32_wrapper=False)"
            )
        kind = type(module)
        if any(part in kind.__module__ for part in ("ao.nn", "nn.quantized", "torchao", "bitsandbytes")):
            raise UnsupportedModelError(
                f"{where} is a quantized layer, {kind.__module__}.{kind.__qualname__}: export the model as it was "
                "before it was quantized, and quantize what comes of it"
            )
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if tensor.is_quantized or type(tensor).__torch_dispatch__ is not Tensor.__torch_dispatch__:
            raise UnsupportedModelError(
                f"{name} is a {type(tensor).__qualname__}, quantized or spread over devices: export the model as it "
                "was before, with plain tensors"
            )
        if tensor.is_meta:
            raise UnsupportedModelError(f"{name} has no values, it is on the meta device: load the weights first")
