"""`load`: artifact in, callable out."""

from __future__ import annotations

from pathlib import Path

import torch

from naflex_export.serving.manifest import Manifest
from naflex_export.serving.patch_sizes import EntryPoints
from naflex_export.serving.runner import Runner
from naflex_export.targets import target_named


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
    backend = target_named(manifest.target)
    backend.require()
    at = None if device is None else torch.device(device)
    if not manifest.entry_points:
        return backend.open(folder, manifest, at, check_inputs)
    runners = {}
    for size, name in manifest.entry_points.items():
        runners[size] = backend.open(folder / name, Manifest.read(folder / name), at, check_inputs)
    return EntryPoints(manifest, runners)
