"""What to do about a first deviation: it depends on what is seen there."""

from __future__ import annotations

import pytest

from naflex_export.accuracy.advice import advice_on, advice_without, to_keep
from naflex_export.accuracy.results import Tap


def tap(module: str = "blocks.7.attn", **fields: float) -> Tap:
    usual = {"relative_l2": 0.3, "floor": 1e-3, "max_abs": 3.0, "reference_max_abs": 3.0, "dtype_max": 65504.0}
    return Tap(module, **{**usual, **fields})


@pytest.mark.parametrize(
    ("found", "dtype", "says"),
    [
        (
            tap(max_abs=5e4),
            "float16",
            "values up to 5.0e+04 of float16's 65504: keep this module in float32 "
            "(--keep-float32 blocks.7.attn), or export",
        ),
        (
            tap(max_abs=float("nan")),
            "float16",
            "not finite, though the reference reaches only 0.0e+00: a sum or product",
        ),
        (tap(relative_l2=3e-3), "float16", "within range: it needs more digits; keep this module in float32 (--keep-"),
        (tap(), "float16", "within range: the graph computes something else there; check its mask"),
        (tap("blocks.7.mlp"), "bfloat16", "the graph computes something else there; check its weights"),
        (tap(relative_l2=3e-4), "float32", "few digits are lost: does the backend compute in TF32"),
        (tap("embeds", relative_l2=3e-4), "float32", "the position embedding differs"),
        (tap("embeddings.patch_embedding"), "float32", "patches are projected otherwise"),
        (tap("blocks.7", max_abs=float("inf"), dtype_max=3.4e38), "float32", "not finite, values up to 0.0e+00 in the"),
        (tap("output features"), "float32", "what follows the last module differs"),
    ],
    ids=lambda value: value.module if isinstance(value, Tap) else None,
)
def test_advice_depends_on_what_is_seen(found: Tap, dtype: str, says: str) -> None:
    assert says in advice_on(found, dtype)


@pytest.mark.parametrize(
    ("found", "kept", "expected"),
    [
        (tap("blocks.7.mlp", inside_max_abs=9e4), (), ("blocks.7.mlp",)),
        (tap("blocks.7.mlp", reference_max_abs=9e4), (), ("residual", "norm", "blocks.7.mlp")),
        (tap("blocks.7", reference_max_abs=9e4), (), ("residual", "norm")),
        (tap("blocks.7", reference_max_abs=9e4), ("residual",), ("norm",)),
        (tap("blocks.7"), (), ("blocks.7",)),
        (tap("blocks.7.attn"), ("blocks.7",), ()),
        (tap("blocks.7.attn"), ("blocks.7.attn",), ("blocks.7",)),
        (tap("blocks.7.norm1", reference_max_abs=9e4), (), ("blocks.7",)),
        (tap("norm"), ("blocks.7",), ("norm",)),
        (tap("output features"), (), ("pooling",)),
    ],
)
def test_what_to_keep_depends_on_whose_values_are_large(
    found: Tap, kept: tuple[str, ...], expected: tuple[str, ...]
) -> None:
    assert to_keep(found, kept) == expected


def test_advice_goes_on_where_earlier_advice_was_taken() -> None:
    found = tap("blocks.7.mlp", max_abs=9e4)
    assert "(--keep-float32 norm,blocks.7.mlp)" in advice_on(found, "float16", ("norm",))
    assert "it is in float32 already" in advice_on(found, "float16", ("blocks.7",))


def test_advice_where_no_module_deviates() -> None:
    assert "what failed is not in the values" in advice_without("float16", None, False, False)
    assert "these outputs take more: export in a wider dtype" in advice_without("float16", None, True, True)
    assert "the copy that shows its modules computes them right" in advice_without("float16", None, True, False)
