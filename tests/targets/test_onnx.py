"""The ONNX target, run by ONNX Runtime."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
import tiny
import torch
from torch import nn

import naflex_export as nx
from naflex_export.batch import noise_batch
from naflex_export.exporter import export
from naflex_export.graph.build_settings import BuildSettings
from naflex_export.graph.onnx_translate import FILE, WEIGHTS
from naflex_export.grid import Grid
from naflex_export.serving.load import load
from naflex_export.targets.onnx import OPSET

BUCKET = nx.Bucket(64, (1, 2, 8))
UNSEEN = [[Grid(1, 1)], [Grid(1, 64)], [Grid(8, 8)], [Grid(3, 5), Grid(5, 3)], [Grid(2, 2)] * 8]


def test_runs_at_shapes_never_used_for_export(tmp_path: Path) -> None:
    classifier = tiny.shallow_classifier()
    export(classifier, "onnx", tmp_path / "a", [BUCKET], outputs=("features", "tokens"))
    model = onnx.load(tmp_path / "a" / FILE)
    onnx.checker.check_model(model, full_check=True)
    shapes = {
        value.name: [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]
        for value in [*model.graph.input, *model.graph.output]
    }
    assert shapes == {
        "patches": ["batch", "tokens", 48],
        "patch_coord": ["batch", "tokens", 2],
        "patch_valid": ["batch", "tokens"],
        "features": ["batch", 10],
        "tokens": ["batch", "tokens + 4", 32],
    }
    assert model.opset_import[0].version == OPSET
    run = load(tmp_path / "a")
    for grids in UNSEEN:
        batch = noise_batch(f"unseen-{grids[0]}", grids, max(grid.tokens for grid in grids) + len(grids) - 1, 48)
        inputs = (batch.patches, batch.patch_coord, batch.patch_valid)
        found = run(*inputs)
        assert isinstance(found, dict) and list(found) == ["features", "tokens"]
        with torch.no_grad():
            expected = classifier(*inputs)
            tokens = classifier.forward_features(*inputs)["patches"]
        assert (found["features"] - expected).abs().max() <= 1e-5 * expected.abs().max()
        valid = torch.cat([torch.ones(len(grids), 4, dtype=torch.bool), batch.patch_valid], dim=1)
        assert (found["tokens"] - tokens)[valid].abs().max() <= 1e-5 * tokens.abs().max()


@pytest.fixture(scope="module")
def siglip() -> nn.Module:
    """One block is enough for what a target makes of a graph."""
    return tiny.shallow()


@pytest.fixture(scope="module", params=["float16", pytest.param("bfloat16", marks=pytest.mark.full)])
def low(siglip: nn.Module, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> nx.Artifact:
    return export(siglip, "onnx", tmp_path_factory.mktemp("low") / "a", [BUCKET], request.param)


def test_low_precision_is_in_the_graph(low: nx.Artifact) -> None:
    model, dtype = onnx.load(low.path / FILE), low.manifest.dtype
    expected = {"float16": onnx.TensorProto.FLOAT16, "bfloat16": onnx.TensorProto.BFLOAT16}[dtype]
    assert model.graph.input[0].type.tensor_type.elem_type == expected
    large = [w for w in model.graph.initializer if len(w.dims) == 2 and w.data_type == expected]
    assert len(large) >= 10
    # it rounds, as eager in that dtype does: a float32 graph behind low-precision inputs would be far closer
    assert low.report.baselines
    assert all(found.candidate > 0.2 * found.baseline > 1e-5 for found in low.report.baselines)


@pytest.mark.parametrize("low", ["bfloat16"], indirect=True)
def test_bfloat16_is_judged_rounded_and_says_so(low: nx.Artifact, siglip: nn.Module, tmp_path: Path) -> None:
    assert "bfloat16 was built and not run" in low.manifest.gate["not_run"]
    assert "each result rounded to bfloat16" in low.manifest.gate["judged"]
    with pytest.raises(nx.BackendError, match="CPU provider has no bfloat16"):
        load(low.path, device="cpu")
    with pytest.raises(nx.BackendError, match="--require-run was given"):
        export(siglip, "onnx", tmp_path / "b", [BUCKET], "bfloat16", require_run=True)
    assert not (tmp_path / "b").exists()


def test_large_weights_go_to_a_file_of_their_own(siglip: nn.Module, tmp_path: Path) -> None:
    settings = BuildSettings(external_data_bytes=1000)
    artifact = export(siglip, "onnx", tmp_path / "a", [BUCKET], settings=settings)
    assert {FILE, WEIGHTS} <= set(artifact.manifest.files)
    assert (tmp_path / "a" / FILE).stat().st_size < (tmp_path / "a" / WEIGHTS).stat().st_size
    load(tmp_path / "a")
    weights = tmp_path / "a" / WEIGHTS
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(nx.ArtifactError, match=r"'model.onnx.data' has \d+ bytes, the manifest says"):
        load(tmp_path / "a")


@pytest.mark.skipif(torch.cuda.is_available(), reason="asks for CUDA where there is none")
@pytest.mark.parametrize("low", ["float16"], indirect=True)
def test_a_missing_gpu_is_an_error_not_a_fallback(low: nx.Artifact) -> None:
    with pytest.raises(nx.BackendError, match="'cuda' was asked for, and torch finds no CUDA device"):
        load(low.path, device="cuda")
