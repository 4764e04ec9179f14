"""Tools that others run on `model.onnx`: shape inference, and what quantizes it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import tiny
import torch
from onnxruntime.quantization import (
    CalibrationDataReader,
    QuantFormat,
    quantize_dynamic,
    quantize_static,
    shape_inference,
)

import naflex_export as nx
from naflex_export.batch import noise_batch
from naflex_export.graph.build_settings import BuildSettings
from naflex_export.graph.onnx_translate import FILE, write_onnx
from naflex_export.graph.trace import trace
from naflex_export.grid import Grid
from naflex_export.models import adapter_of
from naflex_export.targets.onnx import OPSET

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")

BATCH = noise_batch("tools", (Grid(3, 7), Grid(1, 24), Grid(4, 4)), tokens=26, token_width=48)
INPUTS = {"patches": BATCH.patches, "patch_coord": BATCH.patch_coord, "patch_valid": BATCH.patch_valid}
PRODUCTS = ["MatMul", "Gemm"]
"""What may be quantized: of `Attention` the tool knows only ONNX Runtime's own operator of that name."""


class OneBatch(CalibrationDataReader):
    """Gives one batch to calibrate on."""

    def __init__(self) -> None:
        self.batches: Iterator[dict[str, np.ndarray]] = iter([{name: t.numpy() for name, t in INPUTS.items()}])

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self.batches, None)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tools")
    write_onnx(trace(adapter_of(tiny.shallow_classifier()), [nx.Bucket(64)]), folder, BuildSettings(), OPSET)
    return folder / FILE


def features(path: Path) -> np.ndarray:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return session.run(["features"], {name: tensor.numpy() for name, tensor in INPUTS.items()})[0]


def test_a_file_says_nothing_of_values_inside(path: Path) -> None:
    model = onnx.load(path)
    assert len(model.graph.value_info) == 0
    onnx.checker.check_model(model, full_check=True)
    inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True)
    assert len(inferred.graph.value_info) > len(model.graph.node) // 2


@pytest.mark.parametrize("prepared", [False, True])
def test_weights_are_quantized_dynamically(path: Path, tmp_path: Path, prepared: bool) -> None:
    given = path
    if prepared:
        given = tmp_path / "prepared.onnx"
        shape_inference.quant_pre_process(str(path), str(given), skip_symbolic_shape=True)
    quantize_dynamic(given, tmp_path / "q.onnx", op_types_to_quantize=PRODUCTS)
    expected, found = features(path), features(tmp_path / "q.onnx")
    assert 1e-4 < np.abs(found - expected).max() / np.abs(expected).max() < 0.2
    assert (tmp_path / "q.onnx").stat().st_size < path.stat().st_size


def test_activations_are_quantized_statically(path: Path, tmp_path: Path) -> None:
    options = {"quant_format": QuantFormat.QDQ, "op_types_to_quantize": PRODUCTS, "per_channel": True}
    quantize_static(path, tmp_path / "q.onnx", OneBatch(), **options)
    expected, found = features(path), features(tmp_path / "q.onnx")
    assert np.abs(found - expected).max() / np.abs(expected).max() < 0.3
    assert {"QuantizeLinear", "DequantizeLinear"} <= {
        node.op_type for node in onnx.load(tmp_path / "q.onnx").graph.node
    }


def test_what_is_quantized_is_judged_by_the_gate(path: Path, tmp_path: Path) -> None:
    """As a candidate of one's own: it is beyond the limits of float32, and the gate says by how much."""
    quantize_dynamic(path, tmp_path / "q.onnx", op_types_to_quantize=PRODUCTS)
    session = onnxruntime.InferenceSession(str(tmp_path / "q.onnx"), providers=["CPUExecutionProvider"])

    def run(*inputs: torch.Tensor) -> torch.Tensor:
        return torch.from_numpy(
            session.run(["features"], dict(zip(INPUTS, (t.numpy() for t in inputs), strict=True)))[0]
        )

    report = nx.gate(run, tiny.shallow_classifier(), buckets=[nx.Bucket(64)], effort="quick")
    assert not report.passed and 1e-4 < report.worst["relative_l2"] < 0.2
