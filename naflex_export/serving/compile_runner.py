"""Running `model.pt2`, a traced graph, under torch.compile where it is loaded."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor
from torch.export.passes import move_to_device_pass

from naflex_export.serving.device import resolve_device
from naflex_export.serving.manifest import Manifest
from naflex_export.serving.runner import Runner

FILE = "model.pt2"


def require_run() -> None:
    """Ask for nothing: torch is always there."""


def open(folder: Path, manifest: Manifest, device: torch.device | None) -> Runner:
    return CompileRunner(folder / FILE, manifest, resolve_device(device))


class CompileRunner(Runner):
    """Runs the traced graph under `torch.compile`; the first call of each kind of shape compiles."""

    def __init__(self, path: Path, manifest: Manifest, device: torch.device) -> None:
        super().__init__(manifest, device)
        self.path = path
        self._compiled = torch.compile(self.traced(), fullgraph=True, dynamic=True)

    def execute(self, inputs: tuple[Tensor, ...]) -> list[Tensor]:
        tokens = inputs[0].shape[1]
        with torch.inference_mode():
            outputs = self._compiled(*self.input_format.pad_single_token(inputs))
        return [cut(spec.shape, output, tokens) for spec, output in zip(self.manifest.outputs, outputs, strict=True)]

    def traced(self) -> torch.fx.GraphModule:
        """Return the graph as it was traced, on the runner's device."""
        exported = move_to_device_pass(torch.export.load(self.path), str(self.device))  # constants too
        return exported.module()


def cut(shape: tuple[int | str, ...], output: Tensor, tokens: int) -> Tensor:
    """Return an output without the token that `pad_single_token` may have added.

    Args:
        shape: the output's, as the manifest has it.
        output: what the graph gave.
        tokens: of the inputs, before any padding.
    """
    return output[:, :-1] if tokens == 1 and len(shape) == 3 else output
