"""Graph checks: each rejects a graph made wrong on purpose, by name, and passes the true one."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import onnx_ir as ir
import pytest

import naflex_export as nx
from naflex_export.graph.checks import FORBIDDEN_OPS, check_onnx, check_opset, require
from naflex_export.graph.onnx_passes import module_of
from naflex_export.graph.program import Program
from naflex_export.graph.trace import EXAMPLE, EXAMPLE_TOKENS
from naflex_export.precision import Precision
from naflex_export.serving.signature import TensorSpec
from naflex_export.targets import onnx as onnx_target
from naflex_export.targets import tensorrt as tensorrt_target

NOTE = "pkg.torch.onnx.name_scopes"


def only(problems: list[str]) -> str:
    (problem,) = problems
    return problem


def node(op: str, name: str) -> str:
    """Return how a message names a node of the texts below."""
    return f"{op} node 'node_{name}' from module 'blocks.7.attn'"


class Mutant(NamedTuple):
    """One change to a text, what the message must begin with, and what else it must hold."""

    before: str
    after: str
    begins: str
    holds: str = ""


def mutants(table: dict[str, Mutant]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("mutant", table.values(), ids=table)


# --- ONNX, as text -----------------------------------------------------------------------------------------------

SIGNATURE = (
    "(float[batch, tokens, 4] patches, int64[batch, tokens, 2] coord, bool[batch, tokens] valid)"
    " => (float[batch, 4] features)"
)
MODEL = """
<float[4, 4] w = {1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16}, float[2, 4] grid = {1,2,3,4,5,6,7,8},
 float[4] scale = {1,2,3,4}, float zero = {0}, int64[1] last = {-1}, int64[1] first = {1}>
{
  x = MatMul(patches, w)
  real = Cast<to=1>(coord)
  position = MatMul(real, grid)
  sum = Add(x, position)
  normal = LayerNormalization(sum, scale)
  kept = Unsqueeze(valid, last)
  masked = Where(kept, normal, zero)
  features = ReduceSum<keepdims=0>(masked, first)
}"""
HALF = (
    MODEL.replace("float[4, 4] w", "float16[4, 4] w")
    .replace("float[4] scale", "float16[4] scale")
    .replace("float zero", "float16 zero")
    .replace("sum = Add(x, position)", "p = Cast<to=10>(position) sum = Add(x, p)")
)
HALF_SIGNATURE = SIGNATURE.replace("float[", "float16[")


def graph(body: str = MODEL, signature: str = SIGNATURE, opset: int = 20) -> ir.Model:
    """Return a graph whose nodes have names and a module, as the exporter gives them."""
    model = ir.from_onnx_text(f'<ir_version: 10, opset_import: ["" : {opset}]>\ng {signature} {body}')
    for one in model.graph.all_nodes():
        one.name = f"node_{one.outputs[0].name}"
        one.metadata_props[NOTE] = "['', 'model', 'model.blocks.7.attn', 'op']"
    return model


def changed(mutant: Mutant, body: str = MODEL, signature: str = SIGNATURE, opset: int = 20) -> ir.Model:
    whole = signature + body
    assert mutant.before in whole
    return graph("", whole.replace(mutant.before, mutant.after), opset)


def described(dtype: str = "float32", **changes: tuple[TensorSpec, ...]) -> Program:
    """Return what the texts were made from, as far as checks of ONNX look at it."""
    specs = {
        "inputs": (
            TensorSpec("patches", dtype, ("batch", "tokens", 4)),
            TensorSpec("coord", "int64", ("batch", "tokens", 2)),
            TensorSpec("valid", "bool", ("batch", "tokens")),
        ),
        "outputs": (TensorSpec("features", dtype, ("batch", 4)),),
        **changes,
    }
    return Program(exported=None, buckets=(), precision=Precision(dtype), dim_names={}, **specs)  # type: ignore[arg-type]


def test_a_true_graph_passes() -> None:
    assert check_onnx(graph(), described(), 20) == []
    require([])


def test_a_true_graph_of_low_precision_resamples_in_float32() -> None:
    assert check_onnx(graph(HALF, HALF_SIGNATURE), described("float16"), 20) == []


def test_numbers_of_the_model_that_are_also_the_examples_are_its_own() -> None:
    """3 heads of 11 values: the same numbers as 3 images of 11 tokens."""
    zeros = ",".join(["0"] * 132)
    body = MODEL.replace(
        "x = MatMul(patches, w)", "v = MatMul(patches, v33) h = Reshape(v, heads) x = ReduceSum(h, axes)"
    )
    body = body.replace("<float", f"<float[4, 33] v33 = {{{zeros}}}, int64[4] heads = {{0, 0, 3, 11}}, float", 1)
    body = body.replace("ReduceSum(h, axes)", "ReduceSum<keepdims=0>(h, axes)").replace(
        "<float", "<int64[2] axes = {2, 3}, float", 1
    )
    body = body.replace("sum = Add(x, position)", "x1 = Unsqueeze(x, last) sum = Add(x1, position)")
    assert check_onnx(graph(body), described(), 20) == []


@pytest.mark.parametrize("op", FORBIDDEN_OPS)
def test_a_forbidden_op_is_named(op: str) -> None:
    model = graph()
    note = {NOTE: "['', 'model', 'model.embeds', 'resize']"}
    model.graph.append(ir.node(op, [], name="node_wrong", metadata_props=note))
    problem = only(check_onnx(model, described(), 20))
    assert problem.startswith(f"{op} node 'node_wrong' from module 'embeds': ")
    remedies = {"Resize": "resample_at", "GridSample": "resample_at", "NonZero": "torch.where"}
    assert remedies.get(op, "one expression for the whole batch") in problem
    with pytest.raises(nx.BuildError, match=f"the graph is not what was asked for:\n  {op} node"):
        require([problem])


def test_a_forbidden_op_of_an_inner_graph_is_named() -> None:
    body = """{
  c = Constant<value_ints=[1]>() b = Cast<to=9>(c)
  features = If(b)<then_branch = t () => (int64[i, n] z) { z = NonZero(valid) },
                   else_branch = e () => (int64[i, n] u) { u = NonZero(valid) }>
}"""
    problems = check_onnx(graph(body), described(), 20)
    assert [problem.split()[0] for problem in problems] == ["If", "NonZero", "NonZero"]


MASK = "masked = Where(kept, normal, zero)"
NO_EFFECT = "input 'valid' has no effect on output 'features': "


@mutants(
    {
        "dropped": Mutant(
            MASK,
            "masked = Identity(normal)",
            f"{NO_EFFECT}what is made of it ends at {node('Unsqueeze', 'kept')}",
            "a caller's valid would be ignored",
        ),
        "dead-end": Mutant(
            MASK,
            "lost = Where(kept, normal, zero) masked = Identity(normal)",
            f"{NO_EFFECT}what is made of it ends at {node('Where', 'lost')}",
        ),
        "shape-alone": Mutant(
            "kept = Unsqueeze(valid, last)",
            "s = Shape(valid) n = ReduceMax<keepdims=0>(s) kept = Cast<to=9>(n)",
            f"{NO_EFFECT}no node reads what it holds",
        ),
    }
)
def test_an_input_without_effect_is_named(mutant: Mutant) -> None:
    """A mask that an exporter dropped: padding would be attended to."""
    problem = only(check_onnx(changed(mutant), described(), 20))
    assert problem.startswith(mutant.begins) and mutant.holds in problem


def test_an_input_without_effect_on_one_output_is_named() -> None:
    signature = SIGNATURE.replace("features)", "features, float[batch, tokens, 4] normal)")
    outputs = (*described().outputs, TensorSpec("normal", "float32", ("batch", "tokens", 4)))
    problem = only(check_onnx(graph(MODEL, signature), described(outputs=outputs), 20))
    assert problem.startswith("input 'valid' has no effect on output 'normal': what is made of it ends at ReduceSum")


def test_an_input_that_the_model_ignores_may_have_no_effect() -> None:
    """A model without a position embedding makes no use of coordinates."""
    model = graph(MODEL.replace("sum = Add(x, position)", "sum = Identity(x)"))
    assert "input 'coord' has no effect" in only(check_onnx(model, described(), 20))
    assert check_onnx(model, dataclasses.replace(described(), ignored=("coord",)), 20) == []


CONSTANTS = """
<int64[3] both = {3, 11, 4}, int64[3] tokens11 = {-1, 11, 4}, int64[3] batch3 = {3, 1, 1}, int64[1] from = {0},
 int64[1] to = {11}, float[1, 11, 1] column = {0,0,0,0,0,0,0,0,0,0,0}, bool[3, 1, 1] images = {1,1,1},"""
PROJECTED = "x = MatMul(patches, w)"


@mutants(
    {
        "reshape": Mutant(PROJECTED, "r = MatMul(patches, w) x = Reshape(r, both)", node("Reshape", "x")),
        "reshape-tokens": Mutant(PROJECTED, "r = MatMul(patches, w) x = Reshape(r, tokens11)", node("Reshape", "x")),
        "expand": Mutant(PROJECTED, "r = MatMul(patches, w) x = Expand(r, batch3)", node("Expand", "x")),
        "slice": Mutant(PROJECTED, "r = MatMul(patches, w) x = Slice(r, from, to, first)", node("Add", "sum")),
        "coordinates": Mutant(
            "real = Cast<to=1>(coord)", "c = Cast<to=1>(coord) real = Add(c, column)", node("Add", "real")
        ),
        "mask": Mutant(
            "kept = Unsqueeze(valid, last)", "v = Unsqueeze(valid, last) kept = And(v, images)", node("And", "kept")
        ),
    }
)
def test_a_size_of_the_example_inside_the_graph_is_named(mutant: Mutant) -> None:
    """Inputs and outputs are open all the same: the graph runs for 3 images of 11 tokens and for no others."""
    problem = only(check_onnx(changed(mutant, MODEL.replace("<", CONSTANTS, 1)), described(), 20))
    assert problem.startswith(f"{mutant.begins}: ") and "for 5 images of 13 tokens" in problem
    assert "a size of the example it was traced with is fixed in the graph: look in the module for a size" in problem


def test_a_size_is_found_where_the_graph_says_another() -> None:
    """The exporter's note of a shape, which is torch's, against what ONNX makes of the node."""
    model = graph(MODEL.replace(PROJECTED, "r = MatMul(patches, w) x = Relu(r)"))
    relu = next(one for one in model.graph if one.op_type == "Relu")
    relu.outputs[0].shape = ir.Shape(["batch", 11, 4])
    problem = only(check_onnx(model, described(), 20))
    said = "for 5 images of 13 tokens it makes [5, 13, 4], and the graph says [5, 11, 4]"
    assert problem.startswith(f"{node('Relu', 'x')}: {said}")


NORMED = "normal = LayerNormalization(sum, scale)"


@mutants(
    {
        "weight": Mutant(
            PROJECTED,
            "r = Cast<to=1>(patches) w32 = Cast<to=1>(w) m = MatMul(r, w32) x = Cast<to=10>(m)",
            node("MatMul", "m"),
            "'r' in float32, 'w32' in float32",
        ),
        "norm": Mutant(
            NORMED,
            "s = Cast<to=1>(sum) c = Cast<to=1>(scale) n = LayerNormalization(s, c) normal = Cast<to=10>(n)",
            node("LayerNormalization", "n"),
            "'s' in float32, 'c' in float32",
        ),
        "attention": Mutant(
            NORMED,
            "n = LayerNormalization(sum, scale) s = Cast<to=1>(n) q = Unsqueeze(s, first) a = Attention(q, q, q) "
            "b = Squeeze(a, first) normal = Cast<to=10>(b)",
            node("Attention", "a"),
            "'q' in float32",
        ),
        "weights-alone": Mutant(
            PROJECTED,
            "w32 = Cast<to=1>(w) ww = MatMul(w32, w32) w16 = Cast<to=10>(ww) x = MatMul(patches, w16)",
            node("MatMul", "ww"),
            "'w32' in float32",
        ),
    }
)
def test_a_layer_in_another_dtype_is_named(mutant: Mutant) -> None:
    """A flag that says float16 and a graph that multiplies in float32: what a silent fallback looks like."""
    problem = only(check_onnx(changed(mutant, HALF, HALF_SIGNATURE, opset=23), described("float16"), 23))
    assert problem.startswith(f"{mutant.begins}: it computes with {mutant.holds}, and float16 was asked for; look for")


@mutants(
    {
        "baked-batch": Mutant(
            "[batch, tokens, 4] patches",
            "[2, tokens, 4] patches",
            "input 'patches' has shape [2, 'tokens', 4]: expected",
        ),
        "baked-tokens": Mutant(
            "[batch, tokens, 4] patches",
            "[batch, 11, 4] patches",
            "input 'patches' has shape ['batch', 11, 4]: expected",
        ),
        "baked-output": Mutant(
            "[batch, 4] features",
            "[3, 4] features",
            f"output 'features', from {node('ReduceSum', 'features')} has shape [3, 4]: expected ['batch', 4]",
        ),
        "dtype": Mutant("int64[batch", "int32[batch", "input 'coord' is int32: expected int64; export in that dtype"),
        "output-dtype": Mutant(
            "float[batch, 4] features",
            "float16[batch, 4] features",
            f"output 'features', from {node('ReduceSum', 'features')} is float16: expected float32",
        ),
        "name": Mutant("valid", "mask", "input 'valid' is missing from the graph; it has ['mask']"),
        "one-more": Mutant("valid)", "valid, bool[batch] more)", "input 'more' was not asked for; expected only"),
    }
)
def test_a_wrong_signature_is_named(mutant: Mutant) -> None:
    problems = check_onnx(changed(mutant), described(), 20)
    assert any(problem.startswith(mutant.begins) for problem in problems)


@mutants(
    {
        "newer-op": Mutant(
            NORMED,
            "q = Unsqueeze(sum, first) a = Attention(q, q, q) normal = Squeeze(a, first)",
            f"{node('Attention', 'a')}: it is in ONNX since opset 23, and the graph is in 20; write the module",
        ),
        "no-op-of-onnx": Mutant(
            NORMED, "normal = Antialias(sum)", f"{node('Antialias', 'normal')}: it is no operator of ONNX's standard"
        ),
        "deprecated": Mutant(
            PROJECTED,
            "r = MatMul(patches, w) x = Upsample(r, scale)",
            f"{node('Upsample', 'x')}: it is deprecated in opset 20",
        ),
        "attribute": Mutant(
            "LayerNormalization(",
            "LayerNormalization<antialias=1>(",
            f"{node('LayerNormalization', 'normal')}: opset 20 gives it no attribute 'antialias'",
        ),
    }
)
def test_what_the_opset_does_not_hold_is_named(mutant: Mutant) -> None:
    assert only(check_opset(changed(mutant), 20)).startswith(mutant.begins)


def test_another_opset_is_named() -> None:
    """What the exporter does where its translation to the opset asked for fails."""
    problem = only(check_onnx(graph(opset=18), described(), 20))
    assert problem.startswith("the graph is in opset {'': 18}: expected {'': 20}, ONNX's own operators alone")


def test_operators_of_another_domain_are_named() -> None:
    model = graph()
    model.opset_imports["com.microsoft"] = 1
    model.graph.append(ir.node("FusedMatMul", [], name="node_fused", domain="com.microsoft"))
    domains, fused = check_opset(model, 20)
    assert "'com.microsoft': 1}: expected {'': 20}" in domains
    assert fused.startswith("com.microsoft.FusedMatMul node 'node_fused' from the encoder's own forward: it is no op")


def test_functions_are_named() -> None:
    model = graph()
    function = ir.Function("pkg", "rope", graph=ir.Graph([], [], nodes=[], opset_imports={"": 20}), attributes=[])
    model.functions[function.identifier()] = function
    assert only(check_opset(model, 20)).startswith("the graph holds function pkg.rope: expected none")


def test_a_target_is_asked_last() -> None:
    asked = []

    def refuse(model: ir.Model) -> list[str]:
        asked.append(model)
        return ["no"]

    assert check_onnx(graph(), described(), 20, refuse) == ["no"]
    assert check_onnx(graph(opset=18), described(), 20, refuse) != ["no"]
    assert len(asked) == 1


def test_onnxruntime_says_what_it_takes() -> None:
    assert onnx_target.refusals(graph()) == []
    double = "d = Cast<to=11>(position) e = Elu(d) f = Cast<to=1>(e) sum = Add(x, f)"
    problem = only(onnx_target.refusals(graph(MODEL.replace("sum = Add(x, position)", double))))
    assert problem.startswith(f"{node('Elu', 'e')}: ONNX Runtime 1.") and "take a newer onnxruntime-gpu, or" in problem
    assert only(onnx_target.refusals(graph(opset=28))).startswith("the graph of opset 28: ONNX Runtime 1.")


def test_onnxruntime_is_asked_about_a_bfloat16_graph_as_a_cpu_will_run_it() -> None:
    """Widened to float32: as it is, the CPU provider has next to nothing for it."""
    body = HALF.replace("float16", "bfloat16").replace("to=10", "to=16")
    signature = HALF_SIGNATURE.replace("float16", "bfloat16")
    assert check_onnx(graph(body, signature), described("bfloat16"), 20, onnx_target.refusals) == []
    double = body.replace(
        "x = MatMul(patches, w)", "r = MatMul(patches, w) d = Cast<to=11>(r) e = Elu(d) x = Cast<to=16>(e)"
    )
    assert only(onnx_target.refusals(graph(double, signature))).startswith(f"{node('Elu', 'e')}: ONNX Runtime 1.")


def test_tensorrt_says_what_it_takes() -> None:
    pytest.importorskip("tensorrt_rtx")
    assert tensorrt_target.refusals(graph()) == []
    problem = only(tensorrt_target.refusals(graph(MODEL.replace(PROJECTED, f"{PROJECTED} d = Det(w)"))))
    assert problem.startswith(f"{node('Det', 'd')}: the parser of tensorrt") and "does not know it; write" in problem


# --- ONNX, as the exporter makes it ------------------------------------------------------------------------------


def test_a_mask_dropped_from_attention_is_named(siglip_program: Program, siglip_onnx: ir.Model) -> None:
    """From the blocks alone: the mask of the pooling is still there, so features differ and look right."""
    for one in siglip_onnx.graph:
        if one.op_type == "Attention" and "blocks" in one.metadata_props[NOTE]:
            one.replace_input_with(3, None)
    problem = only(check_onnx(siglip_onnx, siglip_program, onnx_target.OPSET))
    assert problem.startswith("input 'patch_valid' has no effect on output 'tokens': what is made of it ends at ")


@pytest.mark.parametrize(("op", "module"), [("Reshape", "embeds"), ("Expand", "attn_pool")])
def test_a_shape_fixed_in_a_real_graph_is_named(
    siglip_program: Program, siglip_onnx: ir.Model, op: str, module: str
) -> None:
    """The shape that a module's first Reshape or Expand computes, as it was for the example."""
    of_module = [one for one in siglip_onnx.graph if one.op_type == op and module_of(one) == module]
    wrong = next(one for one in of_module if one.inputs[1] is not None and one.inputs[1].const_value is None)
    sizes = {"batch": len(EXAMPLE), "tokens": EXAMPLE_TOKENS}
    shape = [dim if isinstance(dim, int) else dim.evaluate(sizes) for dim in wrong.outputs[0].shape or ()]
    fixed = ir.Value(name="fixed", const_value=ir.tensor(shape, dtype=ir.DataType.INT64, name="fixed"))
    siglip_onnx.graph.initializers["fixed"] = fixed
    wrong.replace_input_with(1, fixed)
    problem = only(check_onnx(siglip_onnx, siglip_program, onnx_target.OPSET))
    assert problem.startswith(
        f"{op} node {wrong.name!r} from module {module!r}: for 5 images of 13 tokens it makes [3, "
    )
