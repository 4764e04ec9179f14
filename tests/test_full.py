"""Full-size runs, one per target: pytest -m full."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from naflex_export.cases import Scope, cases_of
from naflex_export.cli import export_command, gate_command
from naflex_export.grid import Bucket

RUNS = [
    ("naflexvit_base_patch16_siglip", "trt", "float32"),
    ("naflexvit_base_patch16_gap", "trt", "float16"),
    ("naflexvit_base_patch16_gap", "compile", "float32"),
    ("naflexvit_base_patch16_siglip", "aot", "float32"),
    ("naflexvit_so400m_patch16_siglip", "onnx", "float32"),
]


@pytest.mark.full
@pytest.mark.parametrize(("model", "target", "dtype"), RUNS)
def test_a_full_size_model_goes_through_the_command_line(model: str, target: str, dtype: str, tmp_path: Path) -> None:
    out = tmp_path / "artifact"
    arguments = [model, "--target", target, "--dtype", dtype, "--weights", "random", "--out", str(out)]
    done = CliRunner().invoke(export_command, arguments)
    assert done.exit_code == 0, done.output
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["gate"]["passed"] is True and manifest["gate"]["cases"] == len(
        cases_of(Bucket(), Scope(), num_photos=3)
    )
    again = CliRunner().invoke(gate_command, [str(out), "--quick", "--locate"])
    assert again.exit_code == 0, again.output
    assert f"first deviation: {'not known' if target == 'aot' else 'none in'}" in again.stdout
    if "so400m" in model:
        assert manifest["files"]["model.onnx.data"]["bytes"] > 1.6e9
