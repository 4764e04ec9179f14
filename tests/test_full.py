"""Full-size runs, one per target: pytest -m full."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from naflex_export.accuracy.cases import cases_of
from naflex_export.accuracy.efforts import CaseSelection
from naflex_export.cli.export import export_command
from naflex_export.cli.gate import gate_command
from naflex_export.grid import Bucket

SMALL = Bucket(tokens=64, batch=(1, 2, 4))
"""Weights of full size are what these runs are about; one of them has the batches that users get by default too."""
RUNS = [
    ("naflexvit_base_patch16_siglip", "trt", "float16", SMALL),
    ("naflexvit_base_patch16_gap", "compile", "float32", SMALL),
    ("naflexvit_base_patch16_siglip", "aot", "float32", SMALL),
    ("naflexvit_base_patch16_siglip", "onnx", "float32", Bucket()),
]


@pytest.mark.full
@pytest.mark.parametrize(("model", "target", "dtype", "bucket"), RUNS, ids=[run[1] for run in RUNS])
def test_a_full_size_model_goes_through_the_command_line(
    model: str, target: str, dtype: str, bucket: Bucket, tmp_path: Path
) -> None:
    out = tmp_path / "artifact"
    arguments = [model, "--target", target, "--dtype", dtype, "--weights", "random", "--quick", "--out", str(out)]
    if bucket != Bucket():
        arguments += ["--bucket", f"{bucket.tokens}:{','.join(map(str, bucket.batch))}"]
    done = CliRunner().invoke(export_command, arguments)
    assert done.exit_code == 0, done.output
    manifest = json.loads((out / "manifest.json").read_text())
    cases = cases_of(bucket, CaseSelection(effort="quick"), num_photos=3)
    assert manifest["gate"]["passed"] is True and manifest["gate"]["cases"] == len(cases)
    again = CliRunner().invoke(gate_command, [str(out), "--case", cases[0], "--locate"])
    assert again.exit_code == 0, again.output
    assert f"first deviation: {'not known' if target == 'aot' else 'none in'}" in again.stdout
    largest = max(file["bytes"] for file in manifest["files"].values())
    assert largest > 85e6 * (2 if dtype == "float16" else 4)  # all weights of a base model
