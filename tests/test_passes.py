"""Rewrites of ONNX graphs, and the module that each node came from."""

from __future__ import annotations

import onnx_ir as ir
import pytest
import torch
from torch import nn

import naflex_export as nx
from naflex_export import passes
from naflex_export.program import Program, trace


@pytest.fixture(scope="module")
def program(siglip: nn.Module) -> Program:
    return trace(siglip, [nx.Bucket(64)])


def test_modules_are_read_from_the_exporters_notes() -> None:
    node = ir.node("Relu", [])
    assert passes.module_of(node) == ""
    node.metadata_props["pkg.torch.onnx.name_scopes"] = "['', 'model', 'model.blocks.7.attn', 'matmul_3']"
    assert passes.module_of(node) == "blocks.7.attn"


def test_every_node_of_an_export_knows_its_module(program: Program) -> None:
    exported = torch.onnx.export(program.exported, dynamo=True, opset_version=20, verbose=False)
    assert exported is not None
    passes.strip_traces(exported.model)
    modules = {passes.module_of(node) for node in exported.model.graph.all_nodes()}
    assert {"embeds", "embeds.proj", "blocks.0.attn.qkv", "attn_pool"} <= modules
    notes = {key for node in exported.model.graph.all_nodes() for key in node.metadata_props}
    assert notes == {"pkg.torch.onnx.name_scopes"}
