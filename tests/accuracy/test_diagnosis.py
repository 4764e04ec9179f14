"""What the gate says of candidates with typical faults: which it is, and nothing of those that are right."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from torch import Tensor, nn

import naflex_export as nx
from naflex_export.accuracy import candidate_fault
from naflex_export.accuracy.diagnosis import KnownFault, diagnose
from naflex_export.accuracy.faults import FAULTS, features_of
from naflex_export.accuracy.report.formats import write
from naflex_export.batch import noise_batch
from naflex_export.grid import Grid

pytestmark = pytest.mark.usefixtures("diagnosed")

BUCKET = nx.Bucket(64, (1, 4, 8))


class Wrong(nn.Module):
    """A model that changes its inputs before it takes them, and its embedding as it is made."""

    def __init__(self, change: Callable[..., Any], position: Callable[[Any], object] = lambda model: None) -> None:
        super().__init__()
        self.model, self.change = tiny.siglip(), change
        position(self.model)

    def forward(self, patches: Tensor, coord: Tensor, valid: Tensor) -> Tensor:
        return self.model(*self.change(patches, coord, valid))


def plain_resize(model: Any) -> None:
    model.embeds.pos_embed_antialias = False


def bgr(patches: Tensor, coord: Tensor, valid: Tensor) -> tuple[Tensor, ...]:
    return patches.unflatten(-1, (-1, 3)).flip(-1).flatten(-2), coord, valid


CANDIDATES = {
    "bgr": lambda: Wrong(bgr),
    "mask-dropped": lambda: Wrong(lambda patches, coord, valid: (patches, coord, torch.ones_like(valid))),
    "no-antialias": lambda: Wrong(lambda *given: given, plain_resize),
}


@pytest.mark.parametrize("fault", CANDIDATES)
def test_the_gate_names_a_candidates_fault_in_every_report(fault: str, tmp_path: Path) -> None:
    report = nx.gate(CANDIDATES[fault](), tiny.siglip(), buckets=[BUCKET], effort="quick")
    assert not report.passed and report.fault == fault
    assert report.diagnosis.startswith(f"diagnosis: {fault}: ")
    with pytest.raises(nx.GateFailure, match=f"diagnosis: {fault}"):
        report.raise_for_failure()
    for suffix in (".html", ".md", ".xml", ".json"):
        write(report, tmp_path / f"r{suffix}")
        said = (tmp_path / f"r{suffix}").read_text(encoding="utf-8")
        assert report.diagnosis.removeprefix("diagnosis: ")[1:40].strip("`") in said.replace("\\", "")
    assert "<h2>Diagnosis</h2>" in (tmp_path / "r.html").read_text(encoding="utf-8")


def test_a_release_without_interpolate_shows_the_same_faults(monkeypatch: pytest.MonkeyPatch) -> None:
    """In transformers 5.24 SigLIP 2 resizes by matrices of its own, which no option of `interpolate` changes."""
    siglip2 = pytest.importorskip("naflex_export.models.siglip2")
    adapter = siglip2.Siglip2(tiny.siglip2())
    batch = noise_batch("faults", [Grid(2, 3), Grid(3, 2), Grid(7, 7), Grid(4, 1)], tokens=50, token_width=48)
    names = ("no-antialias", "align-corners", "bicubic", "bicubic-no-antialias", "nearest")
    right = features_of(adapter, batch)
    found = {name: FAULTS[name].run(adapter, batch) for name in names}
    assert torch.equal(features_of(adapter, batch), right)  # a fault leaves the model as it was
    torch.testing.assert_close(features_of(adapter.by_interpolate(), batch), right, atol=1e-5, rtol=1e-5)
    assert min(float((wrong - right).abs().max()) for wrong in found.values()) > 1e-3
    matrices = staticmethod(siglip2.VectorizedSiglip2VisionEmbeddings.resize_positional_embeddings)
    monkeypatch.setattr(siglip2.Siglip2VisionEmbeddings, "resize_positional_embeddings", matrices)
    for name in names:
        assert torch.equal(FAULTS[name].run(adapter, batch), found[name]), name


def test_what_is_right_or_wrong_in_another_way_has_no_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    right = nx.gate(nx.vectorize(tiny.siglip()), tiny.siglip(), buckets=[BUCKET], effort="quick")
    assert right.passed and not right.fault and not right.diagnosis
    noise = nx.gate(
        Wrong(lambda patches, *rest: (patches.roll(1, -1), *rest)), tiny.siglip(), buckets=[BUCKET], effort="quick"
    )
    assert not noise.fault and "none of the" in noise.diagnosis

    def fail(*given: object, **named: object) -> None:
        raise ValueError("no such thing")

    monkeypatch.setattr(candidate_fault, "diagnose", fail)
    failed = nx.gate(CANDIDATES["bgr"](), tiny.siglip(), buckets=[BUCKET], effort="quick")
    assert failed.failures and failed.diagnosis.endswith("looking for it raised ValueError: no such thing")


def known(**answers: Any) -> dict[str, KnownFault]:
    return {name.replace("_", "-"): KnownFault("x", "y", lambda one=one: {"a": one}) for name, one in answers.items()}


def test_rounding_is_told_by_what_it_does_to_the_same_values() -> None:
    draw = np.random.default_rng(0)
    right = draw.standard_normal((6, 40))
    errors = [1e-3 * draw.standard_normal(right.shape) for _ in range(3)]
    faults = known(float16=right + errors[0], float16_attention=right + 0.7 * errors[1], bgr=right + 1)

    def named(error: Any, is_low: bool = False) -> str:
        return diagnose({"a": right + error}, {"a": right}, faults, is_low).fault

    assert named(0.9 * errors[0] + 0.3 * errors[2]) == "float16"
    assert named(0.6 * errors[1] + 0.2 * errors[2]) == "float16-attention"
    assert named(0.4 * errors[0] + 0.8 * errors[2]) == "float16"  # hardly alike, and of its size
    assert named(errors[2]) == "" and named(30 * errors[2]) == ""
    assert named(errors[0], is_low=True) == "" and named(np.ones_like(right)) == "bgr"
    assert named(np.where(right > 2, np.nan, 0.0)) == "" and named(0 * right) == ""
