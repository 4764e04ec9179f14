"""Graphs as text that a person can review: a line for each input, weight, node and output."""

from __future__ import annotations

import onnx_ir as ir
import torch
from torch import fx

from naflex_export.graph.onnx_passes import module_of
from naflex_export.graph.program import Program, name_dims
from naflex_export.graph.view import dtype_name, fx_module_of, operator_name

_SHOWN = 8


def program_text(program: Program) -> str:
    """Return the ExportedProgram's graph: inputs and weights, nodes in order with their shape and module, outputs.

    Left out are the assertions of dtype and device that torch puts in around every cast, and what only says where a
    tensor is to be made.
    """
    signature = program.exported.graph_signature
    weights = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
    weights |= signature.inputs_to_lifted_tensor_constants
    inputs = dict(zip(signature.user_inputs, (spec.name for spec in program.inputs), strict=True))
    names = {**weights, **inputs}  # of the graph's own nodes

    def name(node: fx.Node) -> str:
        return names.get(node.name, node.name)

    def argument(value: object) -> str:
        if isinstance(value, list | tuple):
            return f"[{', '.join(map(argument, value))}]"
        return name(value) if isinstance(value, fx.Node) else str(value)

    lines = []
    for node in program.exported.graph.nodes:
        if node.op == "placeholder":
            lines.append(f"{'weight' if node.name in weights else 'input':<7}{name(node)}: {_made(node, program)}")
        elif node.op == "call_function" and "_assert_tensor_metadata" not in operator_name(node):
            named = {key: value for key, value in node.kwargs.items() if key not in ("device", "layout", "pin_memory")}
            arguments = [*map(argument, node.args), *(f"{key}={argument(value)}" for key, value in named.items())]
            call = f"{operator_name(node)}({', '.join(arguments)})"
            lines.append(f"{name(node)}: {_made(node, program)} = {call}{_note(fx_module_of(node))}")
        elif node.op == "output":
            lines += [f"output {spec} = {name(node)}" for spec, node in zip(program.outputs, node.args[0], strict=True)]
    return "\n".join(lines) + "\n"


def onnx_text(model: ir.Model) -> str:
    """Return an ONNX graph: inputs and weights, nodes in order with their shape and module, outputs.

    A weight is its dtype and shape. A few integers, or a single number, are the graph's own arithmetic: they stand
    where they are used.
    """
    graph = model.graph
    lines = [f"input  {_value(value)}" for value in graph.inputs]
    held = [value for value in graph.initializers.values() if value not in graph.inputs]
    lines += [f"weight {_value(value)}" for value in held if not _is_arithmetic(value)]
    for node in graph:
        attributes = [f"{name}={_attribute(node.attributes[name])}" for name in sorted(node.attributes)]
        inputs = [_operand(value) if value is not None else "-" for value in node.inputs]
        outputs = ", ".join(map(_value, node.outputs))
        lines.append(f"{outputs} = {node.op_type}({', '.join([*inputs, *attributes])}){_note(module_of(node))}")
    lines += [f"output {_value(value)}" for value in graph.outputs]
    return "\n".join(lines) + "\n"


def _made(node: fx.Node, program: Program) -> str:
    """Return a node's dtype and shape with the open dimensions by name, or what it is where it is no tensor."""
    value = node.meta.get("val")
    if not isinstance(value, torch.Tensor):
        return "tensors" if isinstance(value, list | tuple) else name_dims(str(value), program.dim_names)
    sizes = ", ".join(name_dims(str(size), program.dim_names) for size in value.shape)
    return f"{str(value.dtype).removeprefix('torch.')}[{sizes}]"


def _note(module: str) -> str:
    return f"  # {module}" if module else ""


def _value(value: ir.Value) -> str:
    if value.dtype is None or value.shape is None:
        return str(value.name)
    dims = ", ".join(str(dim) if isinstance(dim, int) else dim.value or "?" for dim in value.shape)
    return f"{value.name}: {dtype_name(value.dtype)}[{dims}]"


def _is_arithmetic(value: ir.Value) -> bool:
    tensor = value.const_value
    if tensor is None or tensor.size > _SHOWN:
        return False
    return tensor.size == 1 or not tensor.dtype.is_floating_point()


def _operand(value: ir.Value) -> str:
    if not _is_arithmetic(value) or value.const_value is None:
        return str(value.name)
    return str(value.const_value.numpy().tolist())


def _attribute(attribute: ir.Attr) -> str:
    if attribute.type == ir.AttributeType.TENSOR:
        return str(attribute.as_tensor().numpy().tolist())
    return dtype_name(ir.DataType(attribute.as_int())) if attribute.name == "to" else str(attribute.value)
