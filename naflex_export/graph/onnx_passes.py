"""Rewrites of ONNX graphs, in place, each with its guarantee; and the one note they leave on a node: its module."""

from __future__ import annotations

import ast
from collections.abc import Collection, Iterable, Iterator, Mapping

import onnx
import onnx_ir as ir

from naflex_export.graph.intermediates import OUTSIDE, Edge, Place, module_outputs
from naflex_export.graph.program import name_dims

_SCOPES = "pkg.torch.onnx.name_scopes"
_CONSTANT_SIZE = 64


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
                value.shape[axis] = ir.SymbolicDim(name_dims(dim.value, names))


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


def expand_for_tile(model: ir.Model) -> None:
    """Replace each Tile that only repeats axes of one value by the Expand that it is.

    ONNX Runtime's CUDA provider tiles no booleans, and would take a mask to the CPU and back.
    """
    for node in model.graph.all_nodes():
        given, repeats = (*node.inputs, None, None)[:2]
        if node.op_type != "Tile" or given is None or repeats is None or given.shape is None:
            continue
        times = ir.convenience.get_const_tensor(repeats)
        if times is not None and all(
            count == 1 or size == 1 for count, size in zip(times.numpy().tolist(), given.shape, strict=True)
        ):
            node.op_type = "Expand"


def drop_value_info(model: ir.Model) -> None:
    """Drop what the graph says of the types and shapes inside of it, which ONNX's own rules tell anyone who asks.

    Tools that rewrite a graph take such a note for true after they have changed what it is about:
    onnxruntime.quantization transposes a weight and then fails on the shape that was noted for it.
    """
    values = [out for node in model.graph.all_nodes() for out in node.outputs]
    for value in [*values, *model.graph.initializers.values()]:
        if not value.is_graph_output() and not value.is_graph_input():
            value.type, value.shape = None, None
            value.metadata_props.clear()


def infer_types(model: ir.Model) -> None:
    """Note the types and shapes inside of a graph where it does not say them, by ONNX's own rules.

    These leave open what a Reshape does to a dimension whose number is computed in the graph. Where it is the only one
    that the Reshape may change, it stays what it was, for the number of values does.
    """
    silent = [out for node in model.graph for out in node.outputs if out.dtype is None or out.shape is None]
    said = inferred_types(model) if silent else {}
    for value in silent:
        if (known := said.get(value.name or "")) is not None:
            value.type = ir.TensorType(ir.DataType(known.elem_type))
            value.shape = ir.Shape([_size_of(dim) for dim in known.shape.dim])
    for node in model.graph:
        given = node.inputs[0].shape if node.op_type == "Reshape" and node.inputs[0] is not None else None
        made = node.outputs[0].shape
        if given is not None and made is not None and len(given) == len(made):
            changed = [axis for axis in range(len(made)) if made[axis] != given[axis]]
            if len(changed) == 1 and ir.SymbolicDim(None) == made[changed[0]]:
                made[changed[0]] = given[changed[0]]


def _size_of(dim: onnx.TensorShapeProto.Dimension) -> int | str | None:
    """Return a dimension's number or name; None where ONNX's rules made up a name of their own."""
    if dim.HasField("dim_value"):
        return dim.dim_value
    return None if dim.dim_param.startswith("unk__") else dim.dim_param or None


def without_weights(model: ir.Model) -> onnx.ModelProto:
    """Return a copy of the graph, in ONNX's own classes, whose weights are inputs: megabytes become kilobytes.

    Guarantees that the constants which shapes are made of are still there. For those who ask about nodes and shapes.
    """
    proto = onnx.ModelProto(ir_version=model.ir_version)
    proto.opset_import.extend(
        onnx.OperatorSetIdProto(domain=domain, version=version) for domain, version in model.opset_imports.items()
    )
    graph = proto.graph
    graph.name = "shapes"
    graph.node.extend(ir.to_proto(node) for node in model.graph)
    graph.input.extend(ir.to_proto(value) for value in model.graph.inputs)
    graph.output.extend(ir.to_proto(value) for value in model.graph.outputs)
    for value in model.graph.initializers.values():
        constant = value.const_value
        if constant is not None and constant.size <= _CONSTANT_SIZE and not value.is_graph_input():
            graph.initializer.append(ir.to_proto(constant))
            graph.initializer[-1].name = value.name or ""  # a tensor's own name may differ, or be missing
        elif not value.is_graph_input():
            graph.input.append(ir.to_proto(value))
    return proto


def inferred_types(
    model: ir.Model, sizes: Mapping[str, int] | None = None, *, strict: bool = False
) -> dict[str, onnx.TypeProto.Tensor]:
    """Return what ONNX's own rules say of each value's dtype and shape, by name, whatever the graph says of it.

    Args:
        model: the graph; only the types of its inputs and weights are taken as given.
        sizes: numbers to put in place of named dimensions of the inputs.
        strict: raise where the rules find a fault; else what follows from it is left out.

    Raises:
        onnx.shape_inference.InferenceError: a node's inputs do not fit together, with `strict`.
    """
    proto = without_weights(model)
    for value in proto.graph.input:
        for dim in value.type.tensor_type.shape.dim:
            if sizes and dim.dim_param in sizes:
                dim.dim_value = sizes[dim.dim_param]
    del proto.graph.output[:]  # with them, what the graph says of its outputs
    graph = onnx.shape_inference.infer_shapes(proto, strict_mode=strict, data_prop=True).graph
    return {value.name: value.type.tensor_type for value in [*graph.input, *graph.value_info]}


def tap_modules(model: ir.Model, modules: Collection[str]) -> list[tuple[str, str]]:
    """Make what may be the outputs of these modules outputs of the graph too.

    Returns:
        (module, name of a value of the graph) for each; several of a module, or none where it cannot be said.
    """
    infer_types(model)  # a file holds none
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
        scopes = scopes_of(_made_by(node))[:-1]
        places[node] = Place.of(scopes, [place for readers in read_in.values() for place in readers])
        for value, readers in read_in.items():
            if value.dtype is not None and value.dtype.is_floating_point():
                yield Edge(value, places[node], readers)


def _made_by(node: ir.Node) -> ir.Node:
    """Return the node that made a value: the node itself, or where it only hands on what it was given, that one's.

    torch notes such a Reshape, of what `embeds` gave to the shape that it has, in `blocks.0.norm1`, which reads it.
    """
    while node.op_type in ("Reshape", "Identity"):
        given = node.inputs[0]
        maker = None if given is None else given.producer()
        shape = node.outputs[0].shape
        if maker is None or given is None or shape is None or given.shape != shape or shape.has_unknown_dim():
            break
        node = maker
    return node


def _readers(value: ir.Value, places: dict[ir.Node, Place]) -> Iterator[Place]:
    yield from (places[node] for node, _ in value.uses() if node.op_type != "Shape")  # which reads no value
    if value.is_graph_output():
        yield OUTSIDE


def module_of(node: ir.Node) -> str:
    """Return the module of the model that a node came from, such as `blocks.7.attn`; empty if it is not noted.

    The exporter's note reads `['', 'model', 'model.blocks.7.attn', 'matmul']`: modules from the outside in, then the
    operator.
    """
    scopes = scopes_of(node)
    return scopes[-2].removeprefix("model").removeprefix(".") if len(scopes) > 1 else ""


def scopes_of(node: ir.Node) -> list[str]:
    """Return the exporter's note of where a node came from; nothing for nodes that it made up itself."""
    scopes = list(ast.literal_eval(node.metadata_props.get(_SCOPES, "[]")))
    return [] if any(scope.startswith("_empty_nn_module_stack") for scope in scopes) else scopes
