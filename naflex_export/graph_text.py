"""Graphs as text that a person can review: a line for each input, weight, node and output."""

from __future__ import annotations

from collections.abc import Iterable

import onnx_ir as ir
import torch
from torch import fx

from naflex_export.passes import module_of
from naflex_export.program import Program


def program_text(program: Program) -> str:
    """Return the ExportedProgram's graph: weights and inputs, nodes in order with their shapes, outputs.

    Assertions of dtype and device, which torch puts in around every cast, are left out.
    """
    signature = program.exported.graph_signature
    names = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
    names |= signature.inputs_to_lifted_tensor_constants
    lines = []
    for node in program.exported.graph.nodes:
        if node.op == "placeholder":
            kind, label = ("weight", names[node.name]) if node.name in names else ("input", node.name)
            lines.append(f"{kind:<7}{node.name} = {label}: {_shape(node, program)}")
        elif node.op == "call_function" and "_assert_tensor_metadata" not in str(node.target):
            arguments = [*map(_argument, node.args), *(f"{k}={_argument(v)}" for k, v in node.kwargs.items())]
            lines.append(f"{node.name}: {_shape(node, program)} = {_operator(node)}({', '.join(arguments)})")
        elif node.op == "output":
            lines += [f"output {spec} = {value}" for spec, value in zip(program.outputs, node.args[0], strict=True)]
    return "\n".join(lines) + "\n"


def onnx_text(model: ir.Model) -> str:
    """Return an ONNX graph: inputs, weights as dtype and shape, nodes in order with their module, outputs."""
    graph = model.graph
    lines = [f"input  {_value(value)}" for value in graph.inputs]
    lines += [f"weight {_value(value)}" for value in graph.initializers.values() if value not in graph.inputs]
    for node in graph:
        attributes = [f"{name}={_attribute(node.attributes[name])}" for name in sorted(node.attributes)]
        inputs = [value.name if value is not None else "-" for value in node.inputs]
        outputs = ", ".join(str(value.name) for value in node.outputs)
        note = f"  # {module_of(node)}" if module_of(node) else ""
        lines.append(f"{outputs} = {node.op_type}({', '.join([*map(str, inputs), *attributes])}){note}")
    lines += [f"output {_value(value)}" for value in graph.outputs]
    return "\n".join(lines) + "\n"


def _operator(node: fx.Node) -> str:
    target = node.target
    return str(target) if isinstance(target, torch._ops.OpOverload) else getattr(target, "__name__", str(target))


def _shape(node: fx.Node, program: Program) -> str:
    """Return a node's dtype and shape with the open dimensions by name, or what it is where it is no tensor."""
    value = node.meta.get("val")
    if not isinstance(value, torch.Tensor):
        return "tensors" if isinstance(value, list | tuple) else _named(str(value), program)
    sizes = ", ".join(_named(str(size), program) for size in value.shape)
    return f"{str(value.dtype).removeprefix('torch.')}[{sizes}]"


def _named(text: str, program: Program) -> str:
    for symbol, name in program.dim_names.items():
        text = text.replace(symbol, name)
    return text


def _argument(value: object) -> str:
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_argument, value))}]"
    return value.name if isinstance(value, fx.Node) else str(value)


def _value(value: ir.Value) -> str:
    dims: Iterable[object] = (dim if isinstance(dim, int) else dim.value for dim in value.shape or ())
    dtype = value.dtype.name.lower() if value.dtype is not None else "?"
    return f"{value.name}: {dtype}[{', '.join(map(str, dims))}]"


def _attribute(attribute: ir.Attr) -> str:
    if attribute.type == ir.AttributeType.TENSOR:
        return str(attribute.as_tensor().numpy().tolist())
    return str(attribute.value)
