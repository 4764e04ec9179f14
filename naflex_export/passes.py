"""Checks and rewrites of ONNX graphs: each states what it requires and what it guarantees.

Checks return what is wrong, in words; `require` turns them into one error. Rewrites change a model in place.
"""

from __future__ import annotations

import ast
from collections.abc import Collection, Iterable, Iterator

import numpy as np
import onnx_ir as ir

from naflex_export.errors import BuildError
from naflex_export.program import Program, TensorSpec
from naflex_export.taps import OUTSIDE, Edge, Place, module_outputs

FORBIDDEN_OPS = ("Loop", "If", "Scan", "NonZero", "Resize", "GridSample")
FLOATS = {
    "float32": ir.DataType.FLOAT,
    "float16": ir.DataType.FLOAT16,
    "bfloat16": ir.DataType.BFLOAT16,
}
_DTYPES = {**FLOATS, "int32": ir.DataType.INT32, "int64": ir.DataType.INT64, "bool": ir.DataType.BOOL}
_SCOPES = "pkg.torch.onnx.name_scopes"


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
    written_out = _scopes(node)[-1:] and _scopes(node)[-1].startswith("matmul")
    return node.op_type in ("MatMul", "Gemm") and not written_out


def rename_dims(model: ir.Model, names: dict[str, str]) -> None:
    """Replace the exporter's symbols by the names given, in every shape of the graph.

    Guarantees that inputs and outputs show `batch` and `tokens`, whatever torch called them.
    """
    values = [*model.graph.inputs, *(out for node in model.graph.all_nodes() for out in node.outputs)]
    for value in values:
        if value.shape is None:
            continue
        for axis, dim in enumerate(value.shape):
            if isinstance(dim, ir.SymbolicDim) and dim.value is not None:
                text = dim.value
                for symbol, name in names.items():
                    text = text.replace(symbol, name)
                value.shape[axis] = ir.SymbolicDim(text)


def rename_outputs(model: ir.Model, names: Iterable[str]) -> None:
    """Give the graph's outputs their public names, in order."""
    for value, name in zip(model.graph.outputs, names, strict=True):
        value.name = name


def strip_traces(model: ir.Model) -> None:
    """Drop the exporter's notes from every node, but for the module it came from.

    Stack traces name files of the machine that exported and make up most of a small graph.
    """
    for node in model.graph.all_nodes():
        scopes = node.metadata_props.get(_SCOPES)
        node.metadata_props.clear()
        if scopes is not None:
            node.metadata_props[_SCOPES] = scopes


def widen_bfloat16(model: ir.Model) -> None:
    """Turn every bfloat16 of a graph into float32, weights included, which loses nothing of them.

    The result computes with more digits than the original, on backends that have no bfloat16: it shows that the graph
    and its weights are right, not how they round.
    """
    narrow, wide = ir.DataType.BFLOAT16, ir.DataType.FLOAT

    def widened(tensor: ir.TensorProtocol) -> ir.TensorProtocol:
        return ir.Tensor(tensor.numpy().astype(np.float32), name=tensor.name)

    for value in model.graph.initializers.values():
        if value.dtype == narrow and value.const_value is not None:
            value.const_value = widened(value.const_value)
            value.dtype = wide
    for value in model.graph.inputs:
        if value.dtype == narrow:
            value.dtype = wide
    for node in model.graph.all_nodes():
        for name, attribute in node.attributes.items():
            if attribute.type == ir.AttributeType.TENSOR and attribute.as_tensor().dtype == narrow:
                node.attributes[name] = ir.AttrTensor(name, widened(attribute.as_tensor()))
            elif node.op_type == "Cast" and name == "to" and attribute.as_int() == narrow:
                node.attributes[name] = ir.AttrInt64(name, int(wide))
        for value in node.outputs:
            if value.dtype == narrow:
                value.dtype = wide


def tap_modules(model: ir.Model, modules: Collection[str]) -> list[tuple[str, str]]:
    """Make what may be the outputs of these modules outputs of the graph too.

    Returns:
        (module, name of a value of the graph) for each; several of a module, or none where it cannot be said.
    """
    found = module_outputs(_edges(model))
    chosen = [(name, value) for name, values in found.items() if name in modules for value in values]
    for value in dict.fromkeys(value for _, value in chosen):
        if not value.is_graph_output():
            model.graph.outputs.append(value)
    return [(name, value.name or "") for name, value in chosen]


def _edges(model: ir.Model) -> Iterator[Edge[ir.Value]]:
    """Yield every floating value that a node makes."""
    places: dict[ir.Node, Place] = {}
    for node in reversed(model.graph):  # readers come first
        read_in = {value: tuple(_readers(value, places)) for value in node.outputs}
        places[node] = Place.of(_scopes(node)[:-1], [place for readers in read_in.values() for place in readers])
        for value, readers in read_in.items():
            if value.dtype in FLOATS.values():
                yield Edge(value, places[node], readers)


def _readers(value: ir.Value, places: dict[ir.Node, Place]) -> Iterator[Place]:
    yield from (places[node] for node, _ in value.uses() if node.op_type != "Shape")  # which reads no value
    if value.is_graph_output():
        yield OUTSIDE


def module_of(node: ir.Node) -> str:
    """Return the module of the model that a node came from, such as `blocks.7.attn`; empty if it is not noted.

    The exporter's note reads `['', 'model', 'model.blocks.7.attn', 'matmul']`: modules from the outside in, then the
    operator.
    """
    scopes = _scopes(node)
    return scopes[-2].removeprefix("model").removeprefix(".") if len(scopes) > 1 else ""


def _scopes(node: ir.Node) -> list[str]:
    """Return the exporter's note of where a node came from; nothing for nodes that it made up itself."""
    scopes = list(ast.literal_eval(node.metadata_props.get(_SCOPES, "[]")))
    return [] if any(scope.startswith("_empty_nn_module_stack") for scope in scopes) else scopes
