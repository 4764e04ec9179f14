"""torch.export, and conditions on sizes that it cannot decide, decided by trying every size.

While it traces, torch asks things such as whether min(N, 2 N) is N, and refuses what it cannot answer for every N that
the graph is to serve. torch 2.11 cannot answer that one, which SigLIP 2's pooling asks.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

ASSERTION = torch.ops.aten._assert_scalar.default


def export_for_all_sizes(model: nn.Module, example: tuple[Tensor, ...], dynamic_shapes: Any) -> ExportedProgram:
    """Return torch.export's graph of a module; arguments as of torch.export.

    Where torch refuses sizes for a condition on one of them, the condition is put into the graph, and taken out again
    if it holds for every size in the graph's ranges: backends drop assertions, so none may stay. (A condition that ties
    several sizes together, torch refuses neither before nor after; the gate judges the corners of a bucket.)

    Args:
        model: the module to trace.
        example: inputs to trace it with.
        dynamic_shapes: the open dimensions of each input, as of torch.export.

    Raises:
        torch._dynamo.exc.UserError: torch refused the sizes, and a condition does not hold for one of them, or is not
            about one size alone. So may every other error of torch.export.
    """
    arguments: dict[str, Any] = {"args": example, "dynamic_shapes": dynamic_shapes, "strict": False}
    try:
        return torch.export.export(model, **arguments)
    except torch._dynamo.exc.UserError:
        deferred = torch.export.export(model, **arguments, prefer_deferred_runtime_asserts_over_guards=True)
        if not _settled(deferred):
            raise
        return deferred


def _settled(exported: ExportedProgram) -> bool:
    """Take out the assertions of a graph; return whether each holds for every size."""
    graph = exported.graph
    asserting = [node for node in graph.nodes if node.op == "call_function" and node.target is ASSERTION]
    for node in asserting:
        if not _holds(node.args[0], exported.range_constraints):
            return False
        graph.erase_node(node)
    graph.eliminate_dead_code()
    exported.graph_module.recompile()
    return bool(asserting)


def _holds(condition: Any, ranges: dict[Any, Any]) -> bool:
    """Whether a condition on one size holds for all of its range."""
    value = condition.meta.get("val") if isinstance(condition, torch.fx.Node) else condition
    if not isinstance(value, torch.SymBool):
        return bool(value)
    expression = value.node.expr
    if not expression.free_symbols:
        return bool(expression)
    if len(expression.free_symbols) > 1:
        return False
    (symbol,) = expression.free_symbols
    sizes = range(int(ranges[symbol].lower), int(ranges[symbol].upper) + 1)
    return all(bool(expression.subs(symbol, size)) for size in sizes)
