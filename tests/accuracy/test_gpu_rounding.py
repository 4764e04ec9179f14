"""A float16 graph that a CPU computes in float32 is judged as a GPU rounds it, too."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tiny

import naflex_export as nx

BUCKET = nx.Bucket(16, (1, 2, 4))
QUICK: dict[str, Any] = {"buckets": [BUCKET], "effort": "quick"}


def test_what_a_cpu_hides_is_refused(tmp_path: Path) -> None:
    """As it runs on this CPU the stream of tokens is float32 between two casts; on a GPU it loses digits at 10,000."""
    with pytest.raises(nx.GateFailure) as raised:
        nx.export(tiny.with_large_residual(10_000.0, (0,), depth=1), "onnx", tmp_path / "a", dtype="float16", **QUICK)
    report = json.loads((tmp_path / "a.rejected.json").read_text())
    here, as_on_gpu = report["baselines"]
    assert here["output"] == "features" and here["candidate"] < here["limit"] / 5
    assert as_on_gpu["output"] == "rounded/features" and as_on_gpu["candidate"] > as_on_gpu["limit"]
    assert "all cases [rounded/features]: error" in str(raised.value)
    assert "--keep-float32 residual,norm" in str(raised.value)
    artifact = nx.export(
        tiny.with_large_residual(10_000.0, (0,), depth=1),
        "onnx",
        tmp_path / "b",
        dtype="float16",
        keep_float32=["residual", "norm"],
        **QUICK,
    )
    assert artifact.report.passed


def test_both_forms_are_in_the_report_and_either_is_judged_again(tmp_path: Path) -> None:
    model = tiny.shallow()
    report = nx.export(model, "onnx", tmp_path / "a", dtype="float16", **QUICK).report
    names = [result.case for result in report.results]
    rounded = [name.removeprefix("rounded/") for name in names if name.startswith("rounded/")]
    assert rounded == [name for name in names if name.startswith(("photos-", "mixed-", "one-column-"))]
    assert report.judged == (
        "the artifact, on cpu; rounded/: the same graph with each result rounded to float16, as on a GPU"
    )
    here, as_on_gpu = report.baselines
    assert as_on_gpu.candidate > here.candidate
    run = nx.load(tmp_path / "a")
    again = nx.gate(run, model, cases=["rounded/mixed-16-seed0", "one-column-16-seed0"])
    assert again.judged == report.judged
    assert nx.gate(run, model, cases=["rounded/mixed-16-seed0"]).judged == report.judged.partition("; ")[2]
    assert again.passed and {result.case for result in again.results} == {
        "rounded/mixed-16-seed0",
        "one-column-16-seed0",
    }
    with pytest.raises(nx.RequestError, match="case 'elsewhere/mixed-16-seed0' names no part"):
        nx.gate(run, model, cases=["elsewhere/mixed-16-seed0"])
    for kept in ({"keep_float32": "norm"}, {"keep_unquantized": ["blocks.0"]}):
        with pytest.raises(nx.RequestError, match=r"was given and no dtype: an artifact's manifest says what it comp"):
            nx.gate(run, model, **kept)


@pytest.mark.parametrize("dtype", [pytest.param("float32", marks=pytest.mark.full), "bfloat16"])
def test_what_runs_with_its_own_digits_is_judged_once(dtype: str, tmp_path: Path) -> None:
    """A float32 graph is; one in bfloat16 does not run here at all, and is judged rounded alone."""
    report = nx.export(tiny.shallow(), "onnx", tmp_path / "a", dtype=dtype, **QUICK).report
    assert not any(result.case.startswith("rounded/") for result in report.results)
