"""Checks of exported graphs, ONNX and ExportedProgram, before any backend sees them.

Each returns what is wrong, in words: the operator, the node, the module it came from, and what to do. `require` turns
them into one error. Checks hold of every model; what a target takes besides is the target's to say.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence

import onnx
import onnx_ir as ir
import torch
from torch import fx
from torch.fx.experimental.symbolic_shapes import free_unbacked_symbols

from naflex_export.errors import BuildError
from naflex_export.graph.program import OUTPUT_DIMS, PACKED_OUTPUT_DIMS, Program
from naflex_export.graph.shape_check import check_onnx_sizes, check_program_sizes
from naflex_export.graph.view import (
    GraphView,
    dtype_name,
    step_of,
    step_of_call,
    view_of_onnx,
    view_of_program,
)
from naflex_export.precision import ALL_LOW, Kept, Precision
from naflex_export.serving.signature import TensorSpec

_BRANCHES = (
    "it loops, branches or holds a graph of its own, which backends run slowly or not at all; write one expression for "
    "the whole batch"
)
_RESIZES = (
    "it resizes, and with antialias backends refuse that or get it wrong; read the learned grid with resample_at of "
    "naflex_export/resample/weights.py"
)
_DEPENDS_ON_VALUES = (
    "the shape of its result depends on values; select with torch.where or masked_fill in place of a boolean index"
)
_WAITS = "it reads a value on the host; compute with the tensor in place of .item(), .tolist() and `if tensor:`"

_ONNX_FAULTS = {
    "Loop": _BRANCHES,
    "If": _BRANCHES,
    "Scan": _BRANCHES,
    "NonZero": _DEPENDS_ON_VALUES,
    "Resize": _RESIZES,
    "GridSample": _RESIZES,
}
FORBIDDEN_OPS = tuple(_ONNX_FAULTS)
"""Operators of ONNX that must not be in a graph: the resampling weights were to replace them all."""

LAYER_OPS = re.compile(
    r"MatMul|Gemm|Conv|Attention|LayerNormalization|RMSNormalization|aten\.(linear|matmul|mm|bmm|addmm|baddbmm|einsum"
    r"|conv[12]d|convolution|scaled_dot_product_attention|layer_norm|rms_norm)\.\w+"
)
"""Operators that make up a layer's cost, and whose dtype is what a user asks for."""

_SOFTMAX = re.compile(r"Softmax|aten\._?softmax\.\w+")

FLOATS = ("float32", "float16", "bfloat16", "float64")

Refusals = Callable[[ir.Model], list[str]]
"""What a target will not take of an ONNX graph, in words."""


def require(problems: Iterable[str]) -> None:
    """Raise BuildError if there is any problem, naming each."""
    found = list(problems)
    if found:
        raise BuildError("the graph is not what was asked for:\n  " + "\n  ".join(found))


def check_program(program: Program, open_dims: Sequence[dict[int, str]]) -> list[str]:
    """Return what is wrong with an ExportedProgram.

    Args:
        program: the program.
        open_dims: the names of each input's open dimensions, by axis.
    """
    problems = check_program_ops(program)
    if problems:  # the rest cannot be told of a graph that branches
        return problems
    view, fixed = view_of(program), check_open(program, open_dims)
    return [
        *fixed,
        *check_inputs_reach(view, program.ignored),
        *check_layers(view, program.precision, program.kept),
        *([] if fixed else check_program_sizes(program)),  # an input of a fixed size fits no other
    ]


def check_onnx(model: ir.Model, program: Program, opset: int, refusals: Refusals = lambda model: []) -> list[str]:
    """Return what is wrong with an ONNX graph.

    Args:
        model: the graph, with its dimensions and outputs named.
        program: what it was made from.
        opset: the version of ONNX's operators that was asked for.
        refusals: called last, with a graph that is right in all other ways.
    """
    problems = check_onnx_ops(model)
    if problems:
        return problems
    view = view_of_onnx(model)
    signature = [
        *check_signature(model.graph.inputs, program.inputs, "input"),
        *check_signature(model.graph.outputs, program.outputs, "output"),
    ]
    return [
        *check_opset(model, opset),
        *signature,
        *check_inputs_reach(view, program.ignored),
        *check_layers(view, program.precision, program.kept),
        *([] if signature else check_onnx_sizes(model)),
    ] or refusals(model)


def view_of(program: Program) -> GraphView:
    """Return the view of a program's graph, its inputs and outputs under their public names."""
    (result,) = (node for node in program.exported.graph.nodes if node.op == "output")
    inputs = zip(program.inputs, program.exported.graph_signature.user_inputs, strict=True)
    outputs = zip(program.outputs, result.args[0], strict=True)
    return view_of_program(
        program.exported,
        {spec.name: str(name) for spec, name in inputs},
        {spec.name: node.name for spec, node in outputs},
    )


def check_onnx_ops(model: ir.Model) -> list[str]:
    """Return the nodes that loop, branch, resize, or make a shape from values; those of inner graphs too."""
    nodes = [node for node in model.graph.all_nodes() if node.op_type in FORBIDDEN_OPS]
    return [f"{step_of(node)}: {_ONNX_FAULTS[node.op_type]}" for node in nodes]


def check_program_ops(program: Program) -> list[str]:
    """Return the calls that loop, branch, resize or wait for a value, and operators that are not PyTorch's own.

    Another library's operator, this package's among them, exists only where that library is imported.
    """
    calls = [node for node in program.exported.graph.nodes if node.op == "call_function"]
    faults = [(step_of_call(node), _fault_of(node)) for node in calls]
    return [f"{step}: {fault}" for step, fault in faults if fault]


def _fault_of(node: fx.Node) -> str:
    """Return what is wrong with a call, and what to do; empty where nothing is."""
    target = node.target
    if isinstance(target, torch._ops.HigherOrderOperator):
        return _BRANCHES
    if isinstance(target, torch._ops.OpOverload):
        namespace, name = target._schema.name.split("::")
        if namespace not in ("aten", "prims"):
            return f"it is an operator of {namespace!r}, which only that library can run; write it in PyTorch's own"
        if re.match("_?upsample|grid_sampler", name):
            return _RESIZES
        if name in ("item", "_local_scalar_dense", "equal", "is_nonzero"):
            return _WAITS
    value = node.meta.get("val")
    sizes = value.shape if isinstance(value, torch.Tensor) else [value]
    depends = any(isinstance(size, torch.SymInt) and free_unbacked_symbols(size) for size in sizes)
    return _DEPENDS_ON_VALUES if depends else ""


def check_open(program: Program, open_dims: Sequence[dict[int, str]]) -> list[str]:
    """Return the dimensions that were to stay open and are fixed, of the program's inputs and outputs."""
    problems = []
    for spec, dims in zip(program.inputs, open_dims, strict=True):
        for axis, name in dims.items():
            if spec.shape[axis] != name:
                problems.append(_fixed("input", spec, axis, name))
    expected = PACKED_OUTPUT_DIMS if any("images" in dims.values() for dims in open_dims) else OUTPUT_DIMS
    for spec in program.outputs:
        default = expected["features" if expected is OUTPUT_DIMS else "tokens"]
        for axis, name in enumerate(expected.get(spec.name, default)):
            if name not in re.findall(r"\w+", str(spec.shape[axis])):
                problems.append(_fixed("output", spec, axis, name))
    return problems


def _fixed(kind: str, spec: TensorSpec, axis: int, name: str) -> str:
    return (
        f"{kind} {spec.name!r} has shape {list(spec.shape)}: dimension {axis} was to be {name!r}, of any size; look in "
        "the model's forward for what reads that size as a number, such as int(x.shape[0]) or a loop over images"
    )


def check_signature(values: Iterable[ir.Value], specs: Iterable[TensorSpec], kind: str) -> list[str]:
    """Return the inputs or outputs whose name, dtype or dimensions differ from their specs.

    A dimension that is a number where a name was promised has been baked in, batch or tokens.

    Args:
        values: the graph's inputs, or its outputs.
        specs: what they should be.
        kind: "input" or "output", for messages.
    """
    found = {value.name or "": value for value in values}
    problems = []
    for spec in specs:
        value = found.pop(spec.name, None)
        if value is None:
            problems.append(f"{kind} {spec.name!r} is missing from the graph; it has {sorted(found)}")
            continue
        made = value.producer()
        made_by = f", from {step_of(made)}" if made is not None else ""
        if dtype_name(value.dtype) != spec.dtype:
            problems.append(
                f"{kind} {spec.name!r}{made_by} is {dtype_name(value.dtype)}: expected {spec.dtype}; export in that "
                "dtype, or cast what a caller passes"
            )
        shape = tuple(dim if isinstance(dim, int) else dim.value for dim in value.shape or ())
        if shape != spec.shape:
            problems.append(
                f"{kind} {spec.name!r}{made_by} has shape {list(shape)}: expected {list(spec.shape)}; a number "
                "in place of a name is a size that the exporter fixed"
            )
    return problems + [f"{kind} {name!r} was not asked for; expected only the model's own" for name in found]


def check_inputs_reach(view: GraphView, ignored: Iterable[str] = ()) -> list[str]:
    """Return the inputs that an output is not made from, such as a mask that an exporter dropped.

    Args:
        view: the graph.
        ignored: inputs that the model itself makes no use of.
    """
    sources = view.sources()
    problems = []
    for name in view.inputs:
        missed = [out for out, value in view.outputs.items() if name not in sources.of(value)]
        if not missed or name in ignored:
            continue
        readers = [step for step in view.steps if name in sources.of(*step.reads)]
        end = f"what is made of it ends at {readers[-1]}" if readers else "no node reads what it holds"
        problems.append(
            f"input {name!r} has no effect on output {', '.join(map(repr, missed))}: {end}; a caller's {name} would be "
            "ignored, so find where the model's forward, or the exporter, lost it"
        )
    return problems


def check_layers(view: GraphView, precision: Precision, kept: Kept = ALL_LOW) -> list[str]:
    """Return layers that compute in another dtype than they should: asked for in float16, and running in float32.

    What is made from integers and weights alone is position arithmetic, in float32 in every graph, as it is in eager:
    a token's weights on the learned grid, their sum, and the angles of RoPE. Of texts, whose inputs are integers alone,
    every layer is looked at.

    Args:
        view: the graph.
        precision: that was asked for.
        kept: what of the model is to be in float32 all the same.
    """
    sources = view.sources()
    floats = {name for name, value in view.inputs.items() if view.dtypes.get(value) in FLOATS} or set(view.inputs)
    scores = _score_makers(view) if kept.softmax else set()
    problems = []
    for step in view.steps:
        origins = sources.of(*step.reads)
        if not LAYER_OPS.fullmatch(step.op) or (origins and not origins & floats):
            continue
        if step.name in scores and not kept.holds(step.module):
            continue  # an attention that torch makes of its own parts keeps its softmax alone
        wanted = "float32" if kept.holds(step.module) else precision.dtype
        wrong = {value: view.dtypes.get(value) for value in step.reads}
        wrong = {value: found for value, found in wrong.items() if found in FLOATS and found != wanted}
        if wrong:
            listed = ", ".join(f"{value!r} in {found}" for value, found in wrong.items())
            problems.append(
                f"{step}: it computes with {listed}, and {precision} was asked for; look for a weight that was not "
                "cast, or a .float() ahead of it"
            )
    return problems


def _score_makers(view: GraphView) -> set[str]:
    """Return the names of the products that a softmax is of: what it reads is made from one, by no other layer."""
    makers = {value: step for step in view.steps for value in step.writes}
    found: set[str] = set()
    waiting = [value for step in view.steps if _SOFTMAX.fullmatch(step.op) for value in step.reads]
    seen: set[str] = set()
    while waiting:
        step = makers.get(waiting.pop())
        if step is None or step.name in seen:
            continue
        seen.add(step.name)
        if LAYER_OPS.fullmatch(step.op):
            found.add(step.name)
        else:
            waiting += step.reads
    return found


def check_opset(model: ir.Model, opset: int) -> list[str]:
    """Return what is not in ONNX's standard at this opset: the graph's own opset, functions, operators, attributes."""
    problems = []
    if dict(model.opset_imports) != {"": opset}:
        problems.append(
            f"the graph is in opset {dict(model.opset_imports)}: expected {{'': {opset}}}, ONNX's own operators alone; "
            "the exporter falls back to another version where it cannot translate"
        )
    problems += [
        f"the graph holds function {domain}.{name}: expected none, since few backends inline them"
        for domain, name, _ in model.functions
    ]
    for node in model.graph.all_nodes():
        step = step_of(node)
        try:
            schema = onnx.defs.get_schema(node.op_type, max_inclusive_version=opset, domain=node.domain)
        except onnx.defs.SchemaError:
            problems.append(f"{step}: it is {_known_since(node, opset)}; {_REWRITE}")
            continue
        if schema.deprecated:
            problems.append(f"{step}: it is deprecated in opset {opset}; {_REWRITE}")
        unknown = [name for name in node.attributes if name not in schema.attributes]
        if unknown:
            problems.append(f"{step}: opset {opset} gives it no attribute {unknown[0]!r}; {_REWRITE}")
    return problems


_REWRITE = "write the module in other operators, or export at an opset that has it, if the target takes one"


def _known_since(node: ir.Node, opset: int) -> str:
    """Return, in words, where ONNX's standard has an operator that an opset has not."""
    found = [schema for schema in onnx.defs.get_all_schemas_with_history() if schema.name == node.op_type]
    since = [schema.since_version for schema in found if schema.domain == node.domain]
    return (
        f"in ONNX since opset {min(since)}, and the graph is in {opset}" if since else "no operator of ONNX's standard"
    )
