"""A graph in 16 bits as a CPU can run it: in float32, with every result rounded to what the 16 bits can hold.

ONNX Runtime's CPU provider has no bfloat16, and computes a float16 graph in float32: what it gives shows neither how
the graph rounds nor where it overflows. Here a pair of casts, down and up again, stands behind each operator that
computes. ONNX Runtime keeps such casts. Sums inside an operator stay in float32, as matrix products, softmax and
normalization on a GPU have them.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from naflex_export.graph.onnx_passes import inferred_types

MOVES = frozenset({
    "Cast", "Concat", "Constant", "ConstantOfShape", "Expand", "Flatten", "Gather", "GatherElements", "GatherND",
    "Identity", "Pad", "Reshape", "Shape", "Slice", "Split", "Squeeze", "Tile", "Transpose", "Unsqueeze", "Where",
})  # fmt: skip
"""Operators that hand on values as they got them, or round by themselves: nothing is left to be rounded."""


def round_each_result(model: ir.Model, narrow: ir.DataType) -> int:
    """Compute a graph in float32, and round what each operator gives to a 16-bit dtype; return how many are rounded.

    Guarantees that no value of the narrow dtype is left but between the two casts of a pair, that weights are the same
    numbers, and that each pair is of the module that its operator is of.

    Args:
        model: the graph; changed in place.
        narrow: FLOAT16 or BFLOAT16, what the graph computes in.
    """
    types = inferred_types(model)  # what a file says of values between operators may be missing
    made = [
        value
        for node in model.graph
        for value in node.outputs
        if value.name in types and types[value.name].elem_type == narrow and node.op_type not in MOVES
    ]
    casts = [node for node in model.graph if node.op_type == "Cast" and node.attributes["to"].as_int() == narrow]
    widen(model, narrow)
    for value in [*made, *(node.outputs[0] for node in casts)]:
        _round(model.graph, value, narrow)
    return len(made) + len(casts)


def widen(model: ir.Model, narrow: ir.DataType) -> None:
    """Turn every value of a 16-bit dtype into float32, weights included, which loses nothing of them.

    Args:
        model: the graph; changed in place.
        narrow: FLOAT16 or BFLOAT16.
    """
    wide = ir.DataType.FLOAT

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


def _round(graph: ir.Graph, value: ir.Value, narrow: ir.DataType) -> None:
    """Put a pair of casts behind a value, for all that read it."""
    maker, readers = value.producer(), list(value.uses())
    assert maker is not None  # it is a node's
    name = value.name or ""
    down = ir.node("Cast", [value], {"to": int(narrow)}, name=f"{name}/down")
    up = ir.node("Cast", [down.outputs[0]], {"to": int(ir.DataType.FLOAT)}, name=f"{name}/up")
    for cast, dtype in ((down, narrow), (up, ir.DataType.FLOAT)):
        cast.outputs[0].dtype, cast.outputs[0].shape = dtype, value.shape
        cast.metadata_props.update(maker.metadata_props)
    down.outputs[0].name = f"{name}/down"
    rounded = up.outputs[0]
    for node, place in readers:
        node.replace_input_with(place, rounded)
    if value.is_graph_output():
        graph.outputs[[*graph.outputs].index(value)] = rounded
        value.name, rounded.name = f"{name}/exact", name
    else:
        rounded.name = f"{name}/rounded"
    graph.insert_after(maker, [down, up])
