"""What `model.onnx` says of itself, in its own metadata: model, preprocessing, the gate's verdict and our version.

A file that is copied out of its artifact still says what it is. The words are appended to the file that was judged:
messages of protobuf, which ONNX is, may follow each other and are read as one. So not a byte of the graph is another
than the gate has seen, and a file of gigabytes is not read again.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import onnx

from naflex_export.serving.manifest import Manifest
from naflex_export.serving.onnx_runner import FILE
from naflex_export.version import __version__

PREFIX = "naflex_export."
"""What the names of all properties begin with."""


def describe_onnx(folder: Path, manifest: Manifest, **more: dict[str, Any]) -> None:
    """Append to an artifact's `model.onnx` what it is; nothing where there is none.

    Args:
        folder: the artifact's, its manifest yet to be written.
        manifest: its draft, with the gate's verdict.
        more: to say, by name, that stands in another manifest.
    """
    path = folder / FILE
    if not path.is_file():
        return
    properties = onnx_properties(manifest) | {
        PREFIX + name: json.dumps(value, sort_keys=True) for name, value in more.items()
    }
    said = onnx.ModelProto()
    said.doc_string = onnx_doc(manifest)
    onnx.helper.set_model_props(said, properties)
    with path.open("ab") as file:
        file.write(said.SerializeToString())


def onnx_properties(manifest: Manifest) -> dict[str, str]:
    """Return what an artifact's ONNX file says of itself by name: texts, and JSON where there is more than a word."""
    model = manifest.model
    described: dict[str, Any] = {
        "version": __version__,
        "model": manifest.model_name,
        "family": model["family"],
        "architecture": model["architecture"],
        "weights": Path(model["source"].get("weights", "")).name,
        "weights_sha256": model["weights_sha256"],
        "dtype": str(manifest.precision),
        "buckets": [str(bucket) for bucket in manifest.buckets],
        "preprocessing": manifest.told_preprocessing,
        "gate": {name: manifest.gate.get(name) for name in ("passed", "judged", "not_run", "worst", "limits", "cases")},
    }
    for name in ("text", "vocabulary", "patch_size"):
        if name in model:
            described[name] = model[name]
    return {
        PREFIX + name: value if isinstance(value, str) else json.dumps(value, sort_keys=True)
        for name, value in described.items()
    }


def onnx_doc(manifest: Manifest) -> str:
    """Return what an artifact's ONNX file is, in a few sentences."""
    gate = manifest.gate
    verdict = "passed" if gate.get("passed") else "FAILED"
    return (
        f"{manifest.model_name} in {manifest.precision}, exported by naflex_export {__version__}. The accuracy gate "
        f"{verdict}: {gate.get('cases', 0)} comparisons with eager float32, on {gate.get('judged', 'nothing')}. How "
        f"inputs are prepared, and the figures, are in metadata_props, as {PREFIX}*."
    )
