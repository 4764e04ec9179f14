"""Running `model.pt2`, a traced graph, under torch.compile where it is loaded."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor
from torch.export.passes import move_to_device_pass

from naflex_export.errors import ArtifactError
from naflex_export.serving.archive import damage
from naflex_export.serving.compile_cache import CompileCache
from naflex_export.serving.device import resolve_device
from naflex_export.serving.graph_signature import check_program
from naflex_export.serving.graphs import Graphs
from naflex_export.serving.manifest import Manifest
from naflex_export.serving.one_graph import OneGraph
from naflex_export.serving.runner import Runner
from naflex_export.serving.signature import sizes_of
from naflex_export.serving.tensors import padded, without_last

FILE = "model.pt2"


def require_run() -> None:
    """Ask for nothing: torch is always there."""


def open(folder: Path, manifest: Manifest, device: torch.device | None) -> Runner:
    if reason := damage(folder / FILE):
        raise ArtifactError(f"{FILE} cannot be loaded ({reason}): export again")
    return CompileRunner(folder / FILE, manifest, resolve_device(device))


class CompileRunner(Runner):
    """Runs the traced graph as inductor compiles it: on a CPU in its first call, and on a GPU in that of each kind.

    Attributes:
        cache: what was compiled where the artifact was made, for a machine of the same kind.
    """

    def __init__(self, path: Path, manifest: Manifest, device: torch.device) -> None:
        super().__init__(manifest, device)
        self.path = path
        self.cache = CompileCache(path.parent, manifest.files, manifest.build.get("cache"), device)
        self._compiled = self.compiled(self.traced(), self.cache.compiling)

    def execute(self, inputs: tuple[Tensor, ...]) -> list[Tensor]:
        return self.run(self._compiled, inputs)

    def compiled(
        self,
        traced: torch.fx.GraphModule,
        compiling: Callable[[], contextlib.AbstractContextManager[None]] = contextlib.nullcontext,
    ) -> OneGraph | Graphs:
        """Return a traced graph that is compiled when it is called: one for all sizes on a CPU.

        On a GPU it is by torch.compile, one for single images and one for all larger batches: what inductor does for
        open sizes it may tune there by the sizes of an example, and a graph for all sizes has not been measured.

        Args:
            traced: the graph.
            compiling: gives a context that it is compiled in.
        """
        return (OneGraph if self.device.type == "cpu" else Graphs)(traced, compiling)

    def run(self, graphs: OneGraph | Graphs, inputs: tuple[Tensor, ...]) -> list[Tensor]:
        """Return what compiled graphs give: the outputs, and after them what else they may give, as it is.

        torch.compile specializes sizes of 1, so they have graphs of their own. A single token of padded inputs would
        take one more, and some releases trace it so that two are the fewest: it gets one of padding, which the outputs
        are given without.
        """
        sizes = sizes_of(self.manifest.inputs, inputs)
        is_single = self.pads(sizes)
        # one mode for all callers: each of torch's would have graphs of its own, and autocast other numbers
        with torch.inference_mode(False), torch.no_grad(), torch.autocast(self.device.type, enabled=False):
            taken = padded(self.manifest.inputs, inputs, "tokens") if is_single else inputs
            ones = [size == 1 for name, size in sizes.items() if name != "tokens" or self.input_format.is_packed]
            given = graphs.run(tuple(ones), *taken)
        specs = self.manifest.outputs
        outputs, others = given[: len(specs)], given[len(specs) :]
        if is_single:
            outputs = [without_last(spec, output, "tokens") for spec, output in zip(specs, outputs, strict=True)]
        return [*outputs, *others]

    def pads(self, sizes: Mapping[str, int]) -> bool:
        """Whether inputs of these sizes, by the names of their dimensions, get a token of padding."""
        return sizes.get("tokens") == 1 and not self.input_format.is_packed

    def traced(self) -> torch.fx.GraphModule:
        """Return the graph as it was traced, on the runner's device."""
        with _quiet():
            loaded = torch.export.load(self.path)
        check_program(self.manifest, loaded)
        # the Runner checks its inputs; torch guards some packs against a single token, for which the graph is as right
        return move_to_device_pass(loaded, str(self.device)).module(check_guards=False)  # constants too


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep torch from printing the traceback of an error that is raised as well."""
    logger = logging.getLogger("torch.export")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
