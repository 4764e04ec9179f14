"""The targets: one file each that builds and judges, imported only when it is asked for.

What runs an artifact is in `serving/`, which needs nothing of this.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

from naflex_export.errors import RequestError

if TYPE_CHECKING:
    from torch import Tensor

    from naflex_export.embed.golden import Golden
    from naflex_export.graph.build_settings import BuildSettings
    from naflex_export.graph.intermediates import Shapes, Tapped
    from naflex_export.graph.program import Program
    from naflex_export.precision import Precision
    from naflex_export.serving.manifest import Manifest
    from naflex_export.serving.runner import Runner
    from naflex_export.serving.text import TokenMaker


class Target(Protocol):
    """What each module of this package offers."""

    PACKAGES: tuple[str, ...]
    """Distributions whose versions the manifest records."""

    def require_build(self) -> None:
        """Raise BackendError if something that building needs is missing; running needs less, and asks by itself."""

    def build(self, program: Program, folder: Path, settings: BuildSettings) -> dict[str, Any]:
        """Write the target's files into the folder and return what the manifest says of the build.

        Args:
            program: the traced model.
            folder: to write to.
            settings: what the build takes besides the program.
        """

    def cannot_run(self, precision: Precision) -> str:
        """Return why an artifact of that precision can be built on this machine and not run; empty where it can run."""

    def stand_in(self, folder: Path, manifest: Manifest) -> StandIn | None:
        """Return what can be judged where this machine cannot run the artifact itself; None where it can."""

    def as_on_gpu(self, runner: Any) -> Runner | None:
        """Return an artifact as a GPU rounds it, where this machine computes it in more digits; None where it does not.

        Args:
            runner: of the artifact on this machine.
        """

    def taps(self, runner: Any, inputs: tuple[Tensor, ...], modules: Shapes) -> Tapped:
        """Return the outputs of these modules of the model, of as many of them as the artifact can show.

        Args:
            runner: of the artifact, or of what stands in for it.
            inputs: as for a call of it; they are not checked.
            modules: their names in the model, such as `blocks.7.attn`, with the shapes that their outputs have there.
        """


@dataclass(frozen=True)
class StandIn:
    """A Runner judged in place of the artifact's own, what it is, and why the artifact itself was not run.

    And the artifact's golden photo, or of a text tower its tokenizer, if it has one.
    """

    runner: Runner
    judged: str
    not_run: str
    golden: Golden | None = None
    tokenizer: TokenMaker | None = None


_MODULES = {"compile": "compile", "aot": "aot", "onnx": "onnx", "trt": "tensorrt"}
NAMES = tuple(_MODULES)

OPSETS = {"onnx": range(18, 24), "trt": range(18, 23)}
"""Versions of ONNX's operators that can be asked for; none of a target that is not built from an ONNX graph."""

ALIASES = {
    "tensorrt": "trt",
    "tensorrt_rtx": "trt",
    "aoti": "aot",
    "aotinductor": "aot",
    "aot_inductor": "aot",
    "torch_compile": "compile",
    "onnxruntime": "onnx",
    "ort": "onnx",
}
"""Other words for them, as users know them from elsewhere."""


def target_word(text: str) -> str:
    """Return one of `NAMES` by that name or another word for it, in any case; what is none, as it is."""
    name = text.strip().lower().replace("-", "_").replace(".", "_")
    name = ALIASES.get(name, name)
    return name if name in NAMES else text


def check_target(name: str) -> None:
    """Check that there is a target of that name.

    Raises:
        RequestError: there is none.
    """
    if name not in _MODULES:
        raise RequestError(f"target {name!r} does not exist: expected one of {', '.join(NAMES)}")


def target_named(name: str) -> Target:
    """Return the target of that name.

    Raises:
        RequestError: there is none.
    """
    check_target(name)
    return cast(Target, importlib.import_module(f"naflex_export.targets.{_MODULES[name]}"))
