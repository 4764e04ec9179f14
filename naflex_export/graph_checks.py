"""Checks of ONNX graphs. Each returns what is wrong, in words; `require` turns them into one error."""

from __future__ import annotations

from collections.abc import Iterable

import onnx_ir as ir

from naflex_export.errors import BuildError
from naflex_export.passes import module_of, scopes_of
from naflex_export.program import Program, TensorSpec

FORBIDDEN_OPS = ("Loop", "If", "Scan", "NonZero", "Resize", "GridSample")
FLOATS = {
    "float32": ir.DataType.FLOAT,
    "float16": ir.DataType.FLOAT16,
    "bfloat16": ir.DataType.BFLOAT16,
}
_DTYPES = {**FLOATS, "int32": ir.DataType.INT32, "int64": ir.DataType.INT64, "bool": ir.DataType.BOOL}


def require(problems: Iterable[str]) -> None:
    """Raise BuildError if there is any problem, naming each."""
    found = list(problems)
    if found:
        raise BuildError("the ONNX graph is not what was asked for:\n  " + "\n  ".join(found))


def check_graph(model: ir.Model, program: Program) -> list[str]:
    """Return what is wrong with an exported graph, for any target."""
    return [
        *check_ops(model),
        *check_signature(model.graph.inputs, program.inputs, "input"),
        *check_signature(model.graph.outputs, program.outputs, "output"),
        *check_inputs_used(model),
        *check_weights(model, program.dtype),
    ]


def check_ops(model: ir.Model) -> list[str]:
    """Return the nodes that loop, branch, or resize: the matrices were to replace them all."""
    return [
        f"{node.op_type} node {node.name!r} from module {module_of(node)!r}: no backend takes it with dynamic shapes"
        for node in model.graph.all_nodes()
        if node.op_type in FORBIDDEN_OPS
    ]


def check_signature(values: Iterable[ir.Value], specs: Iterable[TensorSpec], kind: str) -> list[str]:
    """Return the inputs or outputs whose name, dtype or dimensions differ from their specs.

    A dimension that is a number where a name was promised has been baked in, batch or tokens.
    """
    found = {value.name or "": value for value in values}
    problems = []
    for spec in specs:
        value = found.pop(spec.name, None)
        if value is None:
            problems.append(f"{kind} {spec.name!r} is missing from the graph")
            continue
        if value.dtype != _DTYPES[spec.dtype]:
            problems.append(f"{kind} {spec.name!r} is {value.dtype}: expected {spec.dtype}")
        shape = tuple(dim if isinstance(dim, int) else dim.value for dim in value.shape or ())
        if shape != spec.shape:
            problems.append(f"{kind} {spec.name!r} has shape {list(shape)}: expected {list(spec.shape)}")
    return problems + [f"{kind} {name!r} was not asked for" for name in found]


def check_inputs_used(model: ir.Model) -> list[str]:
    """Return the inputs that no node reads, such as a mask that an exporter dropped."""
    return [
        f"input {value.name!r} is read by no node: what it says would be ignored"
        for value in model.graph.inputs
        if not value.uses()
    ]


def check_weights(model: ir.Model, dtype: str) -> list[str]:
    """Return layers' weights of another dtype than the graph's: a graph asked for in float16 that runs in float32.

    The matmul that resamples a position embedding is no layer: it is in float32 in every graph, as it is in eager.
    """
    wrong = [
        value
        for value in model.graph.initializers.values()
        if value.dtype in FLOATS.values() and value.dtype != FLOATS[dtype] and any(map(_is_layer, value.uses()))
    ]
    return [f"weight {value.name!r} is {value.dtype}: expected {dtype}" for value in wrong]


def _is_layer(use: tuple[ir.Node, int]) -> bool:
    """Whether a weight is used by a layer, not by a matmul that the model's own code spells out."""
    node, _ = use
    written_out = scopes_of(node)[-1:] and scopes_of(node)[-1].startswith("matmul")
    return node.op_type in ("MatMul", "Gemm") and not written_out
