"""Running `model.pt2`, a traced graph, under torch.compile where it is loaded."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.export.passes import move_to_device_pass

from naflex_export.serving.device import resolve_device
from naflex_export.serving.manifest import Manifest
from naflex_export.serving.runner import Runner
from naflex_export.serving.signature import padded, sizes_of, without_last

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
        return self.run(self._compiled, inputs)

    def run(self, compiled: Callable[..., Sequence[Tensor]], inputs: tuple[Tensor, ...]) -> list[Tensor]:
        """Return what a compiled graph gives: the outputs, and after them what else it may give, as it is.

        torch would specialize a single token: it gets one of padding, which the outputs are given without.
        """
        is_single = sizes_of(self.manifest.inputs, inputs)["tokens"] == 1
        with torch.inference_mode():
            given = compiled(*padded(self.manifest.inputs, inputs, "tokens") if is_single else inputs)
        specs = self.manifest.outputs
        outputs, others = given[: len(specs)], given[len(specs) :]
        if is_single:
            outputs = [without_last(spec, output, "tokens") for spec, output in zip(specs, outputs, strict=True)]
        return [*outputs, *others]

    def traced(self) -> torch.fx.GraphModule:
        """Return the graph as it was traced, on the runner's device."""
        exported = move_to_device_pass(torch.export.load(self.path), str(self.device))  # constants too
        return exported.module()
