"""Exact, loop-free NaFlex vision transformers, exported to torch.compile, AOTInductor, ONNX and TensorRT."""

from naflex_export.accuracy.gate import gate
from naflex_export.accuracy.results import GateReport
from naflex_export.compiled import CompiledModel, compile
from naflex_export.errors import (
    ArtifactError,
    BackendError,
    BuildError,
    GateFailure,
    InputError,
    NaflexExportError,
    RequestError,
    UnsupportedModelError,
)
from naflex_export.exporter import Artifact, export
from naflex_export.grid import Bucket, Grid
from naflex_export.models.vectorize import vectorize
from naflex_export.serving.load import load
from naflex_export.serving.patch_sizes import EntryPoints
from naflex_export.serving.runner import Runner

__version__ = "0.1.0"

__all__ = [
    "Artifact",
    "ArtifactError",
    "BackendError",
    "Bucket",
    "BuildError",
    "CompiledModel",
    "EntryPoints",
    "GateFailure",
    "GateReport",
    "Grid",
    "InputError",
    "NaflexExportError",
    "RequestError",
    "Runner",
    "UnsupportedModelError",
    "compile",
    "export",
    "gate",
    "load",
    "vectorize",
]
