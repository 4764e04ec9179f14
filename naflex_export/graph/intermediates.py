"""Taps: what the modules of a model give in one run, by their names; in a live model, or in a graph made of it."""

from __future__ import annotations

import contextlib
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol, TypeVar, runtime_checkable

import torch
from torch import Tensor, nn

T = TypeVar("T")
Shapes = Mapping[str, torch.Size]
"""The shape of each module's output on a batch, by the module's name."""


@dataclass(frozen=True)
class Tapped:
    """What a candidate showed of its modules in one run.

    Attributes:
        values: a module's output, by its name in the model; modules that cannot be told apart are left out.
        outputs: the outputs of that same run, by name.
        instead: what ran, where it was not the candidate itself.
        unavailable: why there are no values; empty where there are.
    """

    values: Mapping[str, Tensor] = field(default_factory=dict)
    outputs: Mapping[str, Tensor] = field(default_factory=dict)
    instead: str = ""
    unavailable: str = ""


@runtime_checkable
class CanBeTapped(Protocol):
    """A candidate that shows its modules itself: a compiled model, or a callable of your own."""

    def taps(self, inputs: tuple[Tensor, ...], modules: Shapes) -> Tapped:
        """Return the outputs of these modules for a batch, of as many of them as it can show."""


def tap_names(tower: nn.Module) -> list[str]:
    """Return the modules to tap: all outside of the blocks, and of a block itself and what it directly consists of.

    Within `blocks.7.attn` there is more, `blocks.7.attn.qkv`; it would triple what has to be held in memory.
    """
    return [name for name, _ in tower.named_modules() if name and _is_tapped(name.split("."))]


def _is_tapped(parts: list[str]) -> bool:
    block = next((index for index, part in enumerate(parts) if part.isdecimal()), len(parts))
    return len(parts) <= block + 2


@contextlib.contextmanager
def listening(tower: nn.Module, modules: Collection[str], take: Callable[[str, Tensor], None]) -> Iterator[None]:
    """Call `take` with the name and output of each of these modules, as they complete, for as long as the block runs.

    A module that hands on what it was given, such as an identity or a dropout in eval mode, is left out. `take` must
    copy what it keeps: timm adds the position embedding in place to what `embeds.proj` gave.

    Args:
        tower: the part of a model that sees images.
        modules: names of the modules in it.
        take: called with a module's name and its output.
    """

    def hook_of(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            found = main_tensor(output)
            if found is not None and not any(found is given for given in inputs):
                take(name, found.detach())

        return hook

    handles = [module.register_forward_hook(hook_of(name)) for name, module in tower.named_modules() if name in modules]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def main_tensor(output: Any) -> Tensor | None:
    """Return the tensor that a module's output is about: itself, or the first of a tuple or of transformers' dict."""
    if isinstance(output, Mapping):
        output = tuple(output.values())
    while isinstance(output, tuple | list) and output:
        output = output[0]
    return output if isinstance(output, Tensor) and output.is_floating_point() else None


class Once:
    """Keeps a value for each module, in order; of one that runs several times in a forward, none."""

    def __init__(self) -> None:
        self.values: dict[str, Tensor] = {}
        self._several: set[str] = set()

    def take(self, name: str, value: Tensor) -> None:
        """Keep a copy of a value, unless there was one by this name."""
        if name in self.values or name in self._several:
            self._several.add(name)
            self.values.pop(name, None)
        else:
            self.values[name] = value.clone()


@dataclass(frozen=True)
class Place:
    """Where in a model a node of a graph belongs.

    Attributes:
        modules: the modules that the value is in, from the innermost to the outermost; none for the model's own code.
        certain: whether those are all; if not, it may be in further modules.
    """

    modules: frozenset[str] = frozenset()
    certain: bool = True

    @classmethod
    def of(cls, scopes: Sequence[str], readers: Sequence[Place]) -> Place:
        """Return the place of a node.

        Args:
            scopes: what the exporter noted, such as `model.blocks.7.attn`: every encoder holds its model as `model`.
                Nothing, or torch's own mark for that, where it made the node up itself.
            readers: the places of what reads the node. Without notes it is in every module that they are all in:
                nothing returns into a module once that has ended.
        """
        if scopes and not any(scope.startswith("_empty_nn_module_stack") for scope in scopes):
            names = (scope.removeprefix("model").removeprefix(".") for scope in scopes)
            return cls(frozenset(name for name in names if name))
        shared = frozenset.intersection(*(reader.modules for reader in readers)) if readers else frozenset()
        return cls(shared, certain=False)


OUTSIDE = Place()
"""Of what reads an output of a graph."""


@dataclass(frozen=True)
class Edge(Generic[T]):
    """A floating value in a graph, the place of the node that makes it, and those of its readers."""

    value: T
    made_in: Place
    read_in: tuple[Place, ...]


def module_outputs(edges: Iterable[Edge[T]]) -> dict[str, list[T]]:
    """Return what may be the output of each module of a graph: the values that are made inside it and read outside.

    There are several where exporters compute once what two modules need. A module is left out where what reads one may
    be the rest of the module.
    """
    leaving: dict[str, list[T]] = defaultdict(list)
    unsure: set[str] = set()
    for edge in edges:
        for module in edge.made_in.modules:
            outside = [reader for reader in edge.read_in if module not in reader.modules]
            if outside:
                leaving[module].append(edge.value)
            if not all(reader.certain for reader in outside):
                unsure.add(module)
    return {name: values for name, values in leaving.items() if name not in unsure}


def fitting(found: Iterable[tuple[str, Tensor]], modules: Shapes) -> dict[str, Tensor]:
    """Return the value of each module, of those found, that has the shape of its output; none where several have."""
    fits: dict[str, list[Tensor]] = defaultdict(list)
    for name, value in found:
        if value.shape == modules[name]:
            fits[name].append(value)
    return {name: values[0] for name, values in fits.items() if len(values) == 1}
