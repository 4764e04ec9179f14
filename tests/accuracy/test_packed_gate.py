"""The gate on packed candidates: right ones pass, those that mix images or take segments for equal are rejected."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import tiny
import torch
from torch import Tensor, nn

import naflex_export as nx
from naflex_export.serving.packed_format import PACKED

BUCKETS = [nx.Bucket(24, (1, 3, 4))]


def as_it_is(given: dict[str, Tensor]) -> dict[str, Tensor]:
    return given


def equal_segments(given: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return offsets as exporters have them that took the example's images for equal."""
    images, tokens = len(given["grids"]), len(given["patches"])
    ends = torch.arange(images + 1) * tokens // images
    longest = max(int(ends.diff().max()), len(given["positions"]))
    return {**given, "offsets": ends, "positions": torch.arange(longest)}


def judged(model: Any, changed: Callable[[dict[str, Tensor]], dict[str, Tensor]], **options: Any) -> nx.GateReport:
    packed = nx.vectorize(model, packed=True)

    def candidate(*inputs: Tensor) -> Tensor:
        given: Tensor = packed(changed(dict(zip(PACKED.names, inputs, strict=True))))
        return given

    return nx.gate(candidate, model, buckets=BUCKETS, effort="quick", packed=True, **options)


@pytest.fixture(scope="module")
def model() -> nn.Module:
    return tiny.classifier()


def test_a_right_candidate_passes(model: nn.Module) -> None:
    report = judged(model, as_it_is)
    assert report.passed, report.problems
    names = [invariance.name for invariance in report.invariances]
    assert names == ["neighbours' content", "company in a pack", "order in the batch", "masking a valid token"]


def test_equal_segments_are_rejected(model: nn.Module) -> None:
    report = judged(model, equal_segments)
    assert not report.passed
    failed = {invariance.name for invariance in report.invariances if invariance.failure}
    assert {"neighbours' content", "company in a pack"} <= failed


def test_attention_across_images_is_rejected(model: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    from naflex_export.models import packing, timm_packed

    def across(qkv: packing.Rows, num_heads: int, layout: packing.Packing, **options: Any) -> Tensor:
        heads = [rows.unflatten(-1, (num_heads, -1)).transpose(0, 1)[None] for rows in qkv]  # type: ignore[no-untyped-call]
        given: Tensor = nn.functional.scaled_dot_product_attention(*heads)
        return given[0].transpose(0, 1).flatten(1)

    monkeypatch.setattr(timm_packed, "attend", across)
    report = judged(model, as_it_is)
    assert not report.passed
    assert any(invariance.failure.startswith("neighbours' content moved") for invariance in report.invariances)


def test_tokens_are_compared_row_by_row() -> None:
    model: Any = tiny.naflexvit("naflexvit_base_patch16_gap", global_pool="")
    assert judged(model, as_it_is, outputs=("features",)).passed
    assert not judged(model, equal_segments, outputs=("features",)).passed
