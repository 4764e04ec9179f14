"""What a build takes besides the program."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from naflex_export.graph.calibration import Calibration


@dataclass(frozen=True)
class BuildSettings:
    """What a build takes besides the program.

    Attributes:
        verbose: let the backend's own log through to standard error.
        announce: called with a line for each step that takes time.
        compile_cache: keep what a `compile` artifact's graphs were compiled to in the artifact.
        calibration: what quantized layers have their scales from; none where nothing is quantized.
        opset: the version of ONNX's operators; None for the target's own choice.
        external_data_bytes: weights larger than this go to a file of their own beside `model.onnx`.
    """

    verbose: bool = False
    announce: Callable[[str], None] = lambda step: None
    compile_cache: bool = False
    calibration: Calibration | None = None
    opset: int | None = None
    external_data_bytes: int = 2**30
