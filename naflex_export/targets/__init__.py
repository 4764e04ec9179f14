"""The targets: one file each, imported only when it is asked for."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, cast

import torch

from naflex_export.errors import RequestError
from naflex_export.graph.build_settings import BuildSettings
from naflex_export.graph.program import Program
from naflex_export.serving.manifest import Manifest
from naflex_export.serving.runner import Runner


class Target(Protocol):
    """What each module of this package offers."""

    PACKAGES: tuple[str, ...]
    """Distributions whose versions the manifest records."""

    def require(self) -> None:
        """Raise BackendError if a package that building needs is missing."""

    def build(self, program: Program, folder: Path, settings: BuildSettings) -> dict[str, Any]:
        """Write the target's files into the folder and return what the manifest says of the build."""

    def open(self, folder: Path, manifest: Manifest, device: torch.device | None, check_inputs: bool) -> Runner:
        """Return a Runner for an artifact whose files have been verified; raise BackendError if none can run."""

    def cannot_run(self, dtype: str) -> str:
        """Return why an artifact of that dtype can be built on this machine and not run; empty where it can run."""

    def stand_in(self, folder: Path, manifest: Manifest) -> StandIn | None:
        """Return what can be judged where `open` cannot run the artifact itself."""


@dataclass(frozen=True)
class StandIn:
    """A Runner judged in place of the artifact's own, what it is, and why the artifact itself was not run."""

    runner: Runner
    judged: str
    not_run: str


_MODULES = {"compile": "compile", "aot": "aot", "onnx": "onnx", "trt": "tensorrt"}
NAMES = tuple(_MODULES)


def target_named(name: str) -> Target:
    """Return the target of that name.

    Raises:
        RequestError: there is none.
    """
    if name not in _MODULES:
        raise RequestError(f"target {name!r} does not exist: expected one of {', '.join(NAMES)}")
    return cast(Target, importlib.import_module(f"naflex_export.targets.{_MODULES[name]}"))
