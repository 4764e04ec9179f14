"""`--opset`: which versions of ONNX's operators can be asked for, and that a graph is in the one asked for."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
import tiny
from click.testing import CliRunner

import naflex_export as nx
from naflex_export.cli.export import export_command
from naflex_export.export_request import ExportRequest, check_opset
from naflex_export.graph.build_settings import BuildSettings
from naflex_export.targets import OPSETS

CHOICES = [(name, opset) for name, opsets in OPSETS.items() for opset in opsets]


@pytest.mark.parametrize(
    ("target", "opset", "message"),
    [
        ("onnx", 17, "--opset 17 cannot be had for target 'onnx': expected 18 to 23"),
        ("onnx", 99, "--opset 99 cannot be had for target 'onnx'"),
        ("trt", 23, "--opset 23 cannot be had for target 'trt': expected 18 to 22"),
        ("aot", 20, "--opset 20 was asked for of target 'aot', which is not made of an ONNX graph"),
        ("compile", 20, "take target onnx or trt"),
    ],
)
def test_an_opset_that_cannot_be_had_is_refused_by_name(target: str, opset: int, message: str, tmp_path: Path) -> None:
    with pytest.raises(nx.RequestError, match=message):
        check_opset(ExportRequest(target, tmp_path / "a", settings=BuildSettings(opset=opset)))
    with pytest.raises(nx.RequestError, match=message):
        nx.export(tiny.shallow(), target, tmp_path / "a", settings=BuildSettings(opset=opset))


def test_a_target_takes_its_own_opset_and_those_asked_for(tmp_path: Path) -> None:
    for name, opset in [*CHOICES, ("aot", None), ("onnx", None)]:
        check_opset(ExportRequest(name, tmp_path / "a", settings=BuildSettings(opset=opset)))


def test_the_command_refuses_it_ahead_of_the_model(tmp_path: Path) -> None:
    asked = ["tiny:none_such", "--target", "onnx", "--opset", "12", "--out", str(tmp_path / "a")]
    done = CliRunner().invoke(export_command, asked)
    assert done.exit_code == 2 and "expected 18 to 23" in " ".join(done.stderr.split())


@pytest.mark.full
@pytest.mark.parametrize(("target", "opset"), CHOICES)
def test_the_graph_is_in_the_opset_asked_for_and_passes(target: str, opset: int, tmp_path: Path) -> None:
    if target == "trt":
        pytest.importorskip("tensorrt_rtx")
    settings = BuildSettings(opset=opset)
    made = nx.export(
        tiny.shallow(), target, tmp_path / "a", [nx.Bucket(16, (1, 2, 4))], effort="quick", settings=settings
    )
    graph = onnx.load(made.path / "model.onnx")
    assert [one.version for one in graph.opset_import] == [opset] and made.manifest.build["opset"] == opset
    assert made.report.passed
