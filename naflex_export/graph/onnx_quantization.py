"""Linear layers of an ONNX graph in 8 bits: pairs of QuantizeLinear and DequantizeLinear where backends look for them.

A layer's input goes through a pair with one scale for all of it, from calibration; its weight is held in 8 bits, with a
scale for each output channel, behind a DequantizeLinear. A backend fuses that to a product in 8 bits, whose sums are in
32; one that does not fuse computes the same in more digits.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import ml_dtypes
import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from naflex_export.errors import BuildError
from naflex_export.graph.onnx_passes import infer_types, module_of

TYPES = {"int8": ir.DataType.INT8, "fp8": ir.DataType.FLOAT8E4M3FN}
_LARGEST = {"int8": 127.0, "fp8": 448.0}


@dataclass(frozen=True)
class Layer:
    """A linear layer in a graph: the product, its input, and its weight [in, out], with what that holds."""

    node: ir.Node
    given: ir.Value
    weight: ir.Value
    held: ir.TensorProtocol


def layers_in(model: ir.Model, names: Collection[str]) -> list[Layer]:
    """Return the products of these modules with their weights, in the order in which they run.

    Args:
        model: the graph; its nodes say which modules they came from.
        names: of the modules.

    Raises:
        BuildError: a module has none.
    """
    found: dict[str, list[Layer]] = {}
    for node in model.graph:
        module = module_of(node)
        if module not in names or node.op_type != "MatMul":
            continue
        given, weight = node.inputs
        assert given is not None and weight is not None  # a product has two factors
        if weight.is_initializer() and weight.const_value is not None:
            found.setdefault(module, []).append(Layer(node, given, weight, weight.const_value))
    if missing := sorted(set(names) - set(found)):
        raise BuildError(
            f"{missing[0]} is to be quantized, and the graph has no product of its own with a weight that is a "
            f"constant; keep it (--keep-unquantized {','.join(missing)})"
        )
    return [layer for layers in found.values() for layer in layers]


def quantize_layers(model: ir.Model, names: Collection[str], largest: Mapping[str, float], kind: str) -> int:
    """Quantize the products of these modules, and return how many there are.

    Guarantees that each of them reads its input and its weight from a DequantizeLinear, that nothing else does, that
    weights which only they read are in 8 bits, and that new nodes are of the module whose product they serve.

    Args:
        model: the graph; changed in place.
        names: of the modules.
        largest: magnitude of each product's input, by the input's name.
        kind: "int8" or "fp8".

    Raises:
        BuildError: a module has no product, or calibration has not seen its input.
    """
    layers = layers_in(model, names)
    infer_types(model)
    inputs: dict[ir.Value, ir.Value] = {}
    for layer in layers:
        limit = largest.get(layer.given.name or "", 0.0)
        if not 0 < limit < float("inf"):
            raise BuildError(
                f"{module_of(layer.node)}: calibration says {limit} of the largest magnitude of its input: expected a "
                "number above 0. Its photos may be blank, or the model overflows on them; keep it "
                f"(--keep-unquantized {module_of(layer.node)})"
            )
        if layer.given not in inputs:
            inputs[layer.given] = _through_pair(model, layer, np.array(limit), kind)
        layer.node.replace_input_with(0, inputs[layer.given])
        layer.node.replace_input_with(1, _held_weight(model, layer, kind))
        if not layer.weight.uses():
            del model.graph.initializers[layer.weight.name or ""]
    return len(layers)


def _through_pair(model: ir.Model, layer: Layer, limit: NDArray[np.float64], kind: str) -> ir.Value:
    """Return a layer's input, quantized and back again."""
    name, dtype = layer.given.name or "", layer.held.dtype
    scale = _constant(model, f"{name}/scale", (limit / _LARGEST[kind]).astype(dtype.numpy()))
    zero = _constant(model, f"{name}/zero", np.zeros((), TYPES[kind].numpy()))
    down = _node("QuantizeLinear", [layer.given, scale, zero], f"{name}/quantized", TYPES[kind], layer)
    up = _node("DequantizeLinear", [down.outputs[0], scale, zero], f"{name}/dequantized", dtype, layer)
    for made in (down, up):
        made.outputs[0].shape = layer.given.shape
    model.graph.insert_before(layer.node, [down, up])
    return up.outputs[0]


def _held_weight(model: ir.Model, layer: Layer, kind: str) -> ir.Value:
    """Return a layer's weight, held in 8 bits and turned into the graph's dtype where it is read."""
    name, dtype = layer.weight.name or "", layer.held.dtype
    weight = layer.held.numpy().astype(np.float32)
    largest = np.abs(weight).max(axis=0)
    scales = (np.where(largest > 0, largest, 1.0) / _LARGEST[kind]).astype(dtype.numpy())
    scales = np.where(scales > 0, scales, np.finfo(np.float16).tiny.astype(scales.dtype))  # float16 rounds to none
    scaled = np.clip(weight / scales.astype(np.float32), -_LARGEST[kind], _LARGEST[kind])
    small = np.rint(scaled).astype(np.int8) if kind == "int8" else scaled.astype(ml_dtypes.float8_e4m3fn)
    unique = f"{name}/{layer.node.name}"
    parts = [
        _constant(model, f"{unique}/{part}", values)
        for part, values in (("held", small), ("scales", scales), ("zeros", np.zeros(len(scales), small.dtype)))
    ]
    up = _node("DequantizeLinear", parts, f"{unique}/dequantized", dtype, layer, axis=1)
    up.outputs[0].shape = layer.weight.shape
    model.graph.insert_before(layer.node, [up])
    return up.outputs[0]


def _constant(model: ir.Model, name: str, values: NDArray[np.generic]) -> ir.Value:
    value = ir.Value(name=name, const_value=ir.Tensor(np.asarray(values), name=name))
    assert value.const_value is not None
    value.dtype, value.shape = value.const_value.dtype, ir.Shape(values.shape)
    model.graph.register_initializer(value)
    return value


def _node(op: str, inputs: list[ir.Value], name: str, dtype: ir.DataType, layer: Layer, **attributes: int) -> ir.Node:
    """Return a node with one output of its own name and of a dtype, of the module that a layer is of."""
    made = ir.node(op, inputs, attributes, name=name)
    made.outputs[0].name, made.outputs[0].dtype = f"{name}/value", dtype
    made.metadata_props.update(layer.node.metadata_props)
    return made
