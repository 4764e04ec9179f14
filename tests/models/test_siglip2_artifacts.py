"""Artifacts of transformers' SigLIP 2: what they compute, what the gate refuses, and a Runner's checks."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from torch import Tensor

pytest.importorskip("transformers")

from siglip2_tiny import BUCKET, UNSEEN, Inputs, assert_close, batch_of, two_towers, vision
from transformers import Siglip2VisionModel

import naflex_export as nx
from naflex_export.accuracy.reference import SoundInterpolate
from naflex_export.grid import Grid
from naflex_export.models import adapter_of
from naflex_export.serving.runner import Runner


@pytest.fixture(scope="module")
def model() -> Siglip2VisionModel:
    return vision()


@pytest.mark.parametrize(
    "target", ["onnx", *(pytest.param(name, marks=pytest.mark.full) for name in ("compile", "aot"))]
)
def test_artifact_equals_eager_at_shapes_never_used_for_export(
    model: Siglip2VisionModel, tmp_path: Path, target: str
) -> None:
    artifact = nx.export(model, target, tmp_path / "a", [BUCKET], outputs=("features", "tokens"))
    assert artifact.report.not_run == ""
    assert {result.case.split("-seed")[0] for result in artifact.report.results} >= {
        "photos-30-0",
        "one-column-30",
        "padding-30",
    }
    run = nx.load(tmp_path / "a")
    for grids, tokens in UNSEEN.values():
        inputs = batch_of(grids, tokens)
        with torch.no_grad(), SoundInterpolate():
            expected = model(*inputs)
        found = run(*inputs)
        assert isinstance(found, dict)
        assert_close(found["features"], expected.pooler_output)
        assert_close(found["tokens"], expected.last_hidden_state)
    assert nx.gate(run, reference=model, seed=5).passed


def test_onnx_has_open_dimensions_and_no_resize(tmp_path: Path) -> None:
    nx.export(two_towers(), "onnx", tmp_path / "a", [BUCKET], outputs=("features", "tokens"))
    graph = onnx.load(tmp_path / "a" / "model.onnx").graph
    shapes = {
        value.name: [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]
        for value in [*graph.input, *graph.output]
    }
    assert shapes == {
        "pixel_values": ["batch", "tokens", 48],
        "pixel_attention_mask": ["batch", "tokens"],
        "spatial_shapes": ["batch", 2],
        "features": ["batch", 32],
        "tokens": ["batch", "tokens", 32],
    }
    assert not {node.op_type for node in graph.node} & {"Resize", "Loop", "If", "Scan", "NonZero", "GridSample"}
    assert not [tensor.name for tensor in graph.initializer if "text" in tensor.name]


@pytest.mark.full
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("target", ["onnx", "compile"])
def test_half_precision_artifacts_pass(model: Siglip2VisionModel, tmp_path: Path, target: str, dtype: str) -> None:
    artifact = nx.export(model, target, tmp_path / "a", [BUCKET], dtype)
    assert [spec.dtype for spec in artifact.manifest.inputs] == [dtype, "int32", "int64"]
    rounded = ["rounded/features"] if (target, dtype) == ("onnx", "float16") else []  # as on a GPU
    assert [found.output for found in artifact.report.baselines] == ["features", *rounded]
    for found in artifact.report.baselines:
        assert found.candidate > 0.2 * found.baseline > 1e-5  # it rounds, as eager in that dtype does


@pytest.mark.full
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_tensorrt_builds_an_engine(model: Siglip2VisionModel, tmp_path: Path, dtype: str) -> None:
    pytest.importorskip("tensorrt_rtx")
    artifact = nx.export(model, "trt", tmp_path / "a", [BUCKET], dtype, outputs=("features", "tokens"))
    assert artifact.manifest.files["model.plan"]["bytes"] > 100_000
    assert {result.output for result in artifact.report.results} == {"features", "tokens"}


def swapped(values: Tensor, mask: Tensor, shapes: Tensor) -> Inputs:
    return values, mask, shapes.flip(1)


def unmasked(values: Tensor, mask: Tensor, shapes: Tensor) -> Inputs:
    return values, torch.ones_like(mask), shapes


def shifted(values: Tensor, mask: Tensor, shapes: Tensor) -> Inputs:
    return values.roll(1, dims=1), mask, shapes


@pytest.mark.parametrize("fault", [swapped, unmasked, shifted])
def test_the_gate_rejects_wrong_inputs(model: Siglip2VisionModel, fault: Callable[..., Inputs]) -> None:
    fast = nx.vectorize(model)
    assert nx.gate(fast, reference=model, buckets=[BUCKET]).passed
    assert not nx.gate(lambda *inputs: fast(*fault(*inputs)), reference=model, buckets=[BUCKET]).passed


@pytest.mark.parametrize("change", [{"antialias": False}, {"mode": "bicubic"}], ids=["no-antialias", "bicubic"])
def test_the_gate_rejects_another_resize(
    model: Siglip2VisionModel, monkeypatch: pytest.MonkeyPatch, change: dict[str, Any]
) -> None:
    """So does `vectorize`, at first sight."""
    how = nx.models.siglip2.Resampling(**{"mode": "bilinear", **change})
    monkeypatch.setattr("naflex_export.models.siglip2.BILINEAR", how)
    with pytest.raises(nx.UnsupportedModelError, match="embeds grids of 2x3 and 3x2 patches otherwise"):
        nx.vectorize(model)
    report = nx.gate(adapter_of(model).vectorized().model, reference=model, buckets=[BUCKET])
    with pytest.raises(nx.GateFailure, match="photos-30-0"):
        report.raise_for_failure()


@pytest.mark.full  # of timm's family, by default
def test_export_publishes_nothing_that_fails(
    model: Siglip2VisionModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    how = nx.models.siglip2.Resampling("bilinear", antialias=False)
    monkeypatch.setattr("naflex_export.models.siglip2.BILINEAR", how)
    with pytest.raises(nx.GateFailure, match="first deviation: embeddings, relative L2"):
        nx.export(model, "onnx", tmp_path / "a", [BUCKET])
    assert not (tmp_path / "a").exists()


# --- a Runner's checks -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def checked_path(model: Siglip2VisionModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("checked") / "a"
    nx.export(model, "onnx", path, [nx.Bucket(12, (1, 2, 2))])
    return path


@pytest.fixture(scope="module")
def checked(checked_path: Path) -> Runner:
    return nx.load(checked_path, device="cpu")


def with_gap(values: Tensor, mask: Tensor, shapes: Tensor) -> Inputs:
    return values, mask.flip(1), shapes


def with_twos(values: Tensor, mask: Tensor, shapes: Tensor) -> Inputs:
    return values, mask * 2, shapes


def with_shape(*shape: int) -> Callable[..., Inputs]:
    return lambda values, mask, shapes: (values, mask, torch.tensor([shapes[0].tolist(), shape]))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (with_gap, "pixel_attention_mask of image 1 has gaps"),
        (with_twos, "pixel_attention_mask holds values other than 0 and 1"),
        (with_shape(2, 3), "spatial_shapes of image 1 is 2x3 = 6 patches, .* marks 4: expected the same number"),
        (with_shape(0, 3), r"spatial_shapes of image 1 is \[0, 3\]: expected a height and a width of at least 1"),
        (with_shape(-2, -2), r"spatial_shapes of image 1 is \[-2, -2\]"),
        (with_shape(4, 4), "image 1 has a grid of 4x4 = 16 patches, more than the 12 tokens"),
        (with_shape(2**62 + 1, 4), "image 1 has a grid of .*, more than the 12 tokens"),
        (lambda v, m, s: (v, m.long(), s), r"pixel_attention_mask is int64: .* \.to\(torch.int32\)"),
        (lambda v, m, s: (v, m.bool(), s), "pixel_attention_mask is bool: expected int32"),
        (lambda v, m, s: (v.half(), m, s), "pixel_values is float16: expected float32"),
        (lambda v, m, s: (v, m, s.float()), "spatial_shapes is float32: expected int64"),
        (lambda v, m, s: (v[0], m, s), "pixel_values has shape .*: expected 3 axes"),
        (lambda v, m, s: (v, m[:, 1:], s), "pixel_attention_mask has shape .*: expected tokens=12"),
        (lambda v, m, s: (v, m, s[:1]), "spatial_shapes has shape .*: expected batch=2"),
        (lambda v, m, s: (v, m, torch.cat([s, s], dim=1)), "spatial_shapes has shape .*: expected 2,"),
        (lambda v, m, s: (v, m), "got 2 inputs: expected 3, pixel_values, pixel_attention_mask, spatial_shapes"),
        (lambda v, m, s: batch_of([Grid(3, 5)], 15), "15 tokens are more than any bucket takes"),
        (lambda v, m, s: batch_of([Grid(3, 4)] * 3, 12), "a batch of 3 with 12 tokens fits no bucket"),
    ],
)
def test_wrong_inputs_are_refused(checked: Runner, change: Callable[..., Any], message: str) -> None:
    right = batch_of([Grid(3, 4), Grid(2, 2)], 12)
    checked(*right)
    with pytest.raises(nx.InputError, match=message):
        checked(*change(*right))


def test_artifacts_load_without_transformers(checked_path: Path) -> None:
    """What serves an artifact needs neither the model's library nor its code."""
    code = (
        "import sys; sys.modules['transformers'] = None\n"
        "import torch, naflex_export as nx\n"
        f"run = nx.load({str(checked_path)!r}, device='cpu')\n"
        "ones = torch.ones(1, 4, dtype=torch.int32)\n"
        "print(list(run(torch.ones(1, 4, 48), ones, torch.tensor([[2, 2]])).shape))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout == "[1, 32]\n", done.stderr
