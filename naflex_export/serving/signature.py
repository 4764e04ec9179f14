"""What a graph or an artifact takes and gives: named tensors with named dimensions.

A dimension is a number, or the name of a size that is open, such as `batch` and `tokens`; of an output it may also be
an expression of names, such as `4 + tokens`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from naflex_export.errors import InputError


@dataclass(frozen=True)
class TensorSpec:
    """Name, dtype and shape of a graph's input or output."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]

    def at(self, sizes: Mapping[str, int]) -> tuple[int, ...]:
        """Return an input's shape with numbers in place of the names of its dimensions."""
        return tuple(sizes[dim] if isinstance(dim, str) else dim for dim in self.shape)

    def axis_of(self, name: str) -> int | None:
        """Return the axis whose size is the named one, or computed from it; None where there is none."""
        return next((axis for axis, dim in enumerate(self.shape) if name in re.findall(r"[^\W\d]\w*", str(dim))), None)

    def __str__(self) -> str:
        return f"{self.name}: {self.dtype} [{', '.join(map(str, self.shape))}]"


Specs = Sequence[TensorSpec]

UNREAD = ("seq_len",)
"""What timm's collator puts beside the inputs and its models do not read."""


def sizes_of(specs: Specs, tensors: Sequence[Tensor]) -> dict[str, int]:
    """Return the sizes of the named dimensions of inputs that fit their specs."""
    sizes: dict[str, int] = {}
    for spec, tensor in zip(specs, tensors, strict=True):
        named = zip(spec.shape, tensor.shape, strict=True)
        sizes |= {dim: size for dim, size in named if isinstance(dim, str)}
    return sizes


def in_order(specs: Specs, inputs: Sequence[object], named: Mapping[str, object]) -> tuple[object, ...]:
    """Return inputs in the order of their specs, from those given in order, by name, or as one mapping of names.

    Args:
        specs: of the inputs.
        inputs: given in order; or one mapping.
        named: given by name.

    Raises:
        InputError: a name is unknown, missing or given twice.
    """
    first = inputs[0] if len(inputs) == 1 else None
    if isinstance(first, Mapping):
        twice = sorted(set(map(str, first)) & set(named))
        if twice:
            raise InputError(f"{twice[0]} was given twice, in the mapping and by name: give it once")
        inputs, named = (), {**first, **named}
    if not named:
        return tuple(inputs)
    names = [spec.name for spec in specs]
    left = names[len(inputs) :]
    for name in named:
        if name in names and name not in left:
            raise InputError(f"{name} was given twice, in order and by name: give it once")
        if name not in left and name not in UNREAD:
            raise InputError(f"{name!r} is no input of this artifact: expected {', '.join(names)}")
    missing = [name for name in left if name not in named]
    if missing:
        raise InputError(f"input {missing[0]} is missing: expected {', '.join(names)}")
    return (*inputs, *(named[name] for name in left))


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


def check_inputs(specs: Specs, tensors: Sequence[object]) -> dict[str, int]:
    """Check inputs against their specs, and return the sizes of their named dimensions.

    Raises:
        InputError: there are too many or too few, or the type, dtype, rank or shape of one is not what its spec says.
    """
    if len(tensors) != len(specs):
        names = ", ".join(spec.name for spec in specs)
        raise InputError(f"got {len(tensors)} inputs: expected {len(specs)}, {names}")
    sizes: dict[str, int] = {}
    for spec, tensor in zip(specs, tensors, strict=True):
        _check_one(spec, tensor, sizes)
    return sizes


def _check_one(spec: TensorSpec, tensor: object, sizes: dict[str, int]) -> None:
    """Check one input against its spec, and note the sizes of its named dimensions."""
    if not isinstance(tensor, Tensor):
        raise InputError(f"{spec.name} is a {type(tensor).__name__}: expected a torch tensor")
    kind = unusable(tensor)
    if kind:
        raise InputError(f"{spec.name} is {kind}: expected a plain tensor of strided memory, with values")
    dtype = str(tensor.dtype).removeprefix("torch.")
    if dtype != spec.dtype:
        raise InputError(f"{spec.name} is {dtype}: expected {spec.dtype}; cast it with .to(torch.{spec.dtype})")
    if tensor.ndim != len(spec.shape):
        raise InputError(f"{spec.name} has shape {list(tensor.shape)}: expected {len(spec.shape)} axes, {spec}")
    for size, expected in zip(tensor.shape, spec.shape, strict=True):
        known = sizes.setdefault(expected, size) if isinstance(expected, str) else expected
        if size != known or size == 0:
            wanted = f"{expected}={known}" if isinstance(expected, str) else str(known)
            raise InputError(f"{spec.name} has shape {list(tensor.shape)}: expected {wanted}, {spec}")


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
