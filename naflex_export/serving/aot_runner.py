"""Running `model.pt2`, native code that AOTInductor compiled for one kind of device."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor

from naflex_export.errors import ArtifactError, BackendError
from naflex_export.grid import Bucket
from naflex_export.serving.archive import damage
from naflex_export.serving.device import resolve_device
from naflex_export.serving.manifest import Manifest
from naflex_export.serving.runner import Runner
from naflex_export.serving.signature import TensorSpec

FILE = "model.pt2"

PROMISED = "naflex_export"
"""Under this name the package's own metadata says what it was compiled for. An older package does not."""


def promise(inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec], buckets: Sequence[Bucket]) -> str:
    """Return what native code was compiled for, as a text: inputs, outputs and sizes, which it does not look at itself.

    Args:
        inputs: it takes.
        outputs: it gives.
        buckets: it serves.
    """
    held: dict[str, Sequence[TensorSpec | Bucket]] = {"inputs": inputs, "outputs": outputs, "buckets": buckets}
    return json.dumps({name: [asdict(one) for one in values] for name, values in held.items()}, sort_keys=True)


def require_run() -> None:
    """Ask for nothing: torch loads native code by itself, and no compiler has any part in it."""


def open(folder: Path, manifest: Manifest, device: torch.device | None) -> Runner:
    built_for = manifest.build["device"]
    device = resolve_device(device or torch.device(built_for))
    if device.type != built_for:
        raise BackendError(
            f"this artifact is native code for {built_for}, not {device.type}: export it on {device.type}"
        )
    if reason := damage(folder / FILE):
        raise ArtifactError(f"{FILE} cannot be loaded ({reason}): export again")
    return AotRunner(folder / FILE, manifest, device)


class AotRunner(Runner):
    """Runs native code from `model.pt2`. Loading it runs code of the package: its hash has been checked first."""

    def __init__(self, path: Path, manifest: Manifest, device: torch.device) -> None:
        super().__init__(manifest, device)
        self._run = torch._inductor.aoti_load_package(str(path))
        compiled_for = self._run.get_metadata().get(PROMISED)
        if compiled_for is not None and compiled_for != promise(manifest.inputs, manifest.outputs, manifest.buckets):
            raise ArtifactError(
                f"{FILE} was compiled for other inputs, outputs or buckets than the manifest says: export again"
            )

    def execute(self, inputs: tuple[Tensor, ...]) -> list[Tensor]:
        with torch.inference_mode(False), torch.no_grad():
            outputs = self._run(*(tensor.contiguous() for tensor in inputs))
        return [outputs] if isinstance(outputs, Tensor) else list(outputs)
