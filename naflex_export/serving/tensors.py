"""Inputs and outputs as torch has them: which can be used, and how they are brought into one form."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from naflex_export.serving.signature import Kind, Specs, TensorSpec


def plain(tensor: Tensor, device: torch.device) -> Tensor:
    """Return a checked input as the one kind of tensor that backends and compilers need to know.

    It is on the device, contiguous, of no gradient, not of a subclass, without torch's negative bit, and not bound to
    inference mode. Memory is shared with the input where the input lies like that.

    Args:
        tensor: checked by `check_inputs`.
        device: where it is to be.
    """
    with torch._C.DisableTorchFunction():
        found = tensor.detach().to(device).resolve_neg().contiguous()
        alone = torch.empty(0, dtype=found.dtype, device=found.device)
        return alone.set_(found.untyped_storage(), found.storage_offset(), found.shape, _strides_of(found.shape))


def _strides_of(shape: torch.Size) -> tuple[int, ...]:
    """Return a contiguous tensor's strides; torch itself leaves those of axes of size 1 as they come."""
    return tuple(math.prod(shape[axis + 1 :]) for axis in range(len(shape)))


def unusable(tensor: Tensor) -> str:
    """Return what kind of tensor it is that no artifact can be run on; empty for one that can be.

    Args:
        tensor: to look at.
    """
    if torch._C._functorch.is_functorch_wrapped_tensor(tensor):
        return "inside a transform of torch.func, such as grad or vmap, which no artifact takes part in"
    if tensor.is_nested:
        return "a nested tensor"
    if tensor.is_meta:
        return "on the meta device"
    if tensor.is_quantized or tensor.layout != torch.strided:
        return f"quantized or {str(tensor.layout).removeprefix('torch.')}"
    if type(tensor).__torch_dispatch__ is not Tensor.__torch_dispatch__:
        return f"a {type(tensor).__qualname__}, a stand-in for another tensor"
    return ""


def _why_unusable(tensor: Tensor) -> str:
    found = unusable(tensor)
    return f"{found}: expected a plain tensor of strided memory, with values" if found else ""


TENSORS = Kind("a torch tensor", Tensor, ".to(torch.DTYPE)", _why_unusable)


def padded(specs: Specs, tensors: Sequence[Tensor], dim: str) -> tuple[Tensor, ...]:
    """Return inputs with one more row of zeros along a named dimension.

    Args:
        specs: of the inputs.
        tensors: the inputs.
        dim: the dimension's name.
    """
    made = []
    for spec, tensor in zip(specs, tensors, strict=True):
        axis = spec.axis_of(dim)
        after = 0 if axis is None else tensor.ndim - axis - 1
        made.append(tensor if axis is None else torch.nn.functional.pad(tensor, (0, 0) * after + (0, 1)))
    return tuple(made)


def without_last(spec: TensorSpec, tensor: Tensor, dim: str) -> Tensor:
    """Return an output without its last row along a named dimension; the whole of it where it has no such one.

    Args:
        spec: of the output.
        tensor: the output.
        dim: the dimension's name.
    """
    axis = spec.axis_of(dim)
    return tensor if axis is None else tensor.narrow(axis, 0, tensor.shape[axis] - 1)
