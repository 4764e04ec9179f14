"""Rewrites of ONNX graphs, and the module that each node came from."""

from __future__ import annotations

import onnx_ir as ir

from naflex_export.graph import onnx_passes as passes


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
