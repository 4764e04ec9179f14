"""What building for a target needs beside torch, asked for without it: a compiler, packages, a library."""

from __future__ import annotations

import importlib.util
import shutil

from naflex_export.errors import BackendError
from naflex_export.serving.tensorrt_library import tensorrt


def require_compiler() -> None:
    """Ask for what AOTInductor compiles with.

    Raises:
        BackendError: there is none.
    """
    if shutil.which("g++") is None and shutil.which("clang++") is None:
        raise BackendError(
            "AOTInductor needs a C++ compiler and found none: install g++ (Debian: apt install g++; "
            "docs/errors.md#no-c-compiler)"
        )


def require_onnx() -> None:
    """Ask for what an ONNX graph is made with, and judged with.

    Raises:
        BackendError: a package is missing.
    """
    for package in ("onnx", "onnxscript", "onnxruntime"):
        if importlib.util.find_spec(package) is None:
            raise BackendError(f"package {package!r} is missing: pip install {package}")


def require_tensorrt() -> None:
    """Ask for what an engine is built from, and with.

    Raises:
        BackendError: a package is missing, or no library imports.
    """
    require_onnx()
    tensorrt()


def check_needs(target: str) -> None:
    """Check that what building for a target needs is there; a traced graph needs torch alone.

    Raises:
        BackendError: something is missing.
    """
    asks = {"aot": require_compiler, "onnx": require_onnx, "trt": require_tensorrt}
    if target in asks:
        asks[target]()
