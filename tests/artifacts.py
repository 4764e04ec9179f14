"""Artifacts for tests: small folders that are ones in form, and manifests that lie with their hashes right."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from onnx import TensorProto, helper, numpy_helper

import naflex_export as nx
from naflex_export.embed.preprocessing import Preprocessing
from naflex_export.serving.manifest import MANIFEST, Manifest, sealed
from naflex_export.serving.signature import TensorSpec

MODEL = {"family": "timm NaFlexVit", "architecture": "tiny", "source": {}, "weights_sha256": "0" * 64}


def manifest(**changed: Any) -> Manifest:
    """Return a manifest as an export writes it, but for the fields given."""
    fields = {
        "target": "onnx",
        "dtype": "float32",
        "inputs": (
            TensorSpec("patches", "float32", ("batch", "tokens", 48)),
            TensorSpec("patch_coord", "int64", ("batch", "tokens", 2)),
            TensorSpec("patch_valid", "bool", ("batch", "tokens")),
        ),
        "outputs": (TensorSpec("features", "float32", ("batch", 32)),),
        "buckets": (nx.Bucket(16),),
        "model": MODEL,
        "preprocessing": {"mean": [0.5] * 3, "std": [0.5] * 3, "patch_size": [4, 4]},
        "versions": {"torch": "2"},
        "build": {},
    }
    return Manifest(**{**fields, **changed})


def fill(folder: Path, text: str = "a graph") -> None:
    """Make a folder an artifact in form, whose one file holds a text."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model.onnx").write_text(text)
    manifest().write(folder)


def edit(
    folder: Path, change: Callable[[dict[str, Any]], object] | None = None, seal: bool = True, **fields: Any
) -> None:
    """Change fields of a manifest, in place or by name, and its hash with them unless told not to."""
    path = folder / MANIFEST
    content = {**json.loads(path.read_text()), **fields}
    if change is not None:
        change(content)
    path.write_text(json.dumps(sealed(content) if seal else content))


def names(folder: Path) -> list[str]:
    """Return what lies in a folder, hidden or not."""
    return sorted(path.name for path in folder.iterdir())


WIDTH = 32
"""Of the vectors of a pooling artifact."""


def pooling_weights() -> np.ndarray:
    return np.random.default_rng(0).standard_normal((48, WIDTH)).astype(np.float32)


def pooled(inputs: dict[str, np.ndarray]) -> np.ndarray:
    """Return the vectors that a pooling artifact gives: the mean of an image's patches, projected."""
    patches, _, valid = inputs.values()
    kept = np.where(valid[..., None], patches, 0).astype(np.float64)
    return (kept.sum(axis=1) / valid.sum(axis=1, keepdims=True)) @ pooling_weights().astype(np.float64)


def fill_pooling(folder: Path, **changed: Any) -> Path:
    """Make a folder an ONNX artifact that runs, made in no time: `pooled` is what it computes.

    It enlarges no photo, so that small ones have few patches.
    """
    shapes = {"patches": [None, None, 48], "patch_coord": [None, None, 2], "patch_valid": [None, None]}
    kinds = {"patches": TensorProto.FLOAT, "patch_coord": TensorProto.INT64, "patch_valid": TensorProto.BOOL}
    for shape in shapes.values():
        shape[:2] = ["batch", "tokens"]
    nodes = [
        helper.make_node("Cast", ["patch_valid"], ["valid"], to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["valid", "last"], ["mask"]),
        helper.make_node("Mul", ["patches", "mask"], ["kept"]),
        helper.make_node("ReduceSum", ["kept", "one"], ["sum"], keepdims=0),
        helper.make_node("ReduceSum", ["mask", "one"], ["count"], keepdims=0),
        helper.make_node("Div", ["sum", "count"], ["mean"]),
        helper.make_node("MatMul", ["mean", "weights"], ["features"]),
    ]
    graph = helper.make_graph(
        nodes,
        "pooling",
        [helper.make_tensor_value_info(name, kinds[name], shape) for name, shape in shapes.items()],
        [helper.make_tensor_value_info("features", TensorProto.FLOAT, ["batch", WIDTH])],
        [
            numpy_helper.from_array(np.array([-1]), "last"),
            numpy_helper.from_array(np.array([1]), "one"),
            numpy_helper.from_array(pooling_weights(), "weights"),
        ],
    )
    folder.mkdir(parents=True, exist_ok=True)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    said = Preprocessing("timm", (4, 4), (0.1, 0.2, 0.3), (0.5, 0.25, 0.125), "bicubic", upscale=False)
    manifest(preprocessing=said.fields(), **changed).write(folder)
    return folder
