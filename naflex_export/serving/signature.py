"""What a graph or an artifact takes and gives: named tensors with named dimensions.

A dimension is a number, or the name of a size that is open, such as `batch` and `tokens`; of an output it may also be
an expression of names, such as `4 + tokens`.
"""

from __future__ import annotations

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


def sizes_of(specs: Specs, tensors: Sequence[Tensor]) -> dict[str, int]:
    """Return the sizes of the named dimensions of inputs that fit their specs."""
    sizes: dict[str, int] = {}
    for spec, tensor in zip(specs, tensors, strict=True):
        named = zip(spec.shape, tensor.shape, strict=True)
        sizes |= {dim: size for dim, size in named if isinstance(dim, str)}
    return sizes


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
