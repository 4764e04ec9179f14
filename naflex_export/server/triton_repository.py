"""A model repository for Triton Inference Server, from an artifact.

REPO/NAME/config.pbtxt        how Triton's Python backend serves it
REPO/NAME/1/model.py          names the class that does
REPO/NAME/1/artifact/         the artifact, whole
REPO/NAME/configs/raw.pbtxt   the same graph by Triton's own backend, for `--model-config-name=raw`
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path

from naflex_export.errors import RequestError
from naflex_export.serving.manifest import Manifest
from naflex_export.serving.signature import TensorSpec

CONFIG, RAW = "config.pbtxt", Path("configs") / "raw.pbtxt"

MARK = "# Written by naflex-export --triton"
"""How the configuration of a model begins that is ours to replace."""

QUEUE_US = 5000
"""How long a request may wait for others, in microseconds."""

TYPES = {"float32": "FP32", "float16": "FP16", "bfloat16": "BF16", "int64": "INT64", "int32": "INT32", "bool": "BOOL"}

MODEL = '''"""Written by naflex-export --triton: serves `artifact/` beside it.

Triton's Python has to find the packages naflex_export, numpy, PIL and onnxruntime: among its own, or by PYTHONPATH,
which it does not look at by itself.
"""

import os
import sys

sys.path[:0] = filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))

from naflex_export.server.triton_model import TritonPythonModel

__all__ = ["TritonPythonModel"]
'''

BACKENDS = {"onnx": ("onnxruntime", "model.onnx"), "trt": ("tensorrt", "model.plan")}
"""Triton's own backends, and the file of an artifact that each runs."""


def check_repository(repository: Path, name: str) -> Path:
    """Return where a model is going to be in a repository, and check that it may be written there.

    Args:
        repository: a folder, which need not exist.
        name: of the model.

    Raises:
        RequestError: there is a model of that name which is not ours, or the repository is no folder.
    """
    if not re.fullmatch(r"[A-Za-z0-9_.-]+", name):
        raise RequestError(f"model name {name!r} is none for Triton: expected letters, digits and any of _.-")
    model = repository / name
    if repository.exists() and not repository.is_dir():
        raise RequestError(f"--triton {str(repository)!r} is no folder: expected a model repository, or nothing yet")
    if model.exists():
        try:
            is_ours = (model / CONFIG).read_text(encoding="utf-8").startswith(MARK)
        except (OSError, UnicodeDecodeError):
            is_ours = False
        if not is_ours:
            raise RequestError(f"{str(model)!r} is a model that was not written by naflex-export: move it away")
    return model


def write_repository(artifact: Path, repository: Path, name: str) -> Path:
    """Return the folder of a model, written into a repository; one of ours of that name is replaced.

    Args:
        artifact: the artifact's folder, of one patch size.
        repository: to write to; it is made where there is none.
        name: of the model.

    Raises:
        RequestError: it cannot be written, or the artifact gives no features or has several patch sizes.
        ArtifactError: the folder is no artifact.
    """
    model = check_repository(repository, name)
    manifest = Manifest.read(artifact)
    config = python_config(manifest, name)
    writing, old = (repository / f".{name}.{suffix}" for suffix in ("writing", "old"))
    try:
        for folder in (writing, old):
            shutil.rmtree(folder, ignore_errors=True)
        (writing / "1").mkdir(parents=True)
        shutil.copytree(artifact, writing / "1" / "artifact")
        (writing / "1" / "model.py").write_text(MODEL, encoding="utf-8")
        if manifest.target in BACKENDS:
            (writing / RAW).parent.mkdir()
            (writing / RAW).write_text(raw_config(manifest, name), encoding="utf-8")
        (writing / CONFIG).write_text(config, encoding="utf-8")
        if model.exists():
            model.rename(old)
        writing.rename(model)
        shutil.rmtree(old, ignore_errors=True)
    except OSError as error:
        raise RequestError(f"{str(model)!r} cannot be written: {error.strerror}") from error
    return model


def python_config(manifest: Manifest, name: str) -> str:
    """Return the configuration of a model of Triton's Python backend, as text.

    Args:
        manifest: the artifact's.
        name: of the model.

    Raises:
        RequestError: the artifact gives no features, or has several patch sizes.
    """
    features = next((spec for spec in manifest.outputs if spec.name == "features"), None)
    if features is None or manifest.by_patch_size:
        raise RequestError(
            "a model for Triton needs an artifact of one patch size that gives features: take one of its patchSIZE "
            "folders, or export with --outputs features"
        )
    float32 = {"float32", "float16", "bfloat16"}  # what clients send and get, whatever is computed in
    inputs = [_tensor("image", "STRING", [1], optional=True)]
    for spec in manifest.inputs:
        kind = "FP32" if spec.dtype in float32 else TYPES[spec.dtype]
        inputs.append(_tensor(spec.name, kind, _dims(spec), optional=True, ragged="tokens" in spec.shape))
    return _config(
        [
            f"{MARK}: photos or patches in, vectors out.",
            "# docs/serving.md of naflex_export says what may be changed.",
            f'name: "{name}"',
            'backend: "python"',
            f"max_batch_size: {min(bucket.batch[2] for bucket in manifest.buckets)}",
        ],
        inputs,
        [_tensor("features", "FP32", _dims(features))],
        [
            "instance_group [ { count: 1, kind: KIND_CPU } ]",
            "# where to run, such as cuda:0; empty for the device of the instance",
            'parameters { key: "device", value { string_value: "" } }',
        ],
    )


def raw_config(manifest: Manifest, name: str) -> str:
    """Return the configuration of the artifact's file by Triton's own backend, as text. It has not been run by us.

    Args:
        manifest: an artifact's of target "onnx" or "trt".
        name: of the model.
    """
    backend, file = BACKENDS[manifest.target]
    engine = ", profile: [ " + ", ".join(f'"{number}"' for number in range(len(manifest.buckets))) + " ]"
    return _config(
        [
            f"{MARK}: for --model-config-name=raw.",
            "# The graph by itself: nothing checks what clients send, nor makes patches of photos. It was held against",
            "# Triton's schema and not run. TensorRT for RTX's engines are none that Triton's backend loads.",
            f'name: "{name}"',
            f'backend: "{backend}"',
            f'default_model_filename: "artifact/{file}"',
            f"max_batch_size: {max(bucket.batch[2] for bucket in manifest.buckets)}",
        ],
        [_tensor(spec.name, TYPES[spec.dtype], _dims(spec)) for spec in manifest.inputs],
        [_tensor(spec.name, TYPES[spec.dtype], _dims(spec)) for spec in manifest.outputs],
        [f"instance_group [ {{ count: 1, kind: KIND_GPU{engine if backend == 'tensorrt' else ''} }} ]"],
    )


def _config(head: list[str], inputs: list[str], outputs: list[str], tail: list[str]) -> str:
    listed = [f"{kind} [\n" + ",\n".join(lines) + "\n]" for kind, lines in (("input", inputs), ("output", outputs))]
    batching = f"dynamic_batching {{ max_queue_delay_microseconds: {QUEUE_US} }}"
    return "\n".join([*head, *listed, batching, *tail]) + "\n"


def _dims(spec: TensorSpec) -> list[int]:
    """Return the dimensions after the batch's, -1 for one that is open."""
    return [dim if isinstance(dim, int) else -1 for dim in spec.shape[1:]]


def _tensor(name: str, kind: str, dims: list[int], optional: bool = False, ragged: bool = False) -> str:
    said = [f'name: "{name}"', f"data_type: TYPE_{kind}", f"dims: {dims}"]
    said += ["optional: true"] if optional else []
    said += ["allow_ragged_batch: true"] if ragged else []
    return "  { " + ", ".join(said) + " }"
