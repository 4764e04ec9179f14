"""Which library of TensorRT is there: `tensorrt`, or else `tensorrt_rtx`. It needs no torch."""

from __future__ import annotations

import functools
import importlib
from types import ModuleType

from naflex_export.errors import BackendError

LIBRARIES = ("tensorrt", "tensorrt_rtx")


@functools.cache
def tensorrt() -> ModuleType:
    """Return the TensorRT library to build with: `tensorrt` where it is installed, else `tensorrt_rtx`.

    Raises:
        BackendError: neither imports.
    """
    reasons = []
    for name in LIBRARIES:
        try:
            return importlib.import_module(name)
        except (ImportError, OSError) as error:
            reasons.append(f"{name}: {error}")
    raise BackendError(
        "target trt needs TensorRT, and neither library imports "
        f"({'; '.join(reasons)}): pip install tensorrt-rtx, as naflex_export[rtx] does, or naflex_export[trt] from "
        "NVIDIA's index (docs/errors.md#a-backend-package-or-gpu-is-missing)"
    )
