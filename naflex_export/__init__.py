"""Exact, loop-free NaFlex vision transformers, exported to torch.compile, AOTInductor, ONNX and TensorRT.

Names are imported when they are first used: `naflex_export.load` brings in what a loaded artifact needs, and nothing of
what builds one. No module of this folder is named as a public function is, for importing it would hide the function.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from naflex_export.version import __version__ as __version__

if TYPE_CHECKING:
    from naflex_export.accuracy.gate import gate
    from naflex_export.accuracy.results import GateReport
    from naflex_export.compiled import CompiledModel, compile
    from naflex_export.embed.batcher import Batcher
    from naflex_export.embed.embedder import Embedder
    from naflex_export.embed.plan import plan_buckets
    from naflex_export.embed.preprocess import Preprocessor
    from naflex_export.errors import (
        ArtifactError,
        BackendError,
        BuildError,
        ClosedError,
        GateFailure,
        InputError,
        NaflexExportError,
        PhotoError,
        RequestError,
        UnsupportedModelError,
    )
    from naflex_export.exporter import Artifact, export
    from naflex_export.grid import Bucket, Grid
    from naflex_export.models.vectorize import vectorize
    from naflex_export.packing_collator import PackingCollator
    from naflex_export.reindex.compare import compare
    from naflex_export.reindex.compare_report import CompareReport
    from naflex_export.serving.engine_settings import EngineSettings
    from naflex_export.serving.load import load
    from naflex_export.serving.numpy_runner import NumpyRunner, load_numpy
    from naflex_export.serving.packing import pack, unpack
    from naflex_export.serving.patch_sizes import PatchSizesRunner
    from naflex_export.serving.runner import Runner
    from naflex_export.serving.text import TextEncoder

_MODULES = {
    "Artifact": "exporter",
    "ArtifactError": "errors",
    "BackendError": "errors",
    "Batcher": "embed.batcher",
    "Bucket": "grid",
    "BuildError": "errors",
    "ClosedError": "errors",
    "CompareReport": "reindex.compare_report",
    "CompiledModel": "compiled",
    "Embedder": "embed.embedder",
    "EngineSettings": "serving.engine_settings",
    "PackingCollator": "packing_collator",
    "PatchSizesRunner": "serving.patch_sizes",
    "GateFailure": "errors",
    "GateReport": "accuracy.results",
    "Grid": "grid",
    "InputError": "errors",
    "NaflexExportError": "errors",
    "NumpyRunner": "serving.numpy_runner",
    "PhotoError": "errors",
    "Preprocessor": "embed.preprocess",
    "RequestError": "errors",
    "Runner": "serving.runner",
    "TextEncoder": "serving.text",
    "UnsupportedModelError": "errors",
    "compare": "reindex.compare",
    "compile": "compiled",
    "export": "exporter",
    "gate": "accuracy.gate",
    "load": "serving.load",
    "load_numpy": "serving.numpy_runner",
    "plan_buckets": "embed.plan",
    "pack": "serving.packing",
    "unpack": "serving.packing",
    "vectorize": "models.vectorize",
}
"""Where each public name is defined."""

__all__ = [
    "Artifact",
    "ArtifactError",
    "BackendError",
    "Batcher",
    "Bucket",
    "BuildError",
    "ClosedError",
    "CompareReport",
    "CompiledModel",
    "Embedder",
    "EngineSettings",
    "GateFailure",
    "GateReport",
    "Grid",
    "InputError",
    "NaflexExportError",
    "NumpyRunner",
    "PackingCollator",
    "PatchSizesRunner",
    "PhotoError",
    "Preprocessor",
    "RequestError",
    "Runner",
    "TextEncoder",
    "UnsupportedModelError",
    "compare",
    "compile",
    "export",
    "gate",
    "load",
    "load_numpy",
    "pack",
    "plan_buckets",
    "unpack",
    "vectorize",
]


def __getattr__(name: str) -> Any:
    if name == "ray":
        return importlib.import_module(f"{__name__}.ray")
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        value = getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        from naflex_export.errors import BackendError

        raise BackendError(
            f"package 'torch' is missing: nx.load_numpy runs ONNX artifacts without it, and nx.Preprocessor makes "
            f"their inputs; nx.{name} needs it: pip install torch"
        ) from error
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, "ray"})
