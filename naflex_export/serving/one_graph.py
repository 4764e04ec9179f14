"""`OneGraph`: a traced graph compiled once for all sizes that it was traced for, 1 among them.

torch.compile makes a graph for sizes of 1 and another for all larger ones. Here inductor is given the graph with the
open sizes that torch.export found, and asks no example for them, as AOTInductor does.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable, Hashable
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor, fx

from naflex_export.serving.graphs import Graphs, surroundings


class OneGraph:
    """A traced graph, compiled by its first call; once more where torch is in another state, such as another dtype.

    Where this torch cannot compile it so, it is compiled as `Graphs` does, a graph for each kind of call.

    Args:
        traced: the graph, flat tensors in and a tuple of them out, with the weights it reads.
        compiling: gives a context that it is compiled in.

    Attributes:
        why_several: why it is compiled as `Graphs` does, in words; empty where it is not.
    """

    def __init__(
        self,
        traced: fx.GraphModule,
        compiling: Callable[[], contextlib.AbstractContextManager[None]] = contextlib.nullcontext,
    ) -> None:
        self._traced, self._compiling = traced, compiling
        self._lock, self._compiled = threading.Lock(), dict[Hashable, Callable[..., Any]]()
        self._several: Graphs | None = None
        self.why_several = ""

    def run(self, kind: Hashable, *inputs: Tensor) -> Any:
        """Return what the graph returns for contiguous inputs. The first call compiles, one thread at a time.

        Args:
            kind: as for `Graphs`, of no meaning for one graph.
            inputs: of the graph, in order.
        """
        state = surroundings()
        if state not in self._compiled and self._several is None:
            with self._lock:
                if state not in self._compiled and self._several is None:
                    self._compile(state)
        if self._several is not None:
            return self._several.run(kind, *inputs)
        return self._compiled[state](*inputs)

    def _compile(self, state: Hashable) -> None:
        try:
            with self._compiling():
                self._compiled[state] = compiled(self._traced)
        except Exception as error:  # of any class: this is not what torch promises to anyone
            self.why_several = f"{type(error).__name__}: {error}"
            logging.getLogger("naflex_export").info(
                "single images get a compiled graph of their own: one for all sizes was refused (%s)", self.why_several
            )
            self._several = Graphs(self._traced, self._compiling)


def compiled(traced: fx.GraphModule) -> Callable[..., Any]:
    """Return a traced graph as inductor compiles it for all its sizes at once; the weights are shared with it.

    Args:
        traced: a graph of `torch.export`, whose values say which sizes are open. It is left as it is.
    """
    graph, weights = _with_weights_as_inputs(traced)
    examples = [node.meta["val"] for node in graph.graph.nodes if node.op == "placeholder"]
    _forget_hints_of_sums(examples[-1].fake_mode.shape_env)
    made = torch._inductor.standalone_compile(graph, examples, dynamic_shapes="from_graph")
    return lambda *inputs: made(*weights, *inputs)


def _with_weights_as_inputs(traced: fx.GraphModule) -> tuple[fx.GraphModule, list[Tensor]]:
    """Return a copy that takes its weights ahead of its inputs, and the weights: torch copies what a graph holds."""
    graph, taken = fx.Graph(), dict[fx.Node, fx.Node]()
    fake = next(node.meta["val"].fake_mode for node in traced.graph.nodes if node.op == "placeholder")
    weights, held = list[Tensor](), dict[str, fx.Node]()
    for node in traced.graph.nodes:
        value = attrgetter(node.target)(traced) if node.op == "get_attr" else None
        if not isinstance(value, Tensor):
            continue
        if node.target not in held:
            held[node.target] = graph.placeholder(f"weight_{len(weights)}")
            held[node.target].meta["val"] = fake.from_tensor(value.detach(), static_shapes=True)
            weights.append(value.detach())
        taken[node] = held[node.target]
    for node in traced.graph.nodes:
        if node not in taken:
            taken[node] = graph.node_copy(node, taken.__getitem__)
    return fx.GraphModule(traced, graph), weights


def _forget_hints_of_sums(shape_env: Any) -> None:
    """Take out of a loaded graph's sizes what is known of sums and products of them.

    torch 2.14 writes the hints of whole expressions where those of symbols are expected, and later stumbles over them.
    """
    hints = getattr(shape_env, "backed_var_to_val", {})
    for key in [key for key in hints if not key.is_symbol]:
        del hints[key]
