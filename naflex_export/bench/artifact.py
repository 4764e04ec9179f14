"""How fast an artifact is beside the eager model it was exported from."""

from __future__ import annotations

import datetime
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from naflex_export.accuracy.judge_artifact import open_stand_in
from naflex_export.bench.techniques import COLUMNS, WARMUP, Bench, Figures
from naflex_export.bench.timing import device_name
from naflex_export.errors import BackendError
from naflex_export.precision import Precision
from naflex_export.serving.load import open_verified
from naflex_export.serving.manifest import Manifest
from naflex_export.serving.opened import VerifiedFolder, opened
from naflex_export.serving.runner import Runner
from naflex_export.version import __version__

FIELDS = (
    *("date", "device", "threads", "torch", "naflex_export", "artifact", "target", "dtype", "ran"),
    *("grids", "seed", "rounds", *COLUMNS),
)
"""Of a row of measurements in a CSV file."""


@dataclass(frozen=True)
class TimedArtifact:
    """What is timed.

    Attributes:
        runner: an artifact of one patch size, or what stands in for it. It does not check values.
        name: what it is, in a line.
        not_run: why the artifact itself is not run; empty where it is.
    """

    runner: Runner
    name: str
    not_run: str = ""

    @property
    def label(self) -> str:
        """What tables call it."""
        return "stand-in" if self.not_run else "artifact"


@dataclass(frozen=True)
class BenchSettings:
    """What an artifact is timed on.

    Attributes:
        rule: of the grids, as `workloads.drawn_grids` has it.
        seed: of the batches.
        rounds: that count; each has a batch of its own.
        compiled: time eager under `torch.compile` too, which takes minutes to compile.
    """

    rule: str = "naflex"
    seed: int = 0
    rounds: int = 7
    compiled: bool = True


def open_timed(path: Path, device: torch.device | None = None, stand_in: bool = False) -> list[TimedArtifact]:
    """Return what there is to time of an artifact, after verifying it: several where it has several patch sizes.

    Args:
        path: the artifact's folder.
        device: where to run, as for `load`.
        stand_in: where the artifact cannot run, take what the gate would judge in its place.

    Raises:
        ArtifactError: the folder is no artifact, or not what its manifest says.
        BackendError: a package or device that it needs is missing.
    """

    def open_one(folder: VerifiedFolder, name: str) -> TimedArtifact:
        replacement = open_stand_in(folder) if stand_in else None
        if replacement is not None:
            return TimedArtifact(replacement.runner, replacement.judged, replacement.not_run)
        try:
            return TimedArtifact(open_verified(folder, device), name)
        except BackendError as error:
            if stand_in or open_stand_in(folder) is None:
                raise
            raise BackendError(f"{error}; or time what the gate judges in its place, with --stand-in") from error

    def open_all(folder: VerifiedFolder) -> list[TimedArtifact]:
        name = f"the artifact ({folder.manifest.target})"
        sizes = folder.by_patch_size()
        if not sizes:
            return [open_one(folder, name)]
        return [open_one(inner, f"{name} at patch size {size}") for size, inner in sizes.items()]

    return opened(path, open_all)


def eager_name(precision: Precision) -> str:
    """Return what eager is called beside an artifact: what it computes in, where its dtype does not say all of that."""
    if precision.quantized:
        return f"eager, {precision.dtype} and not quantized"
    return f"eager, {','.join(precision.keep_float32)} in float32" if precision.keep_float32 else "eager"


class ArtifactBench:
    """An artifact beside eager, and beside eager under `torch.compile` if asked for; compiled once for all sizes.

    Args:
        timed: the artifact.
        model: the eager model that it was exported from.
        settings: what to time on.
    """

    def __init__(self, timed: TimedArtifact, model: nn.Module, settings: BenchSettings) -> None:
        manifest = timed.runner.manifest
        self._timed, self._settings = timed, settings
        self._bench = Bench(model, manifest.precision, timed.runner.device, manifest.model.get("patch_size"))
        said = eager_name(manifest.precision)
        compiled = [self._bench.eager_compiled(f"{said}, torch.compile")] if settings.compiled else []
        self._techniques = [self._bench.eager(said), *compiled]
        self._techniques.append(self._bench.runner(timed.runner, timed.label))

    def measure(self, size: tuple[int, int], announce: Callable[[str], None] = lambda step: None) -> list[Figures]:
        """Return the figures of eager, of eager compiled and of the artifact, in this order.

        Args:
            size: images and tokens of the batches.
            announce: called with a line for each step that takes time.

        Raises:
            BackendError: the artifact could not be run on such a batch.
        """
        settings = self._settings
        batches = self._bench.batches(settings.rule, *size, settings.seed, settings.rounds + WARMUP)
        found = self._bench.measure(self._techniques, batches, settings.rounds, announce)
        if found[-1].failure:
            name, (images, tokens) = self._timed.name, size
            raise BackendError(f"{name} cannot run {images} images of {tokens} tokens: {found[-1].failure}")
        return found


def about(artifact: Path, manifest: Manifest, timed: TimedArtifact, settings: BenchSettings) -> dict[str, object]:
    """Return the columns of `FIELDS` that say what was measured; `Figures.row` has the others.

    Args:
        artifact: its folder.
        manifest: its own.
        timed: what was timed.
        settings: what it was timed on.
    """
    return {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "device": device_name(timed.runner.device),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "naflex_export": __version__,
        "artifact": artifact.resolve().name,
        "target": manifest.target,
        "dtype": str(manifest.precision),
        "ran": timed.name,
        "grids": settings.rule,
        "seed": settings.seed,
        "rounds": settings.rounds,
    }
