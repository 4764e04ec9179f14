"""Whether weights in float32 are numbers of 16 bits: stored so, or rounded by a copy that shares them.

`nx.vectorize(model).half().float()` rounds the parameters of `model` too. As a reference it would then agree with every
candidate made of the same rounded weights, and nothing would show what was lost. So `vectorize` remembers a few values
of each model that it was given. Where they are those values rounded, later, the model is no reference any more.
"""

from __future__ import annotations

import weakref

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

from naflex_export.errors import RequestError

NARROW = (torch.bfloat16, torch.float16)
"""Dtypes that weights may have been rounded to; what bfloat16 holds float16 often holds too, so it is asked first."""

_TENSORS, _VALUES = 16, 16
"""How many parameters of a model are remembered, and values of each: `.half()` rounds them all."""

_SEEN: weakref.WeakKeyDictionary[nn.Module, dict[str, Tensor]] = weakref.WeakKeyDictionary()


def remember(model: nn.Module) -> None:
    """Keep a few values of a model's weights, in float32, for `refuse_rounded`."""
    if rounded_since(model) is None and (sample := _sample(model)):
        _SEEN[model] = sample


def rounded_since(model: nn.Module) -> torch.dtype | None:
    """Return the dtype that a model's weights were rounded to since it was remembered; None if they were not."""
    before = _SEEN.get(model, {})
    now = _sample(model, narrow=True)
    if not before or before.keys() != now.keys():
        return None
    for dtype in NARROW:
        pairs = [(values.to(now[name].device), now[name]) for name, values in before.items()]
        if all(torch.equal(values.to(dtype).float(), found) for values, found in pairs):
            changed = any(not torch.equal(values, found) for values, found in pairs)
            return dtype if changed else None
    return None


def refuse_rounded(model: nn.Module) -> None:
    """Check that a reference has the weights that it had when it was vectorized, or others, and not those rounded.

    Raises:
        RequestError: they were rounded, by `.half()` or `.bfloat16()` on a copy that shares them, or on the model.
    """
    dtype = rounded_since(model)
    if dtype is not None:
        raise RequestError(
            f"the reference's weights were rounded to {_name(dtype)} since nx.vectorize or nx.compile was called with "
            "it: a copy shares its parameters, and .half() or .bfloat16() on one rounds them in both, which .float() "
            "does not undo. Load the model anew for a reference, or round a copy.deepcopy of it"
        )


def stored_precision(model: nn.Module) -> str:
    """Return the narrowest dtype that holds all of a model's weights exactly: "float32", "float16" or "bfloat16"."""
    there = (tensor.detach() for tensor in model.parameters() if not _is_unreal(tensor))
    weights = [tensor for tensor in there if tensor.is_floating_point()]
    for dtype in NARROW:
        if weights and all(torch.equal(tensor.to(dtype).to(tensor.dtype), tensor) for tensor in weights):
            return _name(dtype)
    return "float32"


def remark_on_precision(model: nn.Module) -> str:
    """Return what a user should know of weights that are stored wider than they are; empty for all others."""
    if not any(tensor.dtype == torch.float32 for tensor in model.parameters()):
        return ""
    found = stored_precision(model)
    if found == "float32":
        return ""
    return (
        f"every weight of the model is a number of {found}, although it is in float32: its checkpoint was stored so, "
        "or it was rounded (.half().float()), and then so is the reference"
    )


def _sample(model: nn.Module, narrow: bool = False) -> dict[str, Tensor]:
    """Return a few values of a few weights in float32; of those in 16 bits too where they are asked for."""
    dtypes = (torch.float32, *NARROW) if narrow else (torch.float32,)
    found: dict[str, Tensor] = {}
    for name, tensor in model.named_parameters():
        if tensor.dtype not in dtypes or _is_unreal(tensor):
            continue
        flat = tensor.detach().reshape(-1) if tensor.is_contiguous() else tensor.detach().flatten()
        found[name] = flat[:: max(1, flat.numel() // _VALUES)][:_VALUES].clone().float()
        if len(found) == _TENSORS:
            break
    return found


def _is_unreal(tensor: Tensor) -> bool:
    return tensor.is_meta or isinstance(tensor, FakeTensor) or type(tensor) not in (Tensor, nn.Parameter)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
