"""`Attention` that reads heads in rows: the same numbers without the copies, and left alone where more happens."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
from onnx_ir.passes.common import ShapeInferencePass

from naflex_export.graph.onnx_attention import read_heads_in_rows

CONSTANTS = (
    "zero = Constant<value_ints = [0]>() one = Constant<value_ints = [1]>() two = Constant<value_ints = [2]>() "
    "three = Constant<value_ints = [3]>() rows = Constant<value_ints = [0, 0, 8]>() "
)
ATTENTION = "h = Attention<scale = 0.3>(qh, kh, vh, mask) t = Transpose<perm = [0, 2, 1, 3]>(h) y = Reshape(t, rows) "


def view(name: str, heads: int = 2) -> str:
    """Return how heads come first, of a value that holds nothing else."""
    shape = f"{name}a = Constant<value_ints = [0, 0, {heads}, 4]>() {name}s = Reshape({name}, {name}a) "
    return f"{shape} {name}h = Transpose<perm = [0, 2, 1, 3]>({name}s) "


def parts(value: str, names: str, count: int) -> str:
    """Return how heads come first, of the first parts of a value that holds several."""
    shape = f"whole = Constant<value_ints = [0, 0, {count}, 2, 4]>() s = Reshape({value}, whole) "
    bounds = ["zero", "one", "two", "three"]
    picked = [
        f"{name}p = Slice(m, {bounds[part]}, {bounds[part + 1]}, zero) {name}h = Squeeze({name}p, zero) "
        for part, name in enumerate(names)
    ]
    return f"{shape} m = Transpose<perm = [2, 0, 3, 1, 4]>(s) {''.join(picked)}"


SEPARATE = CONSTANTS + view("q") + view("k") + view("v") + ATTENTION
TOGETHER = CONSTANTS + parts("qkv", "qkv", 3) + ATTENTION

MOVED = {  # widths of the inputs, the nodes, the operators that are left
    "together": ({"qkv": 24}, TOGETHER, ["Split", "Attention"]),
    "pooled": ({"q": 8, "kv": 16}, CONSTANTS + view("q") + parts("kv", "kv", 2) + ATTENTION, ["Split", "Attention"]),
    "separate": ({"q": 8, "k": 8, "v": 8}, SEPARATE, ["Attention"]),
    "fewer heads of keys": (
        {"q": 8, "k": 4, "v": 4},
        CONSTANTS + view("q") + view("k", 1) + view("v", 1) + ATTENTION,
        ["Attention"],
    ),
}
KEPT = {  # changes to what is moved when all three come from one value
    "queries changed head by head": {"h = A": "qn = Tanh(qh) h = A", "(qh, kh": "(qn, kh"},
    "heads read by another node too": {
        "t = ": "e = ReduceSum(h) t = ",
        "y = Reshape(t, rows)": "r = Reshape(t, rows) y = Mul(r, e)",
    },
    "scores given": {"h = Attention": "h, , , scores = Attention"},
    "heads given in their order": {"Transpose<perm = [0, 2, 1, 3]>": "Identity"},
    "parts in another order": {"[2, 0, 3, 1, 4]": "[2, 0, 3, 4, 1]"},
    "one part of four left out": {"[0, 0, 3, 2, 4]": "[0, 0, 4, 2, 3]"},
    "rows joined across tokens": {"[0, 0, 8]": "[1, -1, 8]"},
}


def graph(inputs: dict[str, int], nodes: str) -> ir.Model:
    """Return a graph of opset 23 that knows its shapes, as an exported one does."""
    given = ", ".join(f"float[batch, tokens, {width}] {name}" for name, width in inputs.items())
    text = f"g ({given}, bool[batch, 1, tokens, tokens] mask) => (float[batch, tokens, 8] z) "
    model = ir.from_onnx_text(f'<ir_version: 11, opset_import: ["" : 23]> {text} {{ {nodes} z = Abs(y) }}')
    return ShapeInferencePass()(model).model


def run(model: ir.Model, inputs: dict[str, int]) -> np.ndarray:
    """Return what ONNX Runtime makes of a graph, with nothing optimized."""
    rng = np.random.default_rng(0)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    content = ir.to_proto(model).SerializeToString()
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    given = {name: rng.standard_normal((3, 5, width), dtype=np.float32) for name, width in inputs.items()}
    output = session.run(None, given | {"mask": rng.random((3, 1, 5, 5)) < 0.7})[0]
    assert isinstance(output, np.ndarray)
    return output


@pytest.mark.parametrize("kind", MOVED)
def test_heads_are_read_and_given_in_rows(kind: str) -> None:
    inputs, nodes, left = MOVED[kind]
    model = graph(inputs, nodes)
    expected = run(model, inputs)
    assert read_heads_in_rows(model) == 1
    assert [node.op_type for node in model.graph if node.op_type != "Constant"] == [*left, "Abs"]
    np.testing.assert_array_equal(run(model, inputs), expected)
    (attention,) = (node for node in model.graph if node.op_type == "Attention")
    assert attention.attributes["scale"].as_float() == pytest.approx(0.3)
    made = [value for node in model.graph if node.op_type in left for value in node.outputs]
    assert all(value.shape == ir.Shape(["batch", "tokens", 8]) and value.dtype == ir.DataType.FLOAT for value in made)


@pytest.mark.parametrize("kind", KEPT)
def test_attention_around_which_more_happens_is_left_alone(kind: str) -> None:
    nodes = TOGETHER
    for before, after in KEPT[kind].items():
        assert before in nodes
        nodes = nodes.replace(before, after)
    model = graph({"qkv": 24}, nodes)
    operators = [node.op_type for node in model.graph if node.op_type != "Constant"]
    assert read_heads_in_rows(model) == 0
    assert [node.op_type for node in model.graph if node.op_type != "Constant"] == operators


FURTHER = {  # inputs after queries, keys and values, and the opset that has them
    "mask": ("mask", 23, ["mask"]),
    "lengths": (", , , lengths", 24, [None, None, None, "lengths"]),
    "mask and lengths": ("mask, , , lengths", 24, ["mask", None, None, "lengths"]),
    "nothing": ("", 23, []),
}


@pytest.mark.parametrize("kind", FURTHER)
def test_whatever_else_attention_reads_is_kept_in_its_place(kind: str) -> None:
    given, opset, expected = FURTHER[kind]
    nodes = TOGETHER.replace("(qh, kh, vh, mask)", f"(qh, kh, vh, {given})" if given else "(qh, kh, vh)")
    text = (
        "g (float[batch, tokens, 24] qkv, bool[batch, 1, tokens, tokens] mask, int64[batch] lengths) "
        f"=> (float[batch, tokens, 8] y) {{ {nodes} }}"
    )
    model = ir.from_onnx_text(f'<ir_version: 11, opset_import: ["" : {opset}]> {text}')
    model = ShapeInferencePass()(model).model
    for node in model.graph:  # what an exported graph says itself, whatever onnx infers at this opset
        if node.op_type == "Attention":
            node.outputs[0].shape = ir.Shape(["batch", 2, "tokens", 4])
        if node.op_type == "Transpose" and node.inputs[0].name == "h":
            node.outputs[0].shape = ir.Shape(["batch", "tokens", 2, 4])
    model.graph.outputs[0].shape = ir.Shape(["batch", "tokens", 8])
    assert read_heads_in_rows(model) == 1
    (attention,) = (node for node in model.graph if node.op_type == "Attention")
    assert [None if value is None else value.name for value in attention.inputs[3:]] == expected


UNKNOWN = {"nothing": None, "no batch": [None, "tokens", 3, 2, 4], "no heads": ["batch", "tokens", 3, None, 4]}


@pytest.mark.parametrize("known", UNKNOWN)
def test_shapes_that_nobody_knows_leave_it_alone(known: str) -> None:
    model = graph({"qkv": 24}, TOGETHER)
    (split,) = (node for node in model.graph if node.op_type == "Reshape" and node.inputs[0].name == "qkv")
    shape = UNKNOWN[known]
    split.outputs[0].shape = None if shape is None else ir.Shape(shape)
    split.inputs[0].shape = ir.Shape(["batch" if shape is None else shape[0], "tokens", 24])
    assert read_heads_in_rows(model) == 0


def test_rows_of_unknown_width_leave_it_alone() -> None:
    model = graph({"qkv": 24}, TOGETHER)
    model.graph.inputs[0].shape = ir.Shape(["batch", "tokens", None])
    assert read_heads_in_rows(model) == 0
