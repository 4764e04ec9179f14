"""Rewrites of ONNX graphs, and the module that each node came from."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
from onnx_ir.passes.common import ShapeInferencePass

from naflex_export.graph import onnx_passes as passes
from naflex_export.graph.onnx_rounding import widen


def test_modules_are_read_from_the_exporters_notes() -> None:
    node = ir.node("Relu", [])
    assert passes.module_of(node) == ""
    node.metadata_props["pkg.torch.onnx.name_scopes"] = "['', 'model', 'model.blocks.7.attn', 'matmul_3']"
    assert passes.module_of(node) == "blocks.7.attn"


def test_every_node_of_an_export_knows_its_module(siglip_onnx: ir.Model) -> None:
    modules = {passes.module_of(node) for node in siglip_onnx.graph.all_nodes()}
    assert {"embeds", "embeds.proj", "blocks.0.attn.qkv", "attn_pool"} <= modules
    notes = {key for node in siglip_onnx.graph.all_nodes() for key in node.metadata_props}
    assert notes == {"pkg.torch.onnx.name_scopes"}


def test_a_graph_without_weights_keeps_its_nodes_and_the_constants_of_shapes(siglip_onnx: ir.Model) -> None:
    proto = passes.without_weights(siglip_onnx)
    assert [node.name for node in proto.graph.node] == [node.name for node in siglip_onnx.graph]
    assert proto.ByteSize() < 100_000
    weights = {value.name for value in proto.graph.input} - {value.name for value in siglip_onnx.graph.inputs}
    assert "model.blocks.0.attn.qkv.bias" in weights
    axes = [node.inputs[1] for node in siglip_onnx.graph if node.op_type == "Unsqueeze"]
    constant = {value.name for value in axes if value is not None and value.const_value is not None}
    assert constant and constant <= {tensor.name for tensor in proto.graph.initializer}


def test_constants_keep_the_names_that_nodes_read_them_by() -> None:
    """A tensor of the exporter's may have no name of its own."""
    text = "g (float[b, 2] x) => (float[b, 2] y) <float w = {2}> { y = Mul(x, w) }"
    model = ir.from_onnx_text(f'<ir_version: 10, opset_import: ["" : 20]> {text}')
    model.graph.initializers["w"].const_value = ir.tensor(2.0)
    assert [tensor.name for tensor in passes.without_weights(model).graph.initializer] == ["w"]


def test_types_are_inferred_at_any_size(siglip_onnx: ir.Model) -> None:
    types = passes.inferred_types(siglip_onnx, {"batch": 2, "tokens": 7})
    assert [dim.dim_value for dim in types["features"].shape.dim] == [2, 32]
    assert [dim.dim_value for dim in types["tokens"].shape.dim] == [2, 7, 32]


@pytest.mark.parametrize(
    ("shape", "times", "operator"),
    [((2, 1, 1, 3), (1, 2, 1, 1), "Expand"), ((2, 1, 3), (1, 3, 1), "Expand"), ((2, 2, 3), (1, 3, 1), "Tile")],
    ids=["one-axis-of-four", "one-of-three", "not-of-one-value"],
)
def test_repeated_axes_of_one_value_are_expanded(shape: tuple[int, ...], times: tuple[int, ...], operator: str) -> None:
    made = [size * count for size, count in zip(shape, times, strict=True)]
    model = ir.from_onnx_text(
        f'<ir_version: 10, opset_import: ["" : 20]> g (bool{list(shape)} x) => (bool{made} y) '
        f"<int64[{len(times)}] t = {{{', '.join(map(str, times))}}}> {{ y = Tile(x, t) }}"
    )
    passes.expand_for_tile(model)
    assert [node.op_type for node in model.graph] == [operator]
    session = onnxruntime.InferenceSession(ir.to_proto(model).SerializeToString(), providers=["CPUExecutionProvider"])
    mask = np.arange(np.prod(shape)).reshape(shape) % 5 < 2
    assert np.array_equal(session.run(None, {"x": mask})[0], np.tile(mask, times))


def noted(text: str, **modules: str) -> ir.Model:
    """Return a graph whose shapes are known and whose values, by name, are noted to be made in these modules."""
    model = ShapeInferencePass()(ir.from_onnx_text(f'<ir_version: 10, opset_import: ["" : 23]> {text}')).model
    for node in model.graph:
        module = modules.get(node.outputs[0].name or "")
        if module is not None:
            node.metadata_props["pkg.torch.onnx.name_scopes"] = f"['', 'model', 'model.{module}', 'op']"
    return model


def test_a_reshape_to_the_shape_that_there_was_is_its_makers() -> None:
    """It is noted in the module that reads it."""
    text = "g (float[4, 6] x, int64[2] same) => (float[4, 6] z) { a = Relu(x) b = Reshape(a, same) z = Abs(b) }"
    model = noted(text, a="first", b="second", z="third")
    (made,) = (node.outputs[0] for node in model.graph if node.op_type == "Reshape")
    made.shape = ir.Shape([4, 6])  # as an exported graph says, whose shape is no input
    assert passes.tap_modules(model, ["first", "second"]) == [("first", "b")]


def test_a_reshape_to_another_shape_is_its_own_modules() -> None:
    nodes = "s = Constant<value_ints = [8, 3]>() a = Relu(x) b = Reshape(a, s) z = Abs(b)"
    text = f"g (float[4, 6] x) => (float[8, 3] z) {{ {nodes} }}"
    model = noted(text, a="first", b="second", z="third")
    assert sorted(passes.tap_modules(model, ["first", "second"])) == [("first", "a"), ("second", "b")]


@pytest.mark.parametrize("unknown", [None, [None, 6], ["batch", None]], ids=str)
def test_a_reshape_to_a_shape_that_nobody_knows_is_its_own_modules(unknown: list[object] | None) -> None:
    text = "g (float[4, 6] x, int64[2] s) => (float[4, 6] z) { a = Relu(x) b = Reshape(a, s) z = Abs(b) }"
    model = noted(text, a="first", b="second", z="third")
    (made,) = (value for node in model.graph for value in node.outputs if value.name == "b")
    made.shape = None if unknown is None else ir.Shape(unknown)
    (given,) = (value for node in model.graph for value in node.outputs if value.name == "a")
    given.shape = made.shape
    assert sorted(passes.tap_modules(model, ["first", "second"])) == [("first", "a"), ("second", "b")]


def test_who_asks_for_a_shape_reads_no_value() -> None:
    """So what is made on the way inside a module is not its output."""
    text = (
        "g (float[4, 6] x) => (float[1, 1] z) { a = Relu(x) s = Shape(a) b = Abs(a) r = Expand(b, s) z = ReduceSum(r) }"
    )
    model = noted(text, a="first", b="first", s="second", r="second", z="third")
    assert sorted(passes.tap_modules(model, ["first", "second"])) == [("first", "b"), ("second", "r")]


def test_no_bfloat16_is_left_in_a_widened_graph() -> None:
    """Neither in weights nor in what nodes hold: constants, the value that a shape is filled with, and casts.

    The text gives values by their bits: these are 2 and 3, 4 and 5, and 6.
    """
    text = (
        "g (bfloat16[b, 2] x, int64[2] size) => (bfloat16[b, 2] y) <bfloat16[2] w = {16384, 16448}> "
        "{ c = Constant<value = bfloat16[2] {16512, 16544}>() f = ConstantOfShape<value = bfloat16[1] {16576}>(size) "
        "i = Cast<to = 16>(size) m = Mul(x, w) n = Add(m, c) o = Add(n, f) y = Mul(o, i) }"
    )
    model = ir.from_onnx_text(f'<ir_version: 10, opset_import: ["" : 23]> {text}')
    widen(model, ir.DataType.BFLOAT16)
    content = ir.to_proto(model)
    assert "data_type: 16" not in str(content) and "elem_type: 16" not in str(content)
    session = onnxruntime.InferenceSession(content.SerializeToString(), providers=["CPUExecutionProvider"])
    x = np.ones((1, 2), dtype=np.float32)
    (y,) = session.run(None, {"x": x, "size": np.array([1, 2])})
    np.testing.assert_array_equal(y, (x * [2, 3] + [4, 5] + 6) * [1, 2])
