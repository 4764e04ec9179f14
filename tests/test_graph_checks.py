"""Graph checks: each rejects a graph made wrong on purpose, and passes the true one."""

from __future__ import annotations

import onnx_ir as ir
import pytest

import naflex_export as nx
from naflex_export import graph_checks
from naflex_export.program import TensorSpec

HEADER = '<ir_version: 10, opset_import: ["" : 20]>\n'
SPECS = (TensorSpec("x", "float32", ("batch", "tokens", 4)), TensorSpec("valid", "bool", ("batch", "tokens")))
TRUE = "(float[batch, tokens, 4] x, bool[batch, tokens] valid) => (float[batch, tokens, 4] y)"
BODY = "{ c = Cast<to=1>(valid) a = Constant<value_ints=[2]>() u = Unsqueeze(c, a) y = Mul(x, u) }"


def graph(signature: str = TRUE, body: str = BODY) -> ir.Model:
    return ir.from_onnx_text(f"{HEADER}g {signature} {body}")


def test_a_true_graph_passes() -> None:
    model = graph()
    assert not graph_checks.check_ops(model)
    assert not graph_checks.check_signature(model.graph.inputs, SPECS, "input")
    assert not graph_checks.check_inputs_used(model)
    graph_checks.require([])


@pytest.mark.parametrize(
    ("signature", "message"),
    [
        (TRUE.replace("float[batch, tokens, 4] x", "float[2, tokens, 4] x"), "'x' has shape [2, 'tokens', 4]"),
        (TRUE.replace("float[batch, tokens, 4] x", "float[batch, 11, 4] x"), "'x' has shape ['batch', 11, 4]"),
        (TRUE.replace("float[batch, tokens, 4] x", "float16[batch, tokens, 4] x"), "'x' is FLOAT16: expected float32"),
        (TRUE.replace("bool[batch, tokens] valid", "bool[batch, tokens] mask"), "input 'valid' is missing"),
    ],
    ids=["baked-batch", "baked-tokens", "dtype", "name"],
)
def test_a_wrong_signature_is_named(signature: str, message: str) -> None:
    body = BODY.replace("(valid)", "(mask)") if "mask" in signature else BODY
    problems = graph_checks.check_signature(graph(signature, body).graph.inputs, SPECS, "input")
    assert problems and message in problems[0]


def test_an_ignored_input_is_named() -> None:
    (problem,) = graph_checks.check_inputs_used(graph(body="{ y = Identity(x) }"))
    assert problem.startswith("input 'valid' is read by no node")


@pytest.mark.parametrize(
    "body",
    [
        "{ i = NonZero(valid) y = Identity(x) }",
        "{ s = Constant<value_floats=[1.0, 1.0, 2.0]>() y = Resize(x, , s) }",
    ],
    ids=["NonZero", "Resize"],
)
def test_a_forbidden_op_is_named(body: str) -> None:
    (problem,) = graph_checks.check_ops(graph(body=body))
    assert problem.split()[0] in ("NonZero", "Resize")
    with pytest.raises(nx.BuildError, match="not what was asked for"):
        graph_checks.require([problem])


def test_weights_of_another_dtype_are_named() -> None:
    """A flag that says float16 and a graph that multiplies in float32: what a silent fallback looks like."""
    text = f"{HEADER}g (float[b, 2] x) => (float[b, 2] y) <float[2, 2] w = {{1, 2, 3, 4}}> {{ y = MatMul(x, w) }}"
    model = ir.from_onnx_text(text)
    assert not graph_checks.check_weights(model, "float32")
    assert graph_checks.check_weights(model, "float16") == ["weight 'w' is FLOAT: expected float16"]
