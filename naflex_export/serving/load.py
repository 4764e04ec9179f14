"""`load`: artifact in, callable out."""

from __future__ import annotations

import importlib
from pathlib import Path

import torch

from naflex_export.errors import ArtifactError
from naflex_export.serving.manifest import Manifest
from naflex_export.serving.patch_sizes import EntryPoints
from naflex_export.serving.runner import Runner

_RUNNERS = {"compile": "compile_runner", "aot": "aot_runner", "onnx": "onnx_runner", "trt": "tensorrt_runner"}
"""The module of this package that runs each target's artifacts, imported only when it is asked for."""


def load(path: Path | str, device: torch.device | str | None = None, check_inputs: bool = True) -> Runner:
    """Return a Runner for an artifact, after checking size and sha256 of each of its files.

    An artifact of several patch sizes gives `EntryPoints`: a Runner that picks by the width of the patches, and
    `run[16]` for one size. The folder of one size can be loaded by itself.

    Args:
        path: the artifact's folder.
        device: where to run; by default a GPU where there is one, or the device that the artifact was built for.
        check_inputs: look at the values of coordinates and masks before each call.

    Raises:
        ArtifactError: the folder is no artifact, or not what its manifest says.
        BackendError: a package or device that it needs is missing.
    """
    folder = Path(path)
    manifest = Manifest.read(folder)
    manifest.verify(folder)
    at = None if device is None else torch.device(device)
    if not manifest.entry_points:
        runner = open_verified(folder, manifest, at)
        runner.check_inputs = check_inputs
        return runner
    runners = {}
    for size, name in manifest.entry_points.items():
        runners[size] = open_verified(folder / name, Manifest.read(folder / name), at)
        runners[size].check_inputs = check_inputs
    return EntryPoints(manifest, runners)


def open_verified(folder: Path, manifest: Manifest, device: torch.device | None = None) -> Runner:
    """Return a Runner for an artifact of one patch size, whose files have been verified.

    Args:
        folder: the artifact's.
        manifest: its own.
        device: where to run; None as for `load`.

    Raises:
        ArtifactError: it is of a target that this release does not know.
        BackendError: a package or device that running needs is missing.
    """
    if manifest.target not in _RUNNERS:
        raise ArtifactError(f"the artifact is of target {manifest.target!r}: this release runs {', '.join(_RUNNERS)}")
    backend = importlib.import_module(f"naflex_export.serving.{_RUNNERS[manifest.target]}")
    backend.require_run()
    runner: Runner = backend.open(folder, manifest, device)
    return runner
