"""A dtype that eager itself is too far off in: finite, as wrong as eager, and no verdict to rely on."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

import pytest
import tiny
import torch
from torch import Tensor, nn

import naflex_export as nx
from naflex_export.accuracy.results import GateReport

BUCKET = nx.Bucket(16, (1, 2, 4))
QUICK: dict[str, Any] = {"buckets": [BUCKET], "effort": "quick"}


class In16Bits(nn.Module):
    """A model cast as a whole, whose features come out in that dtype."""

    def __init__(self, model: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.model = copy.deepcopy(model).to(dtype)

    def forward(self, patches: Tensor, patch_coord: Tensor, patch_valid: Tensor) -> Tensor:
        features: Tensor = self.model(patches, patch_coord, patch_valid)
        return features


def judged(size: float, dtype: str) -> GateReport:
    """Return the report on eager itself in 16 bits, of a model with two channels of this size in its stream."""
    model = tiny.with_large_residual(size)
    return nx.gate(In16Bits(model, getattr(torch, dtype)), model, dtype=dtype, **QUICK)


def test_a_dtype_too_coarse_for_the_model_fails_and_says_what_to_keep() -> None:
    """At 10,000 float16 has steps of 8, which move the mean of 32 channels by a share of what the others hold."""
    report = judged(10_000.0, "float16")
    (found,) = report.baselines
    assert found.is_coarse and found.candidate <= 2 * found.baseline and found.limit == report.limits.relative_l2
    assert "too coarse for this model" in found.failure and f"{found.candidate:.2g} is more than 0.01" in found.failure
    assert not report.passed and f"all cases [features]: {found.failure}" in report.failures
    first = report.location.first if report.location else None
    assert first is not None and first.module.startswith("blocks.") and first.relative_l2 > first.floor == found.limit
    assert "--keep-float32 residual,norm" in report.location.advice  # type: ignore[union-attr]


def test_a_wrong_norm_is_no_matter_of_digits() -> None:
    """It deviates as the first norm of a stream that has lost digits does; eager in that dtype is right there."""
    wrong = tiny.siglip()
    with torch.no_grad():
        wrong.blocks[1].norm1.weight.mul_(1.3)
    report = nx.gate(In16Bits(wrong, torch.float16), tiny.siglip(), dtype="float16", locate=True, **QUICK)
    assert report.location is not None and report.location.first is not None and not report.is_coarse
    assert report.location.first.module == "blocks.1.norm1" and "keep" not in report.location.advice


@pytest.mark.parametrize(("size", "dtype"), [(10.0, "float16"), (0.0, "float16"), (0.0, "bfloat16")])
def test_a_dtype_that_is_fine_enough_passes(size: float, dtype: str) -> None:
    report = judged(size, dtype)
    assert report.passed and not any(found.is_coarse for found in report.baselines)


def test_one_sensitive_case_is_not_a_coarse_dtype() -> None:
    """A single image may be far off where eager is; what all cases together say decides."""
    (found,) = judged(0.0, "float16").baselines
    assert not dataclasses.replace(found, candidate=found.limit, baseline=found.limit).failure
    assert dataclasses.replace(found, candidate=1.01 * found.limit, baseline=found.limit).is_coarse
    for baseline in (float("inf"), 0.5 * found.limit):  # no yardstick, or one that a wrong graph is beyond
        assert not dataclasses.replace(found, candidate=1.01 * found.limit, baseline=baseline).is_coarse
