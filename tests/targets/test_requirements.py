"""Building and running are two questions: each asks for what it needs, and for nothing else."""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Callable

import pytest

import naflex_export as nx
from naflex_export.serving import aot_runner, compile_runner, onnx_runner, tensorrt_runner
from naflex_export.targets import aot, onnx, tensorrt
from naflex_export.targets import compile as compile_target


@pytest.fixture
def missing(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Make packages look as if they were not installed."""
    true = importlib.util.find_spec

    def hide(*packages: str) -> None:
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name in packages else true(name))

    return hide


def test_native_code_is_compiled_with_a_compiler_and_loaded_without(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(nx.BackendError, match=r"AOTInductor needs a C\+\+ compiler and found none: install g\+\+"):
        aot.require_build()
    aot_runner.require_run()


@pytest.mark.parametrize("package", ["onnx", "onnxscript"])
def test_onnx_is_written_with_an_exporter_and_run_without(package: str, missing: Callable[..., None]) -> None:
    missing(package)
    with pytest.raises(nx.BackendError, match=f"package '{package}' is missing: pip install {package}"):
        onnx.require_build()
    onnx_runner.require_run()


def test_onnx_is_not_run_without_its_runtime(missing: Callable[..., None]) -> None:
    missing("onnxruntime")
    with pytest.raises(nx.BackendError, match="package 'onnxruntime' is missing: pip install onnxruntime-gpu"):
        onnx_runner.require_run()


def test_an_engine_is_built_from_onnx_and_run_without(missing: Callable[..., None]) -> None:
    pytest.importorskip("tensorrt_rtx")
    missing("onnx", "onnxscript", "onnxruntime")
    with pytest.raises(nx.BackendError, match="package 'onnx' is missing"):
        tensorrt.require_build()
    tensorrt_runner.require_run()


def test_a_traced_graph_needs_torch_alone(missing: Callable[..., None]) -> None:
    missing("onnx", "onnxruntime", "tensorrt", "tensorrt_rtx")
    compile_target.require_build()
    compile_runner.require_run()


def test_an_engine_needs_one_of_two_libraries(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(name: str) -> None:
        raise ImportError("no libnvinfer")

    monkeypatch.setattr("naflex_export.serving.tensorrt_runner.importlib.import_module", refuse)
    tensorrt_runner.tensorrt.cache_clear()
    try:
        with pytest.raises(nx.BackendError, match="tensorrt: no libnvinfer; tensorrt_rtx: no libnvinfer"):
            tensorrt_runner.require_run()
    finally:
        tensorrt_runner.tensorrt.cache_clear()
