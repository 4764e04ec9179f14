"""A rewrite of ONNX graphs: `Attention` reads heads where a projection left them, in the rows of its result.

torch moves heads ahead of tokens before attention and back after it: four copies of what a block holds. ONNX's
`Attention` takes and gives [batch, tokens, heads * width] as well. What is left of the copies is one Split, where
queries, keys and values come from one projection.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass
from onnxscript.rewriter import MatchResult, RewriteRule, RewriteRuleSet

_HEADS_FIRST = [0, 2, 1, 3]  # of [batch, tokens, heads, width], and back
_PARTS_FIRST = [2, 0, 3, 1, 4]  # of [batch, tokens, parts, heads, width]


def read_heads_in_rows(model: ir.Model) -> int:
    """Let each `Attention` read and give heads in rows, where all that it reads and gives is only moved there and back.

    Guarantees the same products and sums: nothing but copies goes. Attention whose queries or keys are changed head by
    head, by RoPE or a normalization, stays as it is.

    Args:
        model: of opset 23 or newer; it is changed in place.

    Returns:
        How many nodes were rewritten.
    """
    kinds = (_Separate(), _KeysWithValues(), _Together())
    rules = RewriteRuleSet([RewriteRule(kind.pattern, kind.rewrite, kind.check) for kind in kinds])
    count = rules.apply_to_model(model)
    RemoveUnusedNodesPass()(model)  # what computed the shapes of the views
    return count


class _Rule:
    """Attention to heads [batch, heads, tokens, width] that are views of rows, and whose result is put into rows.

    Values that `pattern` names are given to `check` and `rewrite` by these names.

    Attributes:
        parts: how many parts rows of [batch, tokens, parts * heads * width] are split into, where one projection makes
            several.
    """

    parts = 1

    def check(self, context: object, heads: ir.Value, **values: ir.Value) -> MatchResult:
        """Refuse attention that gives more than its result, and a Reshape that does more than to split or join rows."""
        result = MatchResult()
        attention = heads.producer()
        assert attention is not None
        if len(attention.outputs) > 1:
            return result.fail("it gives its scores, or what a cache holds")
        views = [(values[name], values[name.removesuffix("_view")]) for name in values if name.endswith("_view")]
        fits = all(_splits(view, rows, self.parts) for view, rows in views)
        return result if fits else result.fail("rows are rearranged")


class _Separate(_Rule):
    """Queries, keys and values from a projection each, as in SigLIP 2 of transformers."""

    def pattern(self, op: Any, query: Any, key: Any, value: Any) -> Any:
        return _attended(op, _view(op, "query", query), _view(op, "key", key), _view(op, "value", value))

    def rewrite(self, op: Any, query: ir.Value, key: ir.Value, value: ir.Value, **bound: ir.Value) -> Any:
        return _in_rows(op, [query, key, value], bound["query_view"], bound["key_view"], bound["heads"])


class _KeysWithValues(_Rule):
    """Keys and values from one projection, as in timm's attention pooling."""

    parts = 2

    def pattern(self, op: Any, query: Any, pair: Any) -> Any:
        return _attended(op, _view(op, "query", query), *_parts(op, "pair", pair, self.parts))

    def rewrite(self, op: Any, query: ir.Value, pair: ir.Value, **bound: ir.Value) -> Any:
        rows = [query, *_divided(op, pair, self.parts)]
        return _in_rows(op, rows, bound["query_view"], bound["pair_view"], bound["heads"])


class _Together(_Rule):
    """All three from one projection, as in timm's blocks."""

    parts = 3

    def pattern(self, op: Any, triple: Any) -> Any:
        return _attended(op, *_parts(op, "triple", triple, self.parts))

    def rewrite(self, op: Any, triple: ir.Value, **bound: ir.Value) -> Any:
        rows = _divided(op, triple, self.parts)
        return _in_rows(op, rows, bound["triple_view"], bound["triple_view"], bound["heads"])


def _attended(op: Any, query: Any, key: Any, value: Any) -> Any:
    heads = op.Attention(query, key, value, _allow_other_inputs=True, _outputs=["heads"])
    view = op.Transpose(heads, perm=_HEADS_FIRST, _outputs=["joined_view"])
    return op.Reshape(view, _allow_other_inputs=True, _outputs=["joined"])


def _view(op: Any, name: str, rows: Any) -> Any:
    return op.Transpose(_split(op, name, rows), perm=_HEADS_FIRST)


def _parts(op: Any, name: str, rows: Any, count: int) -> list[Any]:
    moved = op.Transpose(_split(op, name, rows), perm=_PARTS_FIRST)
    return [op.Squeeze(op.Slice(moved, [part], [part + 1], [0]), [0]) for part in range(count)]


def _split(op: Any, name: str, rows: Any) -> Any:
    return op.Reshape(rows, _allow_other_inputs=True, _outputs=[f"{name}_view"])


def _divided(op: Any, rows: ir.Value, count: int) -> list[ir.Value]:
    parts: list[ir.Value] = op.Split(rows, axis=-1, num_outputs=count, _outputs=count)
    assert rows.shape is not None and rows.dtype is not None
    *outer, width = rows.shape
    assert isinstance(width, int)  # `check` has seen to it
    for part in parts:
        part.dtype, part.shape = rows.dtype, ir.Shape([*outer, width // count])
    return parts


def _in_rows(op: Any, rows: Sequence[ir.Value], query: ir.Value, key: ir.Value, heads: ir.Value) -> Any:
    """Return attention to rows, whose heads are counted from the views that there were."""
    attention = heads.producer()
    assert attention is not None and query.shape is not None and key.shape is not None
    counts = {"q_num_heads": query.shape[-2], "kv_num_heads": key.shape[-2]}
    return op.Attention(*rows, *attention.inputs[3:], **attention.attributes, **counts)


def _splits(view: ir.Value, rows: ir.Value, parts: int) -> bool:
    """Whether a view is rows [batch, tokens, n] with n split into heads and width, or into parts ahead of them."""
    if view.shape is None or rows.shape is None or len(rows.shape) != 3 or not isinstance(rows.shape[2], int):
        return False
    if any(shape.is_unknown_dim(axis) for shape in (view.shape, rows.shape) for axis in (0, 1)):
        return False
    sizes = [size for size in view.shape[2:] if isinstance(size, int)]
    kept = list(view.shape[:2]) == list(rows.shape[:2]) and len(sizes) == len(view.shape) - 2
    return kept and (len(sizes) == 2 or (len(sizes) == 3 and sizes[0] == parts))
