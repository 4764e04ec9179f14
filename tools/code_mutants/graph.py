"""Faults of graph/: rewrites of ONNX graphs."""

from __future__ import annotations

from code_mutants.mutant import CodeMutant

PASSES = ("tests/graph/test_onnx_passes.py",)

GRAPH = (
    CodeMutant(
        "tensors in attributes stay bfloat16",
        "graph/onnx_rounding.py",
        "attribute.type == ir.AttributeType.TENSOR and attribute.as_tensor().dtype == narrow",
        "False",
        PASSES,
    ),
    CodeMutant(
        "any Reshape is laid to what it reads",
        "graph/onnx_passes.py",
        "if maker is None or given is None or shape is None or given.shape != shape or shape.has_unknown_dim():",
        "if maker is None or given is None:",
        PASSES,
    ),
    CodeMutant(
        "a Reshape to unknown sizes is laid to what it reads",
        "graph/onnx_passes.py",
        "given.shape != shape or shape.has_unknown_dim():",
        "given.shape != shape:",
        PASSES,
    ),
    CodeMutant(
        "who asks for a shape counts as a reader",
        "graph/onnx_passes.py",
        'for node, _ in value.uses() if node.op_type != "Shape")',
        "for node, _ in value.uses())",
        PASSES,
    ),
    CodeMutant(
        "what attention reads besides its mask is dropped",
        "graph/onnx_attention.py",
        "*attention.inputs[3:]",
        "*attention.inputs[3:4]",
        ("tests/graph/test_onnx_attention.py",),
    ),
)
