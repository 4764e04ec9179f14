"""`Graphs`: a function under torch.compile that serves every call, whatever came before.

Left to itself, dynamo compiles a function anew for each mode, layout and thread that it meets, and gives up after
eight: with `fullgraph` that is an error, for good, and for ordinary requests too.
"""

from __future__ import annotations

import contextlib
import threading
import types
from collections.abc import Callable, Hashable, Iterator
from typing import Any

import torch
import torch.fx.experimental._config

RECOMPILE_LIMIT = 64
"""Most graphs of one function. Batches of one and of several, in train and eval mode, with gradients and without, under
autocast or not, in three dtypes make 48; eight, torch's own limit, is there to find code that never stops compiling."""

NOT_LOOKED_FOR = "found no compiled frames"
"""What torch (2.14) says now and then of a call beside others, though its graph is there: alone it is found."""


class Graphs:
    """A function compiled as one graph for any sizes; a graph of its own for each kind of call.

    Args:
        function: to compile; its cache is its own, even where it shares code with others.
        compiling: gives a context that the first call of each kind runs in.
        options: of torch.compile.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        compiling: Callable[[], contextlib.AbstractContextManager[None]] = contextlib.nullcontext,
        **options: Any,
    ) -> None:
        self._compiling = compiling
        self.compiled = torch.compile(_with_own_cache(function), fullgraph=True, dynamic=True, **options)
        self._lock, self._known = threading.RLock(), set[Hashable]()

    def run(self, kind: Hashable, *args: Any, **kwargs: Any) -> Any:
        """Return what the function returns. The first call of a kind compiles, one thread at a time.

        Args:
            kind: what calls that one graph serves have in common, besides their `surroundings`.
            args: of the function.
            kwargs: of the function.
        """
        known = kind, surroundings()
        if known in self._known:
            try:
                with _settings():
                    return self.compiled(*args, **kwargs)
            except RuntimeError as error:
                if NOT_LOOKED_FOR not in str(error):
                    raise
        with self._lock, _settings(), self._compiling():
            given = self.compiled(*args, **kwargs)
        self._known.add(known)
        return given


def surroundings() -> Hashable:
    """Return what of torch's state a graph is made for, besides its inputs."""
    autocast = [kind for kind in ("cpu", "cuda") if torch.is_autocast_enabled(kind)]
    return (
        torch.is_grad_enabled(),
        torch.is_inference_mode_enabled(),
        tuple((kind, torch.get_autocast_dtype(kind)) for kind in autocast),
        torch.get_default_dtype(),
        torch.are_deterministic_algorithms_enabled(),
        torch.get_num_threads(),
    )


@contextlib.contextmanager
def _settings() -> Iterator[None]:
    """Let torch compile as often as is needed, and no more.

    With `dynamic`, torch would make inputs of the model's float attributes, such as a drop rate: it then compiles a
    training graph twice, and fails where a size depends on one inside a checkpoint (torch 2.14). And it would take two
    sizes for the same that happen to be equal in the first call: two images for the two axes of a coordinate.
    """
    dynamo: Any = torch._dynamo.config
    shapes: Any = torch.fx.experimental._config
    with (
        _set(dynamo, specialize_float=True, recompile_limit=RECOMPILE_LIMIT),
        _set(shapes, use_duck_shape=False),
    ):
        yield


@contextlib.contextmanager
def _set(config: Any, **values: Any) -> Iterator[None]:
    """Set options of torch's for a while. Its own `patch` (2.14) keeps 400 bytes of each use for ever."""
    before = {name: getattr(config, name) for name in values}
    try:
        for name, value in values.items():
            setattr(config, name, value)
        yield
    finally:
        for name, value in before.items():
            setattr(config, name, value)


def _with_own_cache(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function of the same meaning whose graphs count for it alone: dynamo counts by code."""

    def call(*args: Any, **kwargs: Any) -> Any:
        return function(*args, **kwargs)

    return types.FunctionType(call.__code__.replace(), call.__globals__, call.__name__, None, call.__closure__)
