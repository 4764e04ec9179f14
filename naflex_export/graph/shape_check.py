"""A graph's shapes worked out again, at sizes that the example it was traced with never had.

A graph can have open inputs and outputs and hold the example's batch or tokens inside, in the shape of a Reshape or an
Expand. Looking for the example's numbers would not tell them from a model's own: 3 images, or 3 for query, key and
value. So the graph is run on shapes alone, by torch's and ONNX's own rules, at other sizes: each node must make what
the graph says of it, with those sizes in place of the names. A size that was fixed fits no other, and shows at its
node.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import onnx
import onnx_ir as ir
import torch
from torch import Tensor, fx
from torch._subclasses.fake_tensor import FakeTensorMode

from naflex_export.graph.onnx_passes import inferred_types
from naflex_export.graph.program import Program
from naflex_export.graph.view import Step, step_of, step_of_call

SIZES = {"batch": 5, "tokens": 13}
"""Larger than those of `trace.EXAMPLE`, so that a slice that was cut to them shows."""

PACKED_SIZES = {"images": 5, "images + 1": 6, "longest": 13, "tokens": 37, "rows": 19}
"""The same of packed inputs."""

_REMEDY = (
    "a size of the example it was traced with is fixed in the graph: look in the module for a size read as a number, "
    "and take it from a tensor's shape"
)


def check_program_sizes(program: Program) -> list[str]:
    """Return the first call of an ExportedProgram that does not fit other sizes, if there is one."""
    try:
        with FakeTensorMode(), torch.no_grad():
            graph, names = program.exported.graph_module, program.dim_names
            sizes = _sizes_with(names.values())
            arguments = [_placeholder(node, names, sizes) for node in graph.graph.nodes if node.op == "placeholder"]
            _Shapes(graph, names, sizes).run(*arguments)
    except _Misfit as misfit:
        return [str(misfit)]
    return []


class _Misfit(Exception):
    """A node that does not fit; it ends the run, since all that follow would not fit either."""


class _Shapes(fx.Interpreter):
    """Runs a graph on tensors that have a shape and no contents, and compares each shape with what the graph says."""

    def __init__(self, graph: fx.GraphModule, dim_names: Mapping[str, str], sizes: Mapping[str, int]) -> None:
        super().__init__(graph)
        self.dim_names, self.sizes = dim_names, sizes

    def run_node(self, n: fx.Node) -> Any:
        step = step_of_call(n)
        try:
            result = super().run_node(n)
        except Exception as error:  # whatever an operator says of shapes that do not fit
            raise _Misfit(f"{step}: it fails for {_said(self.sizes)} ({_reason(error)}); {_REMEDY}") from error
        said = n.meta.get("val")
        if n.op == "call_function" and isinstance(said, Tensor) and isinstance(result, Tensor):
            expected = [_at_sizes(size, self.dim_names, self.sizes) for size in said.shape]
            if list(result.shape) != expected:
                raise _Misfit(_differs(step, list(result.shape), expected, self.sizes))
        return result


def _sizes_with(names: Iterable[str]) -> dict[str, int]:
    """Return the sizes to try for a graph with dimensions of these names, padded or packed."""
    return PACKED_SIZES if "images" in set(names) else SIZES


def _placeholder(node: fx.Node, dim_names: Mapping[str, str], sizes: Mapping[str, int]) -> Any:
    value = node.meta["val"]
    if not isinstance(value, Tensor):
        return value
    shape = [_at_sizes(size, dim_names, sizes) for size in value.shape]
    return torch.empty(shape, dtype=value.dtype, device=value.device)


def _at_sizes(size: int | torch.SymInt, dim_names: Mapping[str, str], sizes: Mapping[str, int]) -> int:
    """Return a dimension with numbers in place of the open sizes."""
    if isinstance(size, int):
        return size
    expression = size.node.expr
    return int(expression.xreplace({symbol: sizes[dim_names[str(symbol)]] for symbol in expression.free_symbols}))


def check_onnx_sizes(model: ir.Model) -> list[str]:
    """Return the first node of an ONNX graph that does not fit other sizes, if there is one.

    Where ONNX's rules cannot work a shape out, the graph is taken at its word.
    """
    opened = (dim.value for value in model.graph.inputs for dim in value.shape or () if isinstance(dim, ir.SymbolicDim))
    sizes = _sizes_with(name for name in opened if name)
    made = {name: _dims(type_) for name, type_ in inferred_types(model, sizes).items() if type_.HasField("shape")}
    for node in model.graph:
        step = step_of(node)
        for value in node.outputs:
            shape = made.get(value.name or "")
            if shape is None or value.shape is None:
                continue
            said = [dim if isinstance(dim, int) else dim.evaluate(sizes) for dim in value.shape]
            if _conflict(shape, said):
                return [_differs(step, shape, said, sizes)]
        if node.op_type == "Reshape" and _loses_elements(node, made):
            shape = made[node.outputs[0].name or ""]
            return [f"{step}: for {_said(sizes)} it makes {shape} of more or fewer elements than that; {_REMEDY}"]
    try:
        inferred_types(model, sizes, strict=True)
    except onnx.shape_inference.InferenceError as error:
        named = [step_of(node) for node in model.graph if f"node name: {node.name})" in str(error)]
        return [f"{named[0] if named else 'the graph'}: it fails for {_said(sizes)} ({_reason(error)}); {_REMEDY}"]
    return []


def _dims(type_: onnx.TypeProto.Tensor) -> list[int | None]:
    return [dim.dim_value if dim.HasField("dim_value") else None for dim in type_.shape.dim]


def _loses_elements(node: ir.Node, made: Mapping[str, list[int | None]]) -> bool:
    """Whether a Reshape makes more or fewer elements than it is given, which ONNX's rules let pass."""
    before, after = (made.get(value.name or "") if value else None for value in (node.inputs[0], node.outputs[0]))
    if before is None or after is None:
        return False
    known = [dim for dim in [*before, *after] if dim is not None]
    return len(known) == len(before) + len(after) and math.prod(known[: len(before)]) != math.prod(known[len(before) :])


def _conflict(made: list[int | None], expected: list[Any]) -> bool:
    """Whether two shapes cannot be of one value; a dimension that either does not know fits any."""
    known = [pair for pair in zip(made, expected, strict=False) if all(isinstance(dim, int) for dim in pair)]
    return len(made) != len(expected) or any(one != other for one, other in known)


def _differs(step: Step, made: list[Any], expected: list[Any], sizes: Mapping[str, int]) -> str:
    return f"{step}: for {_said(sizes)} it makes {made}, and the graph says {expected}; {_REMEDY}"


def _said(sizes: Mapping[str, int]) -> str:
    if "images" in sizes:
        return f"{sizes['images']} images of {sizes['tokens']} tokens together"
    return f"{sizes['batch']} images of {sizes['tokens']} tokens"


def _reason(error: Exception) -> str:
    """Return what a library says is wrong, without ONNX's repeated prefixes."""
    said = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return said.rsplit("[ShapeInferenceError] ", 1)[-1][:200]
