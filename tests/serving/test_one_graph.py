"""A traced graph is compiled once for all its sizes, and as torch.compile does where that is refused."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn
from torch.export import Dim

from naflex_export.serving import one_graph
from naflex_export.serving.one_graph import OneGraph

SIZES = [(1, 5), (2, 5), (4, 7), (1, 1), (3, 1)]
"""Of batch and tokens, in the order in which a server meets them."""


class Pooled(nn.Module):
    """A projection and a mean over valid tokens, in both of which a size of 1 could be taken for one to spread."""

    def __init__(self) -> None:
        super().__init__()
        self.proj = nn.Linear(6, 4)
        self.register_buffer("scale", torch.tensor([1.0, 2.0, 3.0, 4.0]))

    def forward(self, patches: Tensor, valid: Tensor) -> tuple[Tensor]:
        tokens = self.proj(patches) * self.scale
        return ((tokens * valid[..., None]).sum(dim=1) / valid.sum(dim=1, keepdim=True),)


def inputs(batch: int, tokens: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(batch * 100 + tokens)
    return torch.randn(batch, tokens, 6, generator=generator), torch.ones(batch, tokens)


@pytest.fixture
def traced() -> fx.GraphModule:
    torch.manual_seed(0)
    batch, tokens = Dim("batch", min=1, max=8), Dim("tokens", min=1, max=16)
    sizes = {0: batch, 1: tokens}
    return torch.export.export(Pooled().eval(), inputs(3, 11), dynamic_shapes=(sizes, sizes)).module(check_guards=False)


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Return what inductor was given to compile."""
    found: list[Any] = []
    compile_once: Callable[..., Any] = torch._inductor.standalone_compile

    def counted(graph: Any, *args: Any, **kwargs: Any) -> Any:
        found.append(graph)
        return compile_once(graph, *args, **kwargs)

    monkeypatch.setattr(torch._inductor, "standalone_compile", counted)
    return found


def test_threads_that_begin_with_any_sizes_compile_one_graph(traced: fx.GraphModule, made: list[Any]) -> None:
    graph, wrong = OneGraph(traced), list[Any]()

    def call(first: int) -> None:
        for sizes in SIZES[first:] + SIZES[:first]:
            with torch.no_grad():
                (found,), (expected,) = graph.run(None, *inputs(*sizes)), traced(*inputs(*sizes))
            if found.shape != expected.shape or not torch.allclose(found, expected, atol=1e-6):
                wrong.append((sizes, found, expected))

    threads = [threading.Thread(target=call, args=(first,)) for first in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == [] and len(made) == 1 and graph.why_several == ""
    assert not list(made[0].parameters()) and not list(made[0].buffers())  # torch copies what it is given


def test_it_is_compiled_as_ever_where_torch_refuses(
    traced: fx.GraphModule, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuses(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("expected a graph of another kind")

    asked: list[dict[str, Any]] = []
    monkeypatch.setattr(torch._inductor, "standalone_compile", refuses)
    monkeypatch.setattr(torch, "compile", lambda graph, **options: asked.append(options) or graph)
    graph = OneGraph(traced)
    with caplog.at_level("INFO", "naflex_export"):
        for sizes in SIZES:
            assert torch.equal(graph.run(sizes, *inputs(*sizes))[0], traced(*inputs(*sizes))[0])
    assert graph.why_several == "AssertionError: expected a graph of another kind"
    assert caplog.text.count("one for all sizes was refused (AssertionError: expected a graph of another kind)") == 1
    assert asked == [{"fullgraph": True, "dynamic": True}]


def test_a_torch_without_it_compiles_as_ever(traced: fx.GraphModule, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(torch._inductor, "standalone_compile")
    monkeypatch.setattr(torch, "compile", lambda graph, **options: graph)
    graph = OneGraph(traced)
    assert torch.equal(graph.run(None, *inputs(1, 5))[0], traced(*inputs(1, 5))[0])
    assert graph.why_several.startswith("AttributeError")


def test_hints_of_whole_expressions_are_forgotten() -> None:
    """Torch 2.14 has them in graphs that were saved and loaded, and then cannot compile those."""

    class Environment:
        backed_var_to_val: dict[Any, int]

    import sympy

    one, environment = sympy.Symbol("s1"), Environment()
    environment.backed_var_to_val = {one: 3, 48 * one: 144}
    one_graph._forget_hints_of_sums(environment)
    assert environment.backed_var_to_val == {one: 3}
