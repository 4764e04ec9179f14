"""torch.compile: `model.pt2`, the traced graph, compiled where it is loaded."""

from __future__ import annotations

import io
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from naflex_export.graph.build_settings import BuildSettings
from naflex_export.graph.intermediates import (
    OUTSIDE,
    Edge,
    Place,
    Shapes,
    Tapped,
    fitting,
    module_outputs,
)
from naflex_export.graph.program import Program
from naflex_export.precision import Precision
from naflex_export.serving.compile_runner import FILE, CompileRunner
from naflex_export.serving.manifest import Manifest
from naflex_export.serving.signature import sizes_of
from naflex_export.targets import StandIn

PACKAGES = ("torch",)


def require_build() -> None:
    """Ask for nothing: torch is always there."""


def build(program: Program, folder: Path, settings: BuildSettings) -> dict[str, Any]:
    settings.announce("saving the traced graph")
    content = io.BytesIO()  # torch's own writer ends the process where the disk is full
    torch.export.save(program.exported, content)
    (folder / FILE).write_bytes(content.getbuffer())
    return {"compiled": "where it is loaded"}


def cannot_run(precision: Precision) -> str:
    return ""


def stand_in(folder: Path, manifest: Manifest) -> StandIn | None:
    return None


def as_on_gpu(runner: CompileRunner) -> None:
    return None


def taps(runner: CompileRunner, inputs: tuple[Tensor, ...], modules: Shapes) -> Tapped:
    """Return modules' outputs from a copy of the graph that gives them too, compiled like it.

    Args:
        runner: of the artifact.
        inputs: as for a call of it; they are not checked.
        modules: to look at, by name, with the shapes of their outputs.
    """
    graph = runner.traced()
    names = tap_modules(graph, modules)
    inputs = tuple(tensor.to(runner.device) for tensor in inputs)
    given = runner.run(runner.compiled(graph), inputs)
    specs = runner.manifest.outputs
    outputs, values = given[: len(specs)], given[len(specs) :]
    if runner.pads(sizes_of(runner.manifest.inputs, inputs)):  # and one of padding, on the last axis but one
        values = [value[..., :-1, :] if value.ndim > 2 and value.shape[-2] > 1 else value for value in values]
    return Tapped(
        fitting(zip(names, values, strict=True), modules),
        {spec.name: output for spec, output in zip(specs, outputs, strict=True)},
    )


def tap_modules(traced: torch.fx.GraphModule, modules: Collection[str]) -> list[str]:
    """Make what may be the outputs of modules outputs of a traced graph too, after its own.

    A value is copied where its module ends: what follows may add to it in place, as timm adds the position embedding.

    Returns:
        The module of each output that was added; several of a module, or none where it cannot be said.
    """
    graph = traced.graph
    places = _places(graph)
    found = module_outputs(_edges(places))
    last = {module: node for node in graph.nodes for module in places[node].modules}
    chosen = [(name, value) for name, values in found.items() if name in modules for value in values]
    copies = []
    for name, value in chosen:
        with graph.inserting_after(last[name]):
            copies.append(graph.call_function(torch.ops.aten.clone.default, (value,)))
    result = graph.output_node()
    result.args = ((*result.args[0], *copies),)  # type: ignore[misc]  # a traced graph gives a tuple
    graph.set_codegen(torch.fx.graph.CodeGen())  # torch.export's own knows how many outputs there were
    traced.recompile()
    return [name for name, _ in chosen]


def _places(graph: torch.fx.Graph) -> dict[torch.fx.Node, Place]:
    """Return where each node of a traced graph belongs."""
    places: dict[torch.fx.Node, Place] = {}
    for node in reversed(graph.nodes):  # readers come first
        scopes = [scope for scope, _ in node.meta.get("nn_module_stack", {}).values()]
        readers = [places[user] for user in node.users]
        places[node] = OUTSIDE if node.op == "output" else Place.of(scopes, readers)
    return places


def _edges(places: dict[torch.fx.Node, Place]) -> Iterator[Edge[torch.fx.Node]]:
    """Yield every floating tensor that a node makes."""
    for node, place in places.items():
        value = node.meta.get("val")
        if node.op == "call_function" and isinstance(value, Tensor) and value.is_floating_point():
            yield Edge(node, place, tuple(places[user] for user in node.users))
