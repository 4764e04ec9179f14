"""`compile`: a live model, vectorized and under torch.compile."""

from __future__ import annotations

import inspect
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from naflex_export.batch import noise_batch
from naflex_export.errors import InputError, RequestError, UnsupportedModelError
from naflex_export.graph.intermediates import (
    Once,
    Shapes,
    Tapped,
    listening,
)
from naflex_export.grid import Bucket, Grid, check_buckets
from naflex_export.models import adapter_of, family_of, packed_of, towers_in
from naflex_export.models.adapter import ModelAdapter
from naflex_export.models.vectorize import vectorize
from naflex_export.serving.graphs import Graphs
from naflex_export.serving.input_formats import TransformersFormat, has_values
from naflex_export.serving.signature import UNREAD


class CompiledModel(nn.Module):
    """A vectorized model under `torch.compile`, one graph for any grid, batch size and token count.

    torch specializes a dimension of size 1, so a batch of one image gets a graph of its own: two in all, in each mode
    (train or eval, gradients on or off) that is used. Images of a single token would take two more, and are not worth
    them: they run uncompiled. Parameters, their names and `state_dict` keys are those of the model. Of a model of
    images and texts, the image tower is compiled and called.

    Attributes, methods and mode are the vectorized model's, read and set through; only a call is compiled, so
    `forward_features` runs uncompiled. Parameters and buffers are shared with the model that this was made from, and
    nothing else is: a call warns where that model's mode, layers or hooks have changed since.

    Attributes:
        model: the vectorized model; it shares the parameters of the model it was made from.
    """

    def __init__(
        self,
        model: nn.Module,
        buckets: Sequence[Bucket],
        strict: bool = False,
        packed: bool = False,
        **options: Any,
    ) -> None:
        super().__init__()
        if family_of(model) is None and (towers := towers_in(model)):
            raise UnsupportedModelError(
                f"{type(model).__qualname__} is compiled with its own forward: torch.compile(nx.vectorize(model)); "
                f"nx.compile takes the tower in it, nx.compile(model.{next(iter(towers))})"
            )
        self.model = vectorize(model, strict, packed)
        self._adapter = _adapter_of(self.model, packed)
        self._packed = packed
        self._buckets, self._options, self._strict = check_buckets(buckets), options, strict
        self._graphs: Graphs | None = None

    @property
    def _tower(self) -> nn.Module:
        """The part of the model that sees images."""
        return self._adapter.tower

    @property
    def training(self) -> bool:
        """Whether the vectorized model is in training mode."""
        model = self.__dict__.get("_modules", {}).get("model")
        return model is None or model.training

    @training.setter
    def training(self, mode: bool) -> None:
        if "model" in self.__dict__.get("_modules", {}):
            self.model.training = mode

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name in _OWN or "model" not in self.__dict__.get("_modules", {}):
                raise
            return getattr(self.model, name)

    def __setattr__(self, name: str, value: Any) -> None:
        made = "model" in self.__dict__.get("_modules", {})
        if not made or name in _OWN or name in self.__dict__ or hasattr(type(self), name):
            super().__setattr__(name, value)
        else:
            setattr(self.model, name, value)

    def __getstate__(self) -> dict[str, Any]:
        """Return what a copy or a file holds: all but what was compiled."""
        return {**self.__dict__, "_graphs": None, "_adapter": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        self._adapter = _adapter_of(self.model, self._packed)

    def forward(self, *inputs: Any, **named: Any) -> Any:
        """Return what the model returns, for its own inputs: tensors, by name or in order, or a mapping of them.

        Raises:
            InputError: an argument is not one that the model reads; or, of a strict model, the order of tokens is not
                row by row through a grid.
        """
        if torch.compiler.is_compiling():  # part of a larger graph, whose settings are not ours
            return self._tower(*inputs, **named)
        self._adapter.original.warn_of_changes()
        inputs, named = self._adapter.input_format.completed(inputs, named)
        given = {name: _plain(value) for name, value in self._arguments(inputs, named).items()}
        patches = next(iter(given.values()), None)
        self._check(given)
        if not isinstance(patches, Tensor) or patches.ndim < 2 or patches.shape[1] == 1:
            return self._tower(**given)
        if self._graphs is None:
            self._graphs = Graphs(self._tower, **self._options)
        kinds = [_kind(value) for value in given.values()]
        return self._graphs.run((self.training, *given, *kinds), **given)

    def _arguments(self, inputs: tuple[Any, ...], named: dict[str, Any]) -> dict[str, Any]:
        """Return the arguments of the tower's forward, by name.

        Raises:
            InputError: one is not known, or none at all is given.
        """
        signature = inspect.signature(self._tower.forward)
        first, takes_any = next(iter(signature.parameters)), False
        names = self._adapter.input_format.names
        for parameter in signature.parameters.values():
            takes_any |= parameter.kind is inspect.Parameter.VAR_KEYWORD
        if len(inputs) == 1 and isinstance(inputs[0], Mapping):
            given = {(first if name == names[0] else str(name)): value for name, value in inputs[0].items()}
            unread = [name for name in UNREAD if name in given and name not in signature.parameters]
            inputs, named = (), {**named, **{name: given[name] for name in given if name not in unread}}
        options = self._adapter.options
        known = {*signature.parameters, *(options or ())}
        for name in named:
            if name not in known and (not takes_any or options is not None):
                expected = ", ".join([*names, *(name for name in sorted(known) if name not in names)])
                raise InputError(f"{name!r} is nothing that the model reads: expected {expected}")
        try:
            bound = signature.bind(*inputs, **named)
        except TypeError as error:
            raise InputError(f"{error}: expected {', '.join(names)}") from error
        found: dict[str, Any] = {}
        for name, value in bound.arguments.items():
            kind = signature.parameters[name].kind
            if kind is inspect.Parameter.VAR_POSITIONAL:
                raise InputError(f"{len(inputs)} inputs were given in order: give them by name, {', '.join(names)}")
            found |= value if kind is inspect.Parameter.VAR_KEYWORD else {name: value}
        return found

    def _check(self, given: Mapping[str, Any]) -> None:
        """Check what a compiled graph does not look at: shapes on a CPU and, of a strict model, the tokens' order."""
        made = self._adapter.input_format
        others = made.names[1:]
        values: list[Any] = [next(iter(given.values()), None), *(given.get(name) for name in others)]
        if not all(isinstance(value, Tensor) and has_values(value) for value in values):
            return
        if isinstance(made, TransformersFormat):
            made.check_grids(values[2], values[0].shape[1])
        if self._strict:
            made.check_tokens(values)

    def warmup(self) -> CompiledModel:
        """Compile now what the first calls would compile, in the model's present mode, dtype and device; return self.

        Runs a batch of one and a batch of several, of each bucket's usual size, forward only.
        """
        parameter = next(self.model.parameters())
        width = self._adapter.token_width
        for bucket in self._buckets:
            for size in sorted({1, max(2, bucket.batch[1])}):
                batch = noise_batch("warmup", [Grid(1, bucket.tokens)] * size, bucket.tokens, width)
                inputs = [tensor.to(parameter.device) for tensor in self._adapter.input_format.arrange(batch)]
                inputs[0] = inputs[0].to(parameter.dtype)
                self(*inputs)
        return self

    def taps(self, inputs: tuple[Tensor, ...], modules: Shapes) -> Tapped:
        """Return the outputs of these modules, from the model compiled once more so that it gives them too."""
        tower, seen = self._tower, Once()

        def run(*inputs: Tensor) -> tuple[Any, dict[str, Tensor]]:
            given = tower(*inputs)
            return given, dict(seen.values)

        with listening(tower, modules, seen.take):
            given, values = Graphs(run, **self._options).run(None, *inputs)
        found = self._adapter.unpack(given)
        return Tapped(values, found if isinstance(found, dict) else {"features": found})

    def named_parameters(self, prefix: str = "", recurse: bool = True, remove_duplicate: bool = True) -> Any:
        """Return the model's own parameters, under the model's own names.

        Args:
            prefix: put ahead of each name.
            recurse: as of torch; without, none: all are the model's.
            remove_duplicate: as of torch.
        """
        if not recurse:
            return super().named_parameters(prefix, recurse, remove_duplicate)
        return self.model.named_parameters(prefix, recurse, remove_duplicate)

    def named_buffers(self, prefix: str = "", recurse: bool = True, remove_duplicate: bool = True) -> Any:
        """Return the model's own buffers, under the model's own names; arguments as of `named_parameters`."""
        if not recurse:
            return super().named_buffers(prefix, recurse, remove_duplicate)
        return self.model.named_buffers(prefix, recurse, remove_duplicate)

    def get_submodule(self, target: str) -> nn.Module:
        """Return a module by its name in the model, or in this wrapper."""
        try:
            return self.model.get_submodule(target)
        except AttributeError:
            return super().get_submodule(target)

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """Return the model's own state, under the model's own keys."""
        return self.model.state_dict(*args, **kwargs)

    def load_state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """Load a state under the model's own keys."""
        return self.model.load_state_dict(*args, **kwargs)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        """Take the model's own keys from a wrapper too, such as DistributedDataParallel, which loads child by child."""
        for key in [key for key in state_dict if key.startswith(prefix)]:
            state_dict[f"{prefix}model.{key.removeprefix(prefix)}"] = state_dict.pop(key)
        super()._load_from_state_dict(state_dict, prefix, *args)


_OWN = frozenset({"model", "_adapter", "_buckets", "_options", "_strict", "_packed", "_graphs", "forward"})
"""Attributes that are the wrapper's own."""


def _adapter_of(model: nn.Module, packed: bool) -> ModelAdapter:
    return packed_of(adapter_of(model)) if packed else adapter_of(model)


def _plain(value: Any) -> Any:
    """Return a tensor without torch's negative bit, which a compiled graph does not read; anything else as it is."""
    return value.resolve_neg() if isinstance(value, Tensor) and value.is_neg() else value


def _kind(value: Any) -> Hashable:
    """Return what of an argument a graph is made for."""
    if not isinstance(value, Tensor):
        return str(value)
    one = value.ndim > 0 and value.shape[0] == 1
    return value.dtype, value.ndim, one, value.requires_grad, value.is_inference(), value.is_contiguous()


def compile(
    model: nn.Module,
    buckets: Sequence[Bucket] | None = None,
    strict: bool = False,
    packed: bool = False,
    **options: Any,
) -> CompiledModel:
    """Return the model vectorized and compiled as one graph, ready for any grid; `.warmup()` compiles ahead.

    Args:
        model: a model that `vectorize` takes. Parameters are shared with it.
        buckets: shapes that `warmup` compiles with; every other shape is served by the same graphs.
        strict: refuse tokens that do not go row by row through a grid, as of `vectorize`.
        packed: take packs, as `nx.pack` makes them, as of `vectorize`.
        options: passed on to `torch.compile`, such as `mode="max-autotune"`.

    Raises:
        RequestError: `fullgraph` or `dynamic` is among the options; both are always on.
        UnsupportedModelError: the model, or one of its options, is not known to this release.
    """
    fixed = {"fullgraph", "dynamic"} & set(options)
    if fixed:
        raise RequestError(f"option {sorted(fixed)[0]!r} cannot be given: fullgraph and dynamic are always on")
    return CompiledModel(model, [Bucket()] if buckets is None else buckets, strict, packed, **options)
