"""The search for what to keep in float32: what it tries, what it ends with, and what that costs beside the best."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import planted
import pytest
import reports
import tiny
import torch
from torch import nn

import naflex_export as nx
from naflex_export.accuracy.precision_cost import Costs
from naflex_export.accuracy.precision_search import Names, joined, search
from naflex_export.accuracy.precision_trials import Trials
from naflex_export.accuracy.report.formats import as_markdown
from naflex_export.accuracy.report.html import as_html
from naflex_export.accuracy.results import GateReport, Location, Tap
from naflex_export.export_request import ExportRequest
from naflex_export.exporter import Exporter
from naflex_export.grid import Bucket
from naflex_export.models import adapter_of
from naflex_export.models.kept_parts import ModelParts, kept_of
from naflex_export.precision import Precision

BLOCKS = tuple(f"blocks.{index}" for index in range(4))
BUCKETS = (Bucket(24, (1, 4, 8)),)


def judge_by(passes: Callable[[set[str]], bool], *taps: Tap) -> Callable[[Names], GateReport]:
    """Return a judge that knows what is enough, and shows these modules where it is not."""

    def judged(names: Names) -> GateReport:
        if passes(set(names)):
            return reports.passing()
        return replace(reports.failing(), location=Location("mixed-24-seed0", taps))

    return judged


def cost(names: Names) -> float:
    prices = {"residual": 0.02, "norm": 0.01, "softmax": 0.3, "pooling": 0.2, "embedding": 0.1}
    return 1 + sum(prices.get(name, 1.0) for name in names)


def tap(module: str, error: float = math.nan, largest: float = 3.0, inside: float = 3.0) -> Tap:
    return Tap(module, error, 1e-3, largest, largest, 65504.0, inside)


def test_nothing_is_searched_where_nothing_fails() -> None:
    found, report = search(judge_by(lambda names: True), cost, BLOCKS)
    assert found.found == () and len(found.steps) == 1 and report.passed
    assert found.line == "search: the gate passes with nothing kept in float32 (1 trial)"


def test_ranges_say_where_to_begin() -> None:
    """Of nested modules the inner one, and the stream only where its own values are large; each needed, so all stay."""
    shown = (
        tap("blocks.1.mlp", inside=9e4),
        tap("blocks.1", inside=9e4),
        tap("blocks.2.attn", largest=1.0, inside=1.0),
        tap("blocks.3", largest=8e4, inside=8e4),
    )
    wanted = {"residual", "norm", "blocks.1.mlp"}
    found, report = search(judge_by(lambda names: names >= wanted, *shown), cost, BLOCKS)
    assert report.passed and set(found.found or ()) == wanted
    assert [step.passed for step in found.steps] == [False, True, False, False, False]
    assert found.steps[1].why == "values up to 9.0e+04 in 2 modules"


def test_what_is_not_needed_is_taken_away_again_the_dearest_first() -> None:
    shown = (tap("blocks.1.mlp", inside=9e4), tap("blocks.2.mlp", inside=9e4), tap("blocks.3", largest=8e4, inside=8e4))
    found, _ = search(judge_by(lambda names: names >= {"residual", "blocks.2.mlp"}, *shown), cost, BLOCKS)
    assert set(found.found or ()) == {"residual", "blocks.2.mlp"}
    assert next(step.why for step in found.steps if step.why.startswith("is ")) == "is blocks.1.mlp needed?"


def test_the_first_module_that_deviates_is_kept_where_no_range_is_left() -> None:
    found, _ = search(judge_by(lambda names: "blocks.2.attn" in names, tap("blocks.2.attn")), cost, BLOCKS)
    assert found.found == ("blocks.2.attn",) and found.steps[1].why == "blocks.2.attn deviates first"


def test_where_a_failure_points_nowhere_presets_come_and_then_blocks() -> None:
    found, _ = search(judge_by(lambda names: "blocks.1" in names), cost, BLOCKS)
    assert found.found == ("blocks.1",)
    tried = [step.keep_float32 for step in found.steps]
    presets = ("residual", "norm", "softmax", "pooling", "embedding")
    assert tried[:5] == [(), presets[:2], presets[:3], presets[:4], presets]
    assert tried[5:7] == [(*presets, "blocks.0"), (*presets, "blocks.0", "blocks.1")]


def test_it_ends_with_a_refusal_where_nothing_helps() -> None:
    found, report = search(judge_by(lambda names: False), cost, BLOCKS)
    assert found.found is None and set(BLOCKS) < set(found.steps[-1].keep_float32)
    assert "norm" not in found.steps[-1].keep_float32  # each is part of something else by then
    assert "no part of the model makes the gate pass that is kept in float32: export in another dtype" in found.line
    refused = replace(report, search=found)
    assert not refused.passed and refused.failures[0] == found.line
    with pytest.raises(nx.GateFailure, match="export in another dtype"):
        refused.raise_for_failure()


class OfSiglip(ModelParts):
    """The parts of a tiny SigLIP, whose blocks are two."""

    def __init__(self) -> None:
        super().__init__(adapter_of(tiny.siglip()))


@pytest.mark.parametrize(
    "shown",
    [
        tap("blocks.1.norm1", largest=8e4),
        tap("attn_pool.mlp.act", largest=8e4),
        tap("attn_pool"),
        tap("norm"),
        tap("blocks.1", largest=8e4, inside=8e4),
        tap("embeds.proj", largest=8e4),
    ],
    ids=lambda shown: shown.module,
)
def test_a_search_in_vain_ends_and_tries_no_name_that_adds_nothing(shown: Tap) -> None:
    """Whatever a report points to, with every name the model takes by then; so each of them can be exported."""
    adapter, tried = adapter_of(tiny.siglip()), list[Names]()
    judged = judge_by(lambda names: False, shown)

    def asked(names: Names) -> GateReport:
        kept_of(adapter, Precision("float16", names))
        tried.append(names)
        return judged(names)

    found, _ = search(asked, cost, BLOCKS[:2], parts=OfSiglip())
    assert found.found is None and len(set(tried)) == len(tried) < 10
    assert {"residual", "pooling", "embedding", "blocks.0", "blocks.1"} == set(tried[-1])


def test_a_block_takes_the_place_of_its_parts() -> None:
    assert joined(("norm", "blocks.1.mlp"), ("blocks.1",), BLOCKS) == ("norm", "blocks.1")


def test_costs_are_those_of_products_and_of_values_moved() -> None:
    model = tiny.siglip()
    costs = Costs.of(adapter_of(model), 24)

    def of(names: str) -> float:
        return costs.of_precision(Precision.of("float16", names))

    assert of("") == 1.0
    assert 1 < of("norm") < of("norm,residual") < of("norm,residual,softmax")
    assert of("blocks.0.mlp") < of("blocks.0") and of("blocks.0.mlp") == pytest.approx(of("blocks.1.mlp"))
    everything = of("embedding,blocks.0,blocks.1,pooling")
    assert everything - 1 == pytest.approx(of("embedding") + of("blocks.0") + of("blocks.1") + of("pooling") - 4)
    products = 24 * sum(
        parameter.numel()
        for name, parameter in model.blocks[0].named_parameters()
        if "weight" in name and parameter.ndim > 1
    )
    assert sum(cost for name, cost in costs.products.items() if name.startswith("blocks.0")) == products


def exporter(model: nn.Module, folder: Path, keep: str = "auto") -> Exporter:
    request = ExportRequest("onnx", folder, BUCKETS, Precision.of("float16", keep), effort="quick")
    return Exporter(model, request)


def test_auto_exports_what_it_found_and_shows_its_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    judged = judge_by(lambda kept: "norm" in kept)
    monkeypatch.setattr(Trials, "judged", lambda self, precision: judged(precision.keep_float32))
    artifact = exporter(tiny.shallow(), tmp_path / "a").run()
    assert artifact.manifest.precision == Precision("float16", ("norm",)) and artifact.report.passed
    written = json.loads((artifact.path / "gate" / "report.json").read_text())
    assert written["search"]["found"] == ["norm"] == written["keep_float32"]
    assert [step["passed"] for step in written["search"]["steps"]] == [False, True, True]
    page = as_html(artifact.report)
    assert "Relative L2 error and estimated time of each trial" in page and "is residual needed?" in page
    assert "<script" not in page and page.count('class="holds"') == 1 + 2
    assert "| norm |" in as_markdown(artifact.report).replace("`", "")


def test_auto_publishes_nothing_where_nothing_helps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    judged = judge_by(lambda kept: False)
    monkeypatch.setattr(Trials, "judged", lambda self, precision: judged(precision.keep_float32))
    with pytest.raises(nx.GateFailure, match="no part of the model makes the gate pass"):
        exporter(tiny.shallow(), tmp_path / "a").run()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.rejected.html", "a.rejected.json"]
    assert "no part of the model makes the gate pass" in (tmp_path / "a.rejected.html").read_text()


@pytest.mark.full
def test_auto_finds_planted_outliers(tmp_path: Path) -> None:
    artifact = exporter(planted.in_stream_and_block(2), tmp_path / "a").run()
    assert set(artifact.manifest.precision.keep_float32) == {"residual", "norm", "blocks.1.mlp"}
    assert artifact.report.passed and artifact.report.search is not None


@pytest.mark.full
def test_auto_finds_them_in_packs_and_in_vision_towers_too(tmp_path: Path) -> None:
    model = planted.in_stream_and_block(2)
    packed = Exporter(model, replace(exporter(model, tmp_path / "a").request, packed=True)).run()
    assert set(packed.manifest.precision.keep_float32) == {"residual", "norm", "blocks.1.mlp"}
    pytest.importorskip("transformers")
    from tower_tiny import qwen3_vl

    tower: Any = qwen3_vl()
    with torch.no_grad():
        tower.blocks[1].mlp.linear_fc1.weight.mul_(4e4)
        tower.blocks[1].mlp.linear_fc2.weight.mul_(1e-4)
    with pytest.warns(UserWarning, match="the model is a vision tower"):
        found = exporter(tower, tmp_path / "b").run()
    assert set(found.manifest.precision.keep_float32) == {"blocks.1.mlp"} and found.report.passed
