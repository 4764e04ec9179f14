"""The gate's reference: it proves something, it is eager's own, and what `vectorize` breaks is seen beside it."""

from __future__ import annotations

import copy
import importlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from gates import BUCKET, judge
from torch import Tensor, nn

import naflex_export as nx
from naflex_export.accuracy.metrics import why_uninformative
from naflex_export.accuracy.reference import SoundInterpolate
from naflex_export.exporter import export
from naflex_export.models import adapter_of


def test_a_reference_that_proves_nothing_fails() -> None:
    """An untrained head gives zero logits, which any broken candidate would equal."""
    constant = tiny.constant()
    report = judge(constant, constant)
    assert not report.passed
    assert "proves nothing: it is the same for every image" in report.problems[0]
    assert why_uninformative(torch.zeros(2, 3)) == "it is zero everywhere: an untrained head, perhaps"
    assert why_uninformative(torch.tensor([[1.0, float("nan")]])) == "it holds values that are not finite"
    assert why_uninformative(torch.eye(3)) == ""


def tenth_more(part: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Return a function that gives a tenth more than it should."""
    return lambda *inputs, **named: 1.1 * part(*inputs, **named)


def tenth_more_added(part: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Return a function that adds a learned grid to what it is given, and a tenth more of it than it should."""
    return lambda x, grid, *rest, **named: part(x, 1.1 * grid, *rest, **named)


PARTS: dict[str, tuple[Callable[[], nn.Module], str, Callable[..., Any], int | None]] = {
    "learned": (tiny.siglip, "timm_naflex.add_resampled", tenth_more_added, None),
    "factorized": (
        lambda: tiny.naflexvit(pos_embed="factorized"),
        "timm_naflex.resample_axes_at",
        tenth_more,
        None,
    ),
    "rope": (
        lambda: tiny.naflexvit(pos_embed="none", rope_type="axial"),
        "timm_rope.rope_positions",
        tenth_more,
        None,
    ),
    "patch-size": (tiny.flexible, "timm_patch_size.resample_weight", tenth_more, 8),
    "siglip2": (tiny.siglip2, "siglip2.add_resampled", tenth_more_added, None),
}
"""What of `vectorize` stands in for eager's own code: a model that needs it, where it is, a fault, the patch size."""


def break_part(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Make a part of `vectorize` wrong by a tenth."""
    _, path, fault, _ = PARTS[name]
    module, _, function = path.partition(".")
    broken = importlib.import_module(f"naflex_export.models.{module}")
    monkeypatch.setattr(broken, function, fault(getattr(broken, function)))


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("name", PARTS)
def test_the_reference_never_passes_through_vectorize(name: str, dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Break what `vectorize` puts in: what it made goes wrong, reference and baseline do not, and the gate says so."""
    if name == "siglip2":
        pytest.importorskip("transformers")
    make, _, _, size = PARTS[name]
    model, torch_dtype = make(), getattr(torch, dtype)
    adapter = adapter_of(model, size)

    def judged(candidate: nn.Module) -> nx.GateReport:
        encoder = adapter.of(candidate.to(torch_dtype)).encoder(("features",))

        def run(*inputs: Tensor) -> Tensor:
            with SoundInterpolate():  # or eager SigLIP 2 would be wrong itself, by torch's fault
                return encoder(*inputs)[0]

        return judge(run, model, dtype=dtype, patch_size=size)

    before = judged(adapter.of(copy.deepcopy(model)).vectorized().model)
    assert before.passed
    eager = judged(copy.deepcopy(model))
    break_part(monkeypatch, name)
    assert not judged(adapter.of(copy.deepcopy(model)).vectorized().model).passed
    assert judged(copy.deepcopy(model)) == eager and eager.passed
    assert [found.baseline for found in eager.baselines] == [found.baseline for found in before.baselines]

    def unusable(*inputs: object) -> None:
        raise AssertionError("the gate vectorized a model")

    monkeypatch.setattr(type(adapter), "vectorized", unusable)
    assert judged(copy.deepcopy(model)) == eager


def test_a_vectorized_reference_is_refused(siglip: nn.Module) -> None:
    with pytest.raises(nx.RequestError, match="the reference is a vectorized model"):
        judge(siglip, nx.vectorize(siglip))


def test_the_reference_is_judged_in_float32_and_left_as_it_is() -> None:
    model = tiny.classifier().train().bfloat16()
    report = judge(tiny.classifier().bfloat16().float(), model)
    assert report.passed
    assert model.training and next(model.parameters()).dtype == torch.bfloat16


def test_an_export_of_a_broken_vectorize_publishes_nothing(
    siglip: nn.Module, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    break_part(monkeypatch, "learned")
    with pytest.raises(nx.GateFailure, match=r"mixed-24-seed0 \[features\]: max_share") as caught:
        export(siglip, "onnx", tmp_path / "a", BUCKET)
    assert caught.value.exit_code == 1
    assert "first deviation: embeds, relative L2" in str(caught.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.rejected.html", "a.rejected.json"]
    rejected = json.loads((tmp_path / "a.rejected.json").read_text())
    assert rejected["passed"] is False and rejected["location"]["first"] == "embeds"
    shown = [tap["module"] for tap in rejected["location"]["taps"]]
    assert shown[:3] == ["embeds.proj", "embeds", "blocks.0.norm1"] and len(shown) == 23
