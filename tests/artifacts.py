"""Artifacts for tests: small folders that are ones in form, and manifests that lie with their hashes right."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import naflex_export as nx
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
