"""A graph as a list of steps, in the same words for ONNX and for an ExportedProgram.

What a check has to know of a node: the operator, where it came from, which values it uses and which it makes. A value
whose shape alone is used is not read: a mask that only lends its batch size has no say in the result.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import onnx_ir as ir
import torch
from torch import fx
from torch.export import ExportedProgram

from naflex_export.graph.onnx_passes import inferred_types, module_of

ONNX_DTYPES = {
    ir.DataType.FLOAT: "float32",
    ir.DataType.FLOAT16: "float16",
    ir.DataType.BFLOAT16: "bfloat16",
    ir.DataType.INT32: "int32",
    ir.DataType.INT64: "int64",
    ir.DataType.BOOL: "bool",
}
"""Dtypes of ONNX under torch's names; every other keeps its own."""

_ONNX_SHAPE_ONLY = {"Shape": (0,), "Size": (0,), "EyeLike": (0,), "RandomNormalLike": (0,), "CastLike": (1,)}
"""Inputs, by position, of which an ONNX operator uses the shape or dtype alone."""

_ATEN_SHAPE_ONLY = {
    **dict.fromkeys(("zeros_like", "ones_like", "empty_like", "full_like", "rand_like", "randn_like"), (0,)),
    **dict.fromkeys(("new_zeros", "new_ones", "new_empty", "new_full"), (0,)),
    **dict.fromkeys(("sym_size", "sym_stride", "sym_numel", "_assert_tensor_metadata"), (0,)),
    **dict.fromkeys(("expand_as", "view_as", "reshape_as", "type_as"), (1,)),
}
"""The same of ATen's operators, without overloads."""


@dataclass(frozen=True)
class Step:
    """A node of a graph.

    Attributes:
        op: the operator, such as `MatMul` or `aten.linear.default`.
        name: the name of the node in its graph.
        module: the module of the model that it came from, such as `blocks.7.attn`; empty for the encoder's own forward.
        reads: the values whose contents it uses.
        writes: the values it makes.
    """

    op: str
    name: str
    module: str
    reads: tuple[str, ...]
    writes: tuple[str, ...]

    def __str__(self) -> str:
        origin = f"module {self.module!r}" if self.module else "the encoder's own forward"
        return f"{self.op} node {self.name!r} from {origin}"


@dataclass(frozen=True)
class GraphView:
    """A graph's inputs, steps and outputs.

    Attributes:
        inputs, outputs: the graph's values under their public names.
        steps: the operators' steps, in the order in which they run.
        dtypes: the dtype of each tensor, weights too, as torch names it.
        storage: the value in whose memory another lies, as a view or after a change in place: what changes one of them
            changes both.
    """

    inputs: Mapping[str, str]
    outputs: Mapping[str, str]
    steps: tuple[Step, ...]
    dtypes: Mapping[str, str]
    storage: Mapping[str, str] = field(default_factory=dict)

    def sources(self) -> Sources:
        """Return which inputs each value is made from."""
        found = {self.owner(value): frozenset([name]) for name, value in self.inputs.items()}
        sources = Sources(self, found)
        for step in self.steps:
            read = sources.of(*step.reads)
            for value in map(self.owner, step.writes):
                found[value] = found.get(value, frozenset()) | read
        return sources

    def owner(self, value: str) -> str:
        """Return the value in whose memory this one lies: itself, unless it is a view."""
        while value in self.storage:
            value = self.storage[value]
        return value


@dataclass(frozen=True)
class Sources:
    """Which inputs each value of a graph is made from; a weight or constant is made from none."""

    view: GraphView
    found: Mapping[str, frozenset[str]]

    def of(self, *values: str) -> frozenset[str]:
        """Return the names of the inputs that any of these values is made from."""
        return frozenset[str]().union(*(self.found.get(self.view.owner(value), ()) for value in values))


def view_of_onnx(model: ir.Model) -> GraphView:
    """Return an ONNX graph's view. Graphs within the graph are not looked into."""
    graph = model.graph
    said = {name: dtype_name(ir.DataType(type_.elem_type)) for name, type_ in inferred_types(model).items()}
    values = [*graph.inputs, *graph.initializers.values(), *(value for node in graph for value in node.outputs)]
    return GraphView(
        inputs={_name(value): _name(value) for value in graph.inputs},
        outputs={_name(value): _name(value) for value in graph.outputs},
        steps=tuple(step_of(node) for node in graph),
        dtypes=said | {_name(value): dtype_name(value.dtype) for value in values if value.dtype is not None},
    )


def step_of(node: ir.Node) -> Step:
    """Return an ONNX node as a step."""
    shape_only = _ONNX_SHAPE_ONLY.get(node.op_type, ())
    reads = [value for at, value in enumerate(node.inputs) if value is not None and at not in shape_only]
    return Step(
        node.op_type if not node.domain else f"{node.domain}.{node.op_type}",
        node.name or "",
        module_of(node),
        tuple(map(_name, reads)),
        tuple(map(_name, node.outputs)),
    )


def dtype_name(dtype: ir.DataType | None) -> str:
    """Return an ONNX dtype's name, torch's where it has one."""
    return "none" if dtype is None else ONNX_DTYPES.get(dtype, dtype.name.lower())


def _name(value: ir.Value) -> str:
    return value.name or ""


def view_of_program(exported: ExportedProgram, inputs: Mapping[str, str], outputs: Mapping[str, str]) -> GraphView:
    """Return the view of an ExportedProgram's graph.

    Args:
        exported: the program; operators may change values in place.
        inputs: the nodes of its inputs, under their public names.
        outputs: the nodes of its outputs, under theirs.
    """
    steps, storage, dtypes = [], {}, {}
    for node in exported.graph.nodes:
        value = node.meta.get("val")
        if isinstance(value, torch.Tensor):
            dtypes[node.name] = str(value.dtype).removeprefix("torch.")
        if node.op != "call_function":
            continue
        aliased = _aliased(node)
        if aliased is not None:
            storage[node.name] = aliased
        steps.append(step_of_call(node))
    return GraphView(inputs, outputs, tuple(steps), dtypes, storage)


def step_of_call(node: fx.Node) -> Step:
    """Return a call of an ExportedProgram as a step."""
    return Step(operator_name(node), node.name, fx_module_of(node), tuple(_read(node)), (node.name,))


def operator_name(node: fx.Node) -> str:
    """Return the operator of a call, such as `aten.linear.default`."""
    target = node.target
    return str(target) if isinstance(target, torch._ops.OpOverload) else getattr(target, "__name__", str(target))


def fx_module_of(node: fx.Node) -> str:
    """Return the module of the model that a node of an ExportedProgram came from, as `onnx_passes.module_of` does."""
    stack = [str(name) for name, _ in (node.meta.get("nn_module_stack") or {}).values()]
    made_up = not stack or stack[-1].startswith("_empty_nn_module_stack")  # a size that torch.export read by itself
    return "" if made_up else stack[-1].removeprefix("model").removeprefix(".")


def _read(node: fx.Node) -> Iterator[str]:
    """Yield the values whose contents a call uses."""
    base = operator_name(node).split(".")[1] if isinstance(node.target, torch._ops.OpOverload) else ""
    shape_only = [node.args[at] for at in _ATEN_SHAPE_ONLY.get(base, ()) if at < len(node.args)]
    for value in node.all_input_nodes:
        if not any(value is one for one in shape_only):
            yield value.name


def _aliased(node: fx.Node) -> str | None:
    """Return the argument in whose memory a call's result lies, as a view of it or because it is changed in place."""
    if node.target is operator.getitem:  # one of several views, or of several results
        return next((value.name for value in node.args[:1] if isinstance(value, fx.Node)), None)
    if not isinstance(node.target, torch._ops.OpOverload):
        return None
    arguments = zip(node.target._schema.arguments, node.args, strict=False)  # defaults are left out of a call
    return next((value.name for at, value in arguments if at.alias_info and isinstance(value, fx.Node)), None)
