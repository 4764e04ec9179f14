"""Wrong ONNX graphs for the graph checks to reject: each the true graph of a tiny classifier with one fault.

A fault changes the graph in place. `docs/mutants.md` says which check caught which.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir

from naflex_export.graph.program import Program
from naflex_export.graph.trace import EXAMPLE, EXAMPLE_TOKENS
from naflex_export.precision import Precision

FLOAT16 = ir.DataType.FLOAT16


@dataclass(frozen=True)
class GraphMutant:
    """A wrong graph.

    Attributes:
        fault: what is wrong, in a sentence.
        change: makes it so, in a graph of the true model.
        asked: what was asked for, from the program of the true graph; where not that itself.
    """

    fault: str
    change: Callable[[ir.Model], None]
    asked: Callable[[Program], Program] = lambda program: program


GRAPH_MUTANTS: dict[str, GraphMutant] = {}
Change = Callable[[ir.Model], None]


def mutant(asked: Callable[[Program], Program] = lambda program: program) -> Callable[[Change], Change]:
    """Register a change under its own name; its docstring is the fault."""

    def register(change: Change) -> Change:
        assert change.__doc__
        GRAPH_MUTANTS[change.__name__.replace("_", "-")] = GraphMutant(change.__doc__, change, asked)
        return change

    return register


def in_float16(program: Program) -> Program:
    """Return the program as it would be in float16: what was asked for of a graph in float32."""

    def narrow(specs: tuple[object, ...]) -> tuple[object, ...]:
        return tuple(replace(spec, dtype="float16") if spec.dtype == "float32" else spec for spec in specs)  # type: ignore[attr-defined]

    return replace(
        program, precision=Precision("float16"), inputs=narrow(program.inputs), outputs=narrow(program.outputs)
    )


def value(model: ir.Model, name: str) -> ir.Value:
    """Return the graph's input or output of a name."""
    return next(found for found in (*model.graph.inputs, *model.graph.outputs) if found.name == name)


def read_instead(model: ir.Model, old: ir.Value, nodes: list[ir.Node]) -> None:
    """Put nodes at the head of the graph, and let everything that read a value read the last one's result."""
    readers = [(node, index) for node, index in old.uses() if node not in nodes]
    model.graph.insert_before(model.graph[0], nodes)
    for node, index in readers:
        node.replace_input_with(index, nodes[-1].outputs[0])


def answer_instead(model: ir.Model, node: ir.Node) -> None:
    """Let the graph answer with a node's result in place of its first output, under the same name and shape."""
    old, new = model.graph.outputs[0], node.outputs[0]
    new.name, new.shape, new.type = old.name, old.shape, new.type or old.type
    old.name = f"{old.name}_before"
    model.graph.append(node)
    model.graph.outputs[0] = new


@mutant()
def baked_batch(model: ir.Model) -> None:
    """The batch size of the example is in an input's shape."""
    patches = value(model, "patches")
    patches.shape = ir.Shape([3, *patches.shape[1:]])  # type: ignore[index]


@mutant()
def baked_tokens(model: ir.Model) -> None:
    """The token count of the example is in an input's shape."""
    coord = value(model, "patch_coord")
    coord.shape = ir.Shape([coord.shape[0], 11, 2])  # type: ignore[index]


@mutant()
def baked_output(model: ir.Model) -> None:
    """The batch size of the example is in the output's shape."""
    value(model, "features").shape = ir.Shape([3, 10])


@mutant()
def dropped_mask(model: ir.Model) -> None:
    """The mask is an input and has no effect: every token is valid."""
    mask = value(model, "patch_valid")
    sizes = ir.node("Shape", [value(model, "patch_coord")], attributes={"start": 0, "end": 2})
    true = ir.tensor(np.array([True]))
    ones = ir.node("ConstantOfShape", [sizes.outputs[0]], attributes={"value": true})
    ones.outputs[0].dtype, ones.outputs[0].shape = ir.DataType.BOOL, mask.shape
    sizes.outputs[0].dtype, sizes.outputs[0].shape = ir.DataType.INT64, ir.Shape([2])
    read_instead(model, mask, [sizes, ones])


@mutant()
def missing_mask(model: ir.Model) -> None:
    """The mask is no input."""
    dropped_mask(model)
    model.graph.inputs.remove(value(model, "patch_valid"))


@mutant()
def renamed_output(model: ir.Model) -> None:
    """The output has another name."""
    value(model, "features").name = "logits"


@mutant()
def further_input(model: ir.Model) -> None:
    """The graph wants an input that nobody asked for."""
    seed = ir.Value(name="seed", shape=ir.Shape(["batch"]), type=ir.TensorType(ir.DataType.FLOAT))
    model.graph.inputs.append(seed)
    answer_instead(model, ir.node("Where", [value(model, "features"), seed, seed]))


@mutant(asked=in_float16)
def float32_for_float16(model: ir.Model) -> None:
    """Float16 was asked for, and the graph is in float32."""


@mutant(asked=in_float16)
def float32_between_casts(model: ir.Model) -> None:
    """Float16 was asked for: inputs and outputs have it, and the layers between compute in float32."""
    patches, shape = value(model, "patches"), value(model, "patches").shape
    wide = ir.node("Cast", [patches], attributes={"to": int(ir.DataType.FLOAT)})
    wide.outputs[0].dtype, wide.outputs[0].shape = ir.DataType.FLOAT, shape
    read_instead(model, patches, [wide])
    patches.type = ir.TensorType(FLOAT16)
    narrow = ir.node("Cast", [value(model, "features")], attributes={"to": int(FLOAT16)})
    narrow.outputs[0].type = ir.TensorType(FLOAT16)
    answer_instead(model, narrow)


@mutant()
def fixed_reshape(model: ir.Model) -> None:
    """Inputs and outputs are open, and a `Reshape` inside has the batch and tokens of the example."""
    wrong = next(node for node in reversed(model.graph) if node.op_type == "Reshape" and "batch" in str(node.outputs))
    sizes = {"batch": len(EXAMPLE), "tokens": EXAMPLE_TOKENS}
    shape = [dim if isinstance(dim, int) else dim.evaluate(sizes) for dim in wrong.outputs[0].shape or ()]
    fixed = ir.Value(name="fixed", const_value=ir.tensor(shape, dtype=ir.DataType.INT64, name="fixed"))
    model.graph.initializers["fixed"] = fixed
    wrong.replace_input_with(1, fixed)


@mutant()
def older_opset(model: ir.Model) -> None:
    """The graph says an older opset than was asked for, and holds operators that it does not have."""
    model.opset_imports[""] = 18


@mutant()
def operator_of_a_vendor(model: ir.Model) -> None:
    """An operator is none of ONNX's standard, but of one backend."""
    model.opset_imports["com.microsoft"] = 1
    answer_instead(model, ir.node("Gelu", [value(model, "features")], domain="com.microsoft"))


@mutant()
def no_kernel(model: ir.Model) -> None:
    """An operator is of ONNX's standard, and ONNX Runtime has no kernel for it in that dtype."""
    double = ir.node("Cast", [value(model, "features")], attributes={"to": int(ir.DataType.DOUBLE)})
    elu = ir.node("Elu", double.outputs, name="node_elu")
    single = ir.node("Cast", elu.outputs, attributes={"to": int(ir.DataType.FLOAT)})
    model.graph.extend([double, elu])
    answer_instead(model, single)


def _inserted(op: str, fault: str) -> None:
    def change(model: ir.Model) -> None:
        answer_instead(model, ir.node(op, [value(model, "features")]))

    GRAPH_MUTANTS[f"inserted-{op.lower()}"] = GraphMutant(fault, change)


for _op, _fault in {
    "Resize": "A `Resize` is in the graph.",
    "GridSample": "A `GridSample` is in the graph.",
    "Loop": "A `Loop` over images is in the graph.",
    "Scan": "A `Scan` over images is in the graph.",
    "If": "An `If` is in the graph.",
    "NonZero": "A `NonZero` is in the graph: the shape of its result depends on values.",
}.items():
    _inserted(_op, _fault)
