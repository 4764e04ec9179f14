"""The sweep over timm's architectures: one of each kind through every stage, and what happens to a row that fails."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import sweep_page
import sweep_timm as sweep
import torch
from torch import Tensor

from naflex_export.accuracy.metrics import LIMITS
from naflex_export.models import timm_naflex

NARROW = {"embed_dim": 64, "num_heads": 2}
KINDS = {  # a position embedding, its matrices, a RoPE and a pooling of each kind
    "naflexvit_base_patch16_parfac_gap": ("factorized", "computed", "none", "avg"),
    "vit_pe_core_tiny_patch16_384": ("learned", "computed", "cat", "map"),
    "vit_small_patch16_dinov3": ("none", "", "dinov3", "avg"),
    "vit_small_patch16_rope_mixed_224": ("none", "", "mixed", "token"),
}


@pytest.mark.full
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")  # of the ONNX exporter
@pytest.mark.parametrize(
    ("name", "kind"),
    [pytest.param(*one, id=one[0]) for one in KINDS.items()],
)
def test_each_kind_passes_every_stage(name: str, kind: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sweep, "DEPTH", 1)
    row = sweep.check(name, **NARROW)
    assert row["failure"] == ""
    assert (row["pos_embed"], row["matrices"], row["rope"], row["pooling"]) == kind
    for column in sweep.ERRORS:
        assert 0 <= float(row[column]) <= LIMITS["float32"].max_share
    assert int(row["trt_engine_bytes"]) > 10_000
    assert int(row["depth"]) > sweep.DEPTH
    assert set(row) == set(sweep.COLUMNS)


def test_every_architecture_is_found() -> None:
    names = sweep.architectures()
    assert set(KINDS) < set(names)
    assert len(names) == len(set(names)) > 200
    assert not [name for name in names if name.startswith(("resnet", "beit_"))]


def test_unknown_names_are_refused(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    with pytest.raises(SystemExit):
        sweep.main(["--csv", str(tmp_path / "sweep.csv"), "resnet50"])
    assert "resnet50: not among the " in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_heads_of_both_kinds_stay() -> None:
    model, depth = sweep.create("vit_large_patch16_sapiens2", embed_dim=64)
    assert [block.attn.num_kv_heads for block in model.blocks] == [16, 8]
    assert depth == 24


def test_wrong_results_give_a_row_that_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    right = timm_naflex.add_resampled

    def transposed(x: Tensor, grid: Tensor, *arguments: Any, **named: Any) -> Tensor:
        return right(x, grid.transpose(0, 1), *arguments, **named)

    def refuse(*arguments: Any, **named: Any) -> None:
        raise ValueError("not\ntoday")

    monkeypatch.setattr(timm_naflex, "add_resampled", transposed)
    monkeypatch.setattr(sweep.nx, "compile", refuse)
    monkeypatch.setattr(sweep, "trace", refuse)
    refused = sweep.check("naflexvit_base_patch16_siglip", **NARROW)["failure"]
    assert refused.startswith("vectorize: UnsupportedModelError: the vectorized model embeds grids of 2x3 and 3x2")
    monkeypatch.setattr("naflex_export.models.vectorize.check_embedding", lambda *adapters: None)
    row = sweep.check("naflexvit_base_patch16_siglip", **NARROW)
    wrong, compiled, traced = row["failure"].split(" | ")
    assert wrong.startswith("vectorize: BuildError: features differ by ")
    assert (compiled, traced) == ("compile: ValueError: not today", "trace: ValueError: not today")
    assert float(row["vectorize_tokens"]) > 0.01
    assert row["onnx_features"] == row["trt_engine_bytes"] == ""


def test_refusals_of_timm_give_a_row() -> None:
    row = sweep.check("eva02_enormous_patch14_clip_224")
    assert row["failure"].startswith("create: ")
    assert "use_post_norm" in row["failure"]
    assert row["vectorize_features"] == ""


def test_outputs_that_prove_nothing_are_not_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    def zero(model: torch.nn.Module, seed: int) -> None:
        for parameter in model.parameters():
            parameter.data.zero_()

    monkeypatch.setattr(sweep, "randomize", zero)
    row = sweep.check("naflexvit_base_patch16_siglip", **NARROW)
    assert row["failure"].startswith("eager: ValueError: features of the eager model prove nothing")


def test_the_sweep_goes_on_where_the_csv_ends(tmp_path: Path) -> None:
    path, asked = tmp_path / "results" / "sweep.csv", []

    def one(name: str) -> sweep.Row:
        asked.append(name)
        if 2 < len(asked) < 5:
            raise KeyboardInterrupt
        return {
            **sweep.new_row("vit_tiny_patch16_224"),
            "architecture": name,
            "failure": 'trt: a "reason", with commas',
        }

    names = ["a", "b", "c", "d"]
    with pytest.raises(KeyboardInterrupt):
        sweep.sweep(names, path, one)
    with path.open("a") as file:
        file.write("c,eva,2026-01-01")  # a row cut short by a kill
    assert sweep.sweep(names, path, one) == ["c", "d"]
    assert sweep.sweep(names, path, one) == []
    rows = sweep.read_rows(path)
    assert [row["architecture"] for row in rows] == names
    assert rows[0]["failure"] == 'trt: a "reason", with commas'
    assert path.read_text().count("\n") == 5


def dies_building(name: str, on_stage: sweep.OnStage) -> sweep.Row:
    row = {**sweep.new_row("vit_tiny_patch16_224"), "onnx_features": "1.00e-06", "failure": "compile: refused"}
    on_stage("trt", row)
    os.kill(os.getpid(), signal.SIGKILL)
    return row


def hangs(name: str, on_stage: sweep.OnStage) -> sweep.Row:
    time.sleep(600)
    return {}


def test_a_crash_costs_one_row() -> None:
    row = sweep.in_own_process("vit_tiny_patch16_224", timeout=100, work=dies_building)
    assert row["failure"] == "compile: refused | trt: the process ended with exit code -9"
    assert row["onnx_features"] == "1.00e-06"


def test_a_timeout_costs_one_row() -> None:
    row = sweep.in_own_process("vit_tiny_patch16_224", timeout=0.5, work=hangs)
    assert row["failure"] == "start: not done after 0.5 s"


def test_the_page_counts_and_names() -> None:
    good = {
        **sweep.new_row("vit_tiny_patch16_224"),
        **dict.fromkeys(sweep.ERRORS, "1.00e-06"),
        "width": "192",
        "pos_embed": "learned",
        "matrices": "stored",
        "rope": "none",
        "pooling": "token",
        "prefix_tokens": "1",
        "trt_engine_bytes": str(2**21),
    }
    worse = {**good, "architecture": "vit_small_patch16_224", "onnx_tokens": "9.00e-06"}
    broken = {**good, "architecture": "vit_base_patch16_224", "trt_engine_bytes": "", "failure": "trt: BuildError: no"}
    refused = {**sweep.new_row("eva02_enormous_patch14_clip_224"), "failure": "create: TypeError: no such option"}
    page = sweep_page.summary([good, worse, broken, refused], missing=["eva_one"])
    assert "Rows for 3 architectures that timm builds as a `NaFlexVit`: **2 pass every stage, 1 fail one**" in page
    assert "| onnx, tokens | 3 | 1.00e-06 | 9.00e-06 | `vit_small_patch16_224` |" in page
    assert "| learned |  | stored | none | token | 1 | 3 | 2 | 1.00e-06 | 1.00e-06 | 9.00e-06 | 2 |" in page
    assert "- `vit_base_patch16_224`: trt: BuildError: no" in page
    assert "1 more of timm's same modules did not build" in page
    assert "- `eva02_enormous_patch14_clip_224`: create: TypeError: no such option" in page
    assert "1 have no row yet: eva_one" in page
    assert torch.__version__ in page


@pytest.mark.parametrize(
    ("architecture", "family"),
    [
        ("vit_base_patch16_siglip_gap_224", "vit siglip"),
        ("vit_small_plus_patch16_dinov3", "vit dinov3"),
        ("vit_pe_core_tiny_patch16_384", "vit_pe_core"),
        ("vit_giant_patch14_reg4_dinov2", "vit dinov2"),
        ("test_vit2", "test_vit2"),
    ],
)
def test_family_names(architecture: str, family: str) -> None:
    assert sweep_page.family_name(architecture) == family
