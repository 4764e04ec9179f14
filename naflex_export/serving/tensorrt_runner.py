"""Running `model.plan`, an engine, with TensorRT: through `tensorrt` where it imports, else through `tensorrt_rtx`."""

from __future__ import annotations

import contextlib
import functools
import importlib
import sys
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from naflex_export.errors import BackendError
from naflex_export.serving.manifest import Manifest
from naflex_export.serving.runner import Runner
from naflex_export.serving.signature import sizes_of

FILE = "model.plan"


def require_run() -> None:
    tensorrt()


def open(folder: Path, manifest: Manifest, device: torch.device | None) -> Runner:
    if not torch.cuda.is_available():
        raise BackendError("an engine runs on a GPU, and torch finds no CUDA device: load it on one")
    return TensorRTRunner(folder / FILE, manifest, device or torch.device("cuda"))


@functools.cache
def tensorrt() -> ModuleType:
    """Return the TensorRT library: `tensorrt` where it is installed, else `tensorrt_rtx`.

    Raises:
        BackendError: neither imports.
    """
    reasons = []
    for name in ("tensorrt", "tensorrt_rtx"):
        try:
            return importlib.import_module(name)
        except (ImportError, OSError) as error:
            reasons.append(f"{name}: {error}")
    raise BackendError(
        "target trt needs TensorRT, and neither library imports "
        f"({'; '.join(reasons)}): pip install tensorrt-rtx, or naflex_export[trt] from NVIDIA's index"
    )


@functools.cache
def tensorrt_log(trt: ModuleType) -> Any:
    """Return the process's one logger; TensorRT ignores every other after the first."""

    class Log(trt.ILogger):  # type: ignore[name-defined,misc]
        """Keeps warnings and errors; prints everything when verbose."""

        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.messages: list[tuple[str, str]] = []
            self.verbose = False

        def log(self, severity: Any, text: str) -> None:
            serious = severity in (trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR)
            if serious or severity == trt.ILogger.WARNING:
                self.messages.append(("error" if serious else "warning", text))
            if self.verbose and severity != trt.ILogger.VERBOSE:
                print(f"[{trt.__name__}] {text}", file=sys.stderr)

        @contextlib.contextmanager
        def recording(self, verbose: bool) -> Iterator[list[tuple[str, str]]]:
            self.messages, self.verbose = [], verbose
            try:
                yield self.messages
            finally:
                self.messages, self.verbose = [], False

    return Log()


class TensorRTRunner(Runner):
    """Runs `model.plan` on the GPU, with an execution context for each thread and profile."""

    def __init__(self, path: Path, manifest: Manifest, device: torch.device) -> None:
        super().__init__(manifest, device)
        self.folder = path.parent
        trt = tensorrt()
        built_with = manifest.build["library"]
        if trt.__name__ != built_with:
            raise BackendError(
                f"this engine was built with {built_with}, and {trt.__name__} is installed: pip install it"
            )
        self._runtime = trt.Runtime(tensorrt_log(trt))
        with tensorrt_log(trt).recording(verbose=False) as messages:
            self._engine = self._runtime.deserialize_cuda_engine(path.read_bytes())
        if self._engine is None:
            reasons, built = "; ".join(text for _, text in messages) or "no reason given", manifest.build
            raise BackendError(
                f"{trt.__name__} {trt.__version__} cannot load an engine built by {built['library_version']} for "
                f"compute capability {built['compute_capability']}: {reasons}. Export again on this machine"
            )
        self._contexts = threading.local()

    def trim(self) -> None:
        self._contexts = threading.local()  # they hold the memory; the next call makes its own

    def execute(self, inputs: tuple[Tensor, ...]) -> list[Tensor]:
        sizes = sizes_of(self.manifest.inputs, inputs)
        stream = torch.cuda.Stream(self.device)  # type: ignore[no-untyped-call]  # the default stream would make TensorRT synchronize
        stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(stream):
            context = self._context(self._profile(sizes), stream)
            for spec, tensor in zip(self.manifest.inputs, inputs, strict=True):
                context.set_input_shape(spec.name, tuple(tensor.shape))
            missing = context.infer_shapes()
            if missing:
                raise BackendError(f"TensorRT needs shapes for {missing}: the engine and its manifest disagree")
            held = [tensor.contiguous() for tensor in inputs]
            for spec, tensor in zip(self.manifest.inputs, held, strict=True):
                context.set_tensor_address(spec.name, tensor.data_ptr())
            outputs = []
            for spec in self.manifest.outputs:
                shape = tuple(context.get_tensor_shape(spec.name))
                outputs.append(torch.empty(shape, dtype=getattr(torch, spec.dtype), device=self.device))
                context.set_tensor_address(spec.name, outputs[-1].data_ptr())
            if not context.execute_async_v3(stream.cuda_stream):
                raise BackendError("TensorRT refused to run the engine; --verbose shows its log")
        torch.cuda.current_stream(self.device).wait_stream(stream)
        for tensor in [*held, *outputs]:
            tensor.record_stream(stream)
        return outputs

    def _profile(self, sizes: Mapping[str, int]) -> int:
        """Return the index of the smallest bucket that takes these sizes; `check` has made sure that one does."""
        for index, bucket in enumerate(self.manifest.buckets):
            if bucket.takes(sizes):
                return index
        raise AssertionError("unreachable: the inputs were checked")

    def _context(self, profile: int, stream: torch.cuda.Stream) -> Any:
        """Return this thread's context for a profile; contexts must not be shared between threads."""
        contexts: dict[int, Any] = self._contexts.__dict__.setdefault("by_profile", {})
        if profile not in contexts:
            contexts[profile] = self._engine.create_execution_context()
            contexts[profile].set_optimization_profile_async(profile, stream.cuda_stream)
        return contexts[profile]
