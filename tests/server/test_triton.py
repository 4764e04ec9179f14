"""The model repository for Triton: what is written, held against Triton's schema, and the model without a server."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import artifacts
import numpy as np
import pytest
from click.testing import CliRunner

import naflex_export as nx
from naflex_export.cli.export import export_command
from naflex_export.server.triton_repository import (
    CONFIG,
    RAW,
    check_repository,
    python_config,
    raw_config,
    write_repository,
)
from naflex_export.serving.signature import TensorSpec

CONFIGS = {
    "python": lambda: python_config(artifacts.manifest(), "tiny"),
    "raw onnx": lambda: raw_config(artifacts.manifest(), "tiny"),
    "raw trt, two profiles": lambda: raw_config(
        artifacts.manifest(target="trt", buckets=(nx.Bucket(16), nx.Bucket(64, (1, 4, 16)))), "tiny"
    ),
    "raw bfloat16": lambda: raw_config(
        artifacts.manifest(
            dtype="bfloat16",
            inputs=(
                TensorSpec("pixel_values", "bfloat16", ("batch", "tokens", 48)),
                TensorSpec("pixel_attention_mask", "int32", ("batch", "tokens")),
                TensorSpec("spatial_shapes", "int64", ("batch", 2)),
            ),
        ),
        "tiny",
    ),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_configurations_fit_the_schema_of_triton(name: str) -> None:
    schema = pytest.importorskip("tritonclient.grpc.model_config_pb2", reason="tritonclient[grpc] is not installed")
    from google.protobuf import text_format

    config = text_format.Parse(CONFIGS[name](), schema.ModelConfig())
    assert config.name == "tiny" and config.max_batch_size == 32 and config.backend
    types = dict(schema.DataType.items())
    named = {tensor.name: (tensor.data_type, list(tensor.dims)) for tensor in [*config.input, *config.output]}
    assert named["features"] == (types["TYPE_FP32"], [32])
    if "bfloat16" in name:
        assert named["pixel_values"] == (types["TYPE_BF16"], [-1, 48])
        assert named["spatial_shapes"] == (types["TYPE_INT64"], [2])
    else:
        assert named["patches"] == (types["TYPE_FP32"], [-1, 48])
        assert named["patch_valid"] == (types["TYPE_BOOL"], [-1])
    if name == "python":
        assert named["image"] == (types["TYPE_STRING"], [1])
        assert all(tensor.optional for tensor in config.input)
        assert [tensor.name for tensor in config.input if tensor.allow_ragged_batch] == [
            "patches", "patch_coord", "patch_valid"
        ]  # fmt: skip
        assert config.dynamic_batching.max_queue_delay_microseconds == 5000
    if "trt" in name:
        assert list(config.instance_group[0].profile) == ["0", "1"]
        assert config.default_model_filename == "artifact/model.plan"


def test_a_repository_holds_the_artifact_and_both_configurations(tmp_path: Path) -> None:
    artifact, repository = tmp_path / "a", tmp_path / "models"
    artifacts.fill(artifact)
    model = write_repository(artifact, repository, "tiny")
    assert model == repository / "tiny"
    assert (model / CONFIG).read_text() == CONFIGS["python"]() and (model / RAW).read_text() == CONFIGS["raw onnx"]()
    compile((model / "1" / "model.py").read_text(), "model.py", "exec")
    inner = model / "1" / "artifact"
    assert {path.name: path.read_bytes() for path in inner.iterdir()} == {
        path.name: path.read_bytes() for path in artifact.iterdir()
    }
    artifacts.fill(artifact, "another graph")
    write_repository(artifact, repository, "tiny")
    assert (inner / "model.onnx").read_text() == "another graph"
    assert artifacts.names(repository) == ["tiny"]


def test_what_is_not_ours_is_left_alone(tmp_path: Path) -> None:
    artifact, repository = tmp_path / "a", tmp_path / "models"
    artifacts.fill(artifact)
    (repository / "theirs").mkdir(parents=True)
    (repository / "theirs" / CONFIG).write_text('name: "theirs"')
    with pytest.raises(nx.RequestError, match="is a model that was not written by naflex-export: move it away"):
        write_repository(artifact, repository, "theirs")
    assert (repository / "theirs" / CONFIG).read_text() == 'name: "theirs"'
    with pytest.raises(nx.RequestError, match="model name 'a b' is none for Triton"):
        check_repository(repository, "a b")
    with pytest.raises(nx.RequestError, match="is no folder: expected a model repository"):
        check_repository(artifact / "manifest.json", "x")
    artifacts.edit(artifact, outputs=[{"name": "tokens", "dtype": "float32", "shape": ["batch", "tokens", 32]}])
    with pytest.raises(nx.RequestError, match="export with --outputs features"):
        write_repository(artifact, repository, "x")
    assert artifacts.names(repository) == ["theirs"]


def test_the_command_refuses_before_it_loads_a_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "broken.py").write_text("raise AssertionError('the model was loaded')")
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "models" / "a").mkdir(parents=True)
    arguments = ["broken:model", "--target", "onnx", "--out", str(tmp_path / "a"), "--triton", str(tmp_path / "models")]
    for more, message in (([], "is a model that was not written by"), (["--patch-size", "8,16"], "one patch size")):
        done = CliRunner().invoke(export_command, [*arguments, "--weights", "random", *more])
        assert done.exit_code == 2 and message in " ".join(done.stderr.split()), done.stderr


class Tensor:
    """`pb_utils.Tensor`, as far as the model uses it."""

    def __init__(self, name: str, value: np.ndarray) -> None:
        self.name, self.value = name, value

    def as_numpy(self) -> np.ndarray:
        return self.value


def test_the_model_answers_each_request_with_its_vectors_or_its_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from naflex_export.server import triton_model
    from naflex_export.server.vectors import Served

    batches: list[tuple[int, int]] = []

    def embed(made: Any, tokens: int) -> np.ndarray:
        batches.append((len(made), tokens))
        return np.array([[patches[0, 0], grid.tokens] for patches, grid in made], np.float32)

    class Photos:
        def one(self, photo: bytes) -> Any:
            if photo == b"bad":
                raise nx.PhotoError("it is bad")
            return np.full((4, 48), 7.0, np.float32), nx.Grid(2, 2)

    manifest = artifacts.manifest(buckets=(nx.Bucket(4, (2, 2, 8)), nx.Bucket(16, (1, 2, 3))))
    monkeypatch.setattr(triton_model, "open_served", lambda folder, device: Served(manifest, Photos(), embed))  # type: ignore[arg-type]
    stub = SimpleNamespace(
        Tensor=Tensor,
        TritonError=str,
        InferenceResponse=lambda tensors=None, error=None: error or tensors[0].value.tolist(),
        get_input_tensor_by_name=lambda request, name: Tensor(name, request[name]) if name in request else None,
    )
    monkeypatch.setitem(sys.modules, "triton_python_backend_utils", stub)  # type: ignore[arg-type]
    model = triton_model.TritonPythonModel()
    model.initialize(
        {
            "model_config": json.dumps({}),
            "model_instance_kind": "CPU",
            "model_instance_device_id": "0",
            "model_repository": str(tmp_path),
            "model_version": "1",
        }
    )

    def of(value: float, height: int, width: int, shift: int = 0) -> dict[str, np.ndarray]:
        count = height * width
        return {
            "patches": np.full((1, count, 48), value, np.float32),
            "patch_coord": np.indices((height, width)).reshape(2, -1).T[None] + shift,
            "patch_valid": np.ones((1, count), bool),
        }

    photos = np.array([[b"one"], [b"two"]], dtype=object)
    answers = model.execute(
        [
            of(1, 3, 3),
            {"image": photos},
            {"image": np.array([[b"bad"]], dtype=object)},
            of(2, 1, 2, shift=-1),
            {"image": photos, "patches": of(1, 1, 1)["patches"]},
            {name: value for name, value in of(1, 1, 1).items() if name != "patch_valid"},
            of(3, 4, 5),
            of(4, 1, 3),
            {},
            of(5, 3, 3),
        ]
    )
    assert answers == [
        [[1, 9]],
        [[7, 4], [7, 4]],
        "image 0: it is bad",
        "image 0: patch_coord of 2 patches go from [-1, -1] to [-1, 0]: expected a grid, row by row from (0, 0)",
        "the request has image, patches: expected image, or the others",
        "input patch_valid is missing: expected image, or all of the model's inputs",
        "image 0 has 20 tokens: expected at most 16",
        [[4, 3]],
        "input patches is missing: expected image, or all of the model's inputs",
        [[5, 9]],
    ]
    assert sorted(batches) == [(2, 16), (3, 4)]
