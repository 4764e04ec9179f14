"""What a graph or an artifact takes and gives: named tensors with named dimensions.

A dimension is a number, or the name of a size that is open, such as `batch` and `tokens`, or one more than it, as in
`images + 1`, or a multiple of it, as in `4*tokens`; of an output it may be any expression of names, as `4 + tokens`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from naflex_export.errors import InputError
from naflex_export.grid import Bucket


@dataclass(frozen=True)
class TensorSpec:
    """Name, dtype and shape of a graph's input or output."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]

    def at(self, sizes: Mapping[str, int]) -> tuple[int, ...]:
        """Return an input's shape with numbers in place of the names of its dimensions."""
        return tuple(OpenSize.of(dim).at(sizes) if isinstance(dim, str) else dim for dim in self.shape)

    def axis_of(self, name: str) -> int | None:
        """Return the axis whose size is the named one, or computed from it; None where there is none."""
        return next((axis for axis, dim in enumerate(self.shape) if name in re.findall(r"[^\W\d]\w*", str(dim))), None)

    def __str__(self) -> str:
        return f"{self.name}: {self.dtype} [{', '.join(map(str, self.shape))}]"


Specs = Sequence[TensorSpec]

UNREAD = ("seq_len",)
"""What timm's collator puts beside the inputs and its models do not read."""


def sizes_of(specs: Specs, tensors: Sequence[Any]) -> dict[str, int]:
    """Return the sizes of the named dimensions of inputs that fit their specs."""
    sizes: dict[str, int] = {}
    for spec, tensor in zip(specs, tensors, strict=True):
        named = zip(spec.shape, tensor.shape, strict=True)
        opened = ((OpenSize.of(dim), size) for dim, size in named if isinstance(dim, str))
        sizes |= {found.name: (size - found.more) // found.factor for found, size in opened}
    return sizes


class OpenSize(NamedTuple):
    """An open dimension of an input: a named size, times a factor, and perhaps one more.

    Offsets have an end more than there are images; a token of some models is merged of four patches.
    """

    name: str
    factor: int = 1
    more: int = 0

    @classmethod
    def of(cls, dim: str) -> OpenSize:
        """Return the dimension as it is written, such as `tokens`, `4*tokens` or `images + 1`."""
        name, more = dim.removesuffix(_ONE_MORE), dim.endswith(_ONE_MORE)
        factor, times, rest = name.partition("*")
        return cls(rest, int(factor), int(more)) if times else cls(name, 1, int(more))

    def at(self, sizes: Mapping[str, int]) -> int:
        """Return the dimension where the sizes of all names are known."""
        return self.factor * sizes[self.name] + self.more


_ONE_MORE = " + 1"


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


@dataclass(frozen=True)
class Kind:
    """What inputs are made of: torch's tensors, or numpy's arrays.

    Attributes:
        name: of one, in messages.
        type: of all of them.
        cast: how one is cast to a dtype, `DTYPE` in its place.
        why_unusable: returns what is wrong with one beyond dtype and shape, in words; empty where nothing is.
    """

    name: str
    type: type[Any]
    cast: str
    why_unusable: Callable[[Any], str]


ARRAYS = Kind("a numpy array", np.ndarray, ".astype('DTYPE')", lambda array: "")


def check_inputs(specs: Specs, tensors: Sequence[object], kind: Kind) -> dict[str, int]:
    """Check inputs against their specs, and return the sizes of their named dimensions.

    Args:
        specs: of the inputs.
        tensors: the inputs.
        kind: what they are to be.

    Raises:
        InputError: there are too many or too few, or the type, dtype, rank or shape of one is not what its spec says.
    """
    if len(tensors) != len(specs):
        names = ", ".join(spec.name for spec in specs)
        raise InputError(f"got {len(tensors)} inputs: expected {len(specs)}, {names}")
    sizes: dict[str, int] = {}
    for spec, tensor in zip(specs, tensors, strict=True):
        _check_one(spec, tensor, kind, sizes)
    return sizes


def _check_one(spec: TensorSpec, tensor: Any, kind: Kind, sizes: dict[str, int]) -> None:
    """Check one input against its spec, and note the sizes of its named dimensions."""
    if not isinstance(tensor, kind.type):
        raise InputError(f"{spec.name} is a {type(tensor).__name__}: expected {kind.name}")
    if unusable := kind.why_unusable(tensor):
        raise InputError(f"{spec.name} is {unusable}")
    check_dtype(spec.name, str(tensor.dtype).removeprefix("torch."), spec.dtype, kind)
    if tensor.ndim != len(spec.shape):
        raise InputError(f"{spec.name} has shape {list(tensor.shape)}: expected {len(spec.shape)} axes, {spec}")
    for size, expected in zip(tensor.shape, spec.shape, strict=True):
        if isinstance(expected, str):
            opened = OpenSize.of(expected)
            if (size - opened.more) % opened.factor:
                raise InputError(
                    f"{spec.name} has shape {list(tensor.shape)}: expected a multiple of {opened.factor}, {spec}"
                )
            sizes.setdefault(opened.name, (size - opened.more) // opened.factor)
            known = opened.at(sizes)
        else:
            known = expected
        if size != known or size == 0:
            named = f"{expected}={known}" if isinstance(expected, str) else str(known)
            wanted = named if size else f"1 or more of {expected}"
            raise InputError(f"{spec.name} has shape {list(tensor.shape)}: expected {wanted}, {spec}")


def check_dtype(name: str, dtype: str, expected: str, kind: Kind) -> None:
    """Check the dtype of an input.

    Args:
        name: of the input.
        dtype: its own.
        expected: what it is to be.
        kind: what the inputs are.

    Raises:
        InputError: it is another.
    """
    if dtype != expected:
        cast = kind.cast.replace("DTYPE", expected)
        raise InputError(f"{name} is {dtype}: expected {expected}; cast it with {cast}")


def check_sizes(buckets: Sequence[Bucket], sizes: Mapping[str, int]) -> None:
    """Check that a bucket takes inputs of these sizes, by the names of their dimensions.

    Args:
        buckets: that an artifact serves.
        sizes: of the inputs.

    Raises:
        InputError: none does.
    """
    served, (batch, tokens) = ", ".join(map(str, buckets)), (sizes["batch"], sizes["tokens"])
    if not any(tokens <= bucket.dims["tokens"].largest for bucket in buckets):
        raise InputError(
            f"{tokens} tokens are more than any bucket takes ({served}): "
            "export again with a larger --bucket, or resize the images to fewer patches "
            "(docs/errors.md#no-bucket-takes-a-batch)"
        )
    if not any(bucket.takes(sizes) for bucket in buckets):
        raise InputError(
            f"a batch of {batch} with {tokens} tokens fits no bucket ({served}, as tokens:min,opt,max): "
            "split the batch, or export again with another --bucket (docs/errors.md#no-bucket-takes-a-batch)"
        )
