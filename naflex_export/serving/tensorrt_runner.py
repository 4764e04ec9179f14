"""Running `model.plan`, an engine, with the library that built it: `tensorrt` or `tensorrt_rtx`."""

from __future__ import annotations

import contextlib
import functools
import importlib
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from naflex_export.errors import ArtifactError, BackendError, RequestError
from naflex_export.serving.engine_settings import EngineSettings
from naflex_export.serving.gpu import Gpu
from naflex_export.serving.manifest import Manifest
from naflex_export.serving.runner import Runner
from naflex_export.serving.signature import TensorSpec, sizes_of

FILE = "model.plan"

LIBRARIES = ("tensorrt", "tensorrt_rtx")

RTX_GPUS = ((7, 5), (8, 0), (8, 6), (8, 9), (12, 0), (12, 1))
"""Compute capabilities that tensorrt_rtx 1.7 has kernels for: no 9.0, which H100 and H200 have."""

_DTYPES = {
    "FLOAT": "float32",
    "HALF": "float16",
    "BF16": "bfloat16",
    "INT32": "int32",
    "INT64": "int64",
    "BOOL": "bool",
}
"""Dtypes of TensorRT under torch's names."""


def require_run() -> None:
    tensorrt()


def open(
    folder: Path, manifest: Manifest, device: torch.device | None, settings: EngineSettings | None = None
) -> Runner:
    if not torch.cuda.is_available():
        raise BackendError("an engine runs on a GPU, and torch finds no CUDA device: load it on one")
    if device is not None and device.type != "cuda":
        raise BackendError(f"an engine runs on a GPU, and device {str(device)!r} was asked for: expected 'cuda'")
    # the device of a tensor, for "cuda" alone is the current one, which may change between calls
    at = torch.empty(0, device=device or "cuda").device
    if reason := why_not_on(str(manifest.build.get("library", "")), at):
        raise BackendError(reason)
    return TensorRTRunner(folder / FILE, manifest, at, settings=settings)


def why_not_on(library: str, device: torch.device | None = None) -> str:
    """Return why a library's engines do not run on a GPU; empty where they do.

    Args:
        library: that builds and runs them.
        device: the GPU, by default the current one.
    """
    found = torch.cuda.get_device_capability(device)
    if library != "tensorrt_rtx" or found in RTX_GPUS:
        return ""
    known = ", ".join(f"{major}.{minor}" for major, minor in RTX_GPUS)
    return (
        f"tensorrt_rtx has no kernels for a GPU of compute capability {found[0]}.{found[1]} (it knows {known}): export "
        "with tensorrt on that machine, or to 'aot' or 'compile'"
    )


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
        "NVIDIA's index (docs/errors.md#tensorrt-is-missing)"
    )


def library_of(manifest: Manifest) -> ModuleType:
    """Return the library that built an engine, whichever others are installed: no other can load it.

    Raises:
        ArtifactError: the manifest names a library that this release does not know.
        BackendError: the library does not import.
    """
    name = manifest.build["library"]
    if name not in LIBRARIES:
        raise ArtifactError(f"the engine was built with {name!r}: this release knows {', '.join(LIBRARIES)}")
    try:
        return importlib.import_module(name)
    except (ImportError, OSError) as error:
        package = "tensorrt-rtx" if name == "tensorrt_rtx" else "naflex_export[trt] from NVIDIA's index"
        raise BackendError(
            f"this engine was built with {name}, and no other library can load it; {name} does not import ({error}): "
            f"pip install {package}"
        ) from error


@functools.cache
def tensorrt_log(trt: ModuleType) -> Any:
    """Return the process's one logger; TensorRT ignores every other after the first."""

    class Log(trt.ILogger):  # type: ignore[name-defined,misc]
        """Gives warnings and errors to whoever is recording and keeps none; prints everything when verbose."""

        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.recordings: dict[int, list[tuple[str, str]]] = {}
            self.verbose = False

        def log(self, severity: Any, text: str) -> None:
            serious = severity in (trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR)
            if serious or severity == trt.ILogger.WARNING:
                for messages in list(self.recordings.values()):
                    messages.append(("error" if serious else "warning", text))
            if self.verbose and severity != trt.ILogger.VERBOSE:
                print(f"[{trt.__name__}] {text}", file=sys.stderr)

        @contextlib.contextmanager
        def recording(self, verbose: bool = False) -> Iterator[list[tuple[str, str]]]:
            """Give a list to which messages are added for as long as the block runs, those of other threads too."""
            messages: list[tuple[str, str]] = []
            before, self.verbose = self.verbose, verbose or self.verbose
            self.recordings[id(messages)] = messages
            try:
                yield messages
            finally:
                self.verbose = before
                del self.recordings[id(messages)]

    return Log()


class TensorRTRunner(Runner):
    """Runs `model.plan` on a GPU, each call by a context that no other call has meanwhile."""

    def __init__(
        self,
        path: Path,
        manifest: Manifest,
        device: torch.device,
        gpu: Gpu | None = None,
        *,
        settings: EngineSettings | None = None,
    ) -> None:
        super().__init__(manifest, device)
        self.folder, self.settings = path.parent, settings or EngineSettings()
        self._gpu = gpu or Gpu(device)
        trt = library_of(manifest)
        self._log = tensorrt_log(trt)
        self._runtime = trt.Runtime(self._log)
        with self._gpu.current(), self._log.recording() as messages:
            self._engine = self._runtime.deserialize_cuda_engine(path.read_bytes())
        if self._engine is None:
            built = manifest.build
            raise BackendError(
                f"{trt.__name__} {trt.__version__} cannot load an engine built by {built['library_version']} for "
                f"compute capability {built['compute_capability']}: {_reason(messages)}. Export again on this machine"
            )
        _require_signature(trt, self._engine, manifest)
        if self.settings.token_sizes and manifest.packed:
            raise RequestError("token_sizes pads batches, and a packed artifact takes none with padding: leave it out")
        self._contexts = _Contexts(_ContextMaker(trt, self._engine, self.settings), self._gpu)

    def trim(self) -> None:
        with self._gpu.current():
            self._contexts.drop()  # they hold the memory; the next call makes its own

    def save_runtime_cache(self) -> None:
        """Write the kernels compiled so far to the settings' `runtime_cache`, in one step.

        Raises:
            RequestError: the settings name no file.
        """
        if self.settings.runtime_cache is None:
            raise RequestError(
                "there is no runtime cache to save: load with engine=nx.EngineSettings(runtime_cache=Path(...))"
            )
        self._contexts.maker.save(self.settings.runtime_cache)

    def execute(self, inputs: tuple[Tensor, ...]) -> list[Tensor]:
        sizes = sizes_of(self.manifest.inputs, inputs)
        profile = self._profile(sizes)
        gpu, specs = self._gpu, self.manifest.outputs
        added = self._padding_for(sizes, profile)
        if added:
            with gpu.current():
                inputs = self._padded(inputs, sizes["tokens"] + added)
        with gpu.current(), self._log.recording() as messages, self._contexts.taken(profile) as (context, stream):
            for spec, tensor in zip(self.manifest.inputs, inputs, strict=True):
                # refused, a context would go on with the shape of its last call
                if not context.set_input_shape(spec.name, tuple(tensor.shape)):
                    raise BackendError(
                        f"TensorRT refuses {spec.name} of shape {list(tensor.shape)} in profile {profile}: "
                        f"{_reason(messages)}. The engine and its manifest disagree: export again"
                    )
            missing = context.infer_shapes()
            if missing:
                raise BackendError(f"TensorRT needs shapes for {missing}: the engine and its manifest disagree")
            memory = self._memory_of(context)
            read = [gpu.readable(tensor) for tensor in inputs]
            outputs = [
                gpu.empty(tuple(context.get_tensor_shape(spec.name)), getattr(torch, spec.dtype)) for spec in specs
            ]
            for spec, tensor in zip((*self.manifest.inputs, *specs), (*read, *outputs), strict=True):
                if not context.set_tensor_address(spec.name, tensor.data_ptr()):
                    raise BackendError(f"TensorRT refuses the address of {spec.name}: {_reason(messages)}")
            # All memory is the caller's stream's, which waits in its turn: so it is ready here, and none of it is used
            # for anything else before the engine is done with it.
            caller = gpu.callers_stream()
            stream.wait_stream(caller)
            if not context.execute_async_v3(stream.cuda_stream):
                raise BackendError(f"TensorRT refused to run the engine: {_reason(messages)}")
            caller.wait_stream(stream)
            del memory  # the caller's stream has it again once the engine is done
        return [_without(output, spec, added) for output, spec in zip(outputs, specs, strict=True)]

    def _padding_for(self, sizes: Mapping[str, int], profile: int) -> int:
        """Return how many tokens a batch is padded by, ahead of the engine."""
        if not self.settings.token_sizes:
            return 0
        return self.settings.padded_tokens(sizes["tokens"], self.manifest.buckets[profile].tokens) - sizes["tokens"]

    def _padded(self, inputs: tuple[Tensor, ...], tokens: int) -> tuple[Tensor, ...]:
        """Return inputs with padding up to a number of tokens, which is zeros in each of them, and no token's."""
        return tuple(
            self._gpu.padded(tensor, spec.shape.index("tokens"), tokens) if "tokens" in spec.shape else tensor
            for spec, tensor in zip(self.manifest.inputs, inputs, strict=True)
        )

    def _memory_of(self, context: Any) -> Tensor:
        """Return memory for a context's own values at the shapes it has, and let it use that."""
        size = int(context.update_device_memory_size_for_shapes())
        memory = self._gpu.empty((max(size, 1),), torch.uint8)
        context.set_device_memory(memory.data_ptr(), size)
        return memory

    def _profile(self, sizes: Mapping[str, int]) -> int:
        """Return the index of the smallest bucket that takes these sizes; `check` has made sure that one does."""
        for index, bucket in enumerate(self.manifest.buckets):
            if bucket.takes(sizes):
                return index
        raise AssertionError("unreachable: the inputs were checked")


class _Contexts:
    """An engine's contexts, each set to a profile and with a stream of its own.

    A context is used by one call at a time, and all its work is queued on its own stream: TensorRT defines neither two
    threads in one context nor one context on two streams. A call does not wait for its work to be done, and the next
    one, of whatever thread, may queue more behind it.
    """

    def __init__(self, maker: _ContextMaker, gpu: Gpu) -> None:
        self.maker, self._gpu = maker, gpu
        self._lock = threading.Lock()
        self._idle: dict[int, list[tuple[Any, Any]]] = {}

    @contextlib.contextmanager
    def taken(self, profile: int) -> Iterator[tuple[Any, Any]]:
        """Give a context of a profile, and its stream, that are the caller's alone until the block ends."""
        with self._lock:
            idle = self._idle.get(profile)
            found = idle.pop() if idle else None
        found = found or self._made(profile)
        try:
            yield found
        finally:
            with self._lock:
                self._idle.setdefault(profile, []).append(found)

    def drop(self) -> None:
        """Give up the contexts that no call has, once the work is done that is queued on their streams."""
        with self._lock:
            idle, self._idle = self._idle, {}
        for _, stream in (pair for pairs in idle.values() for pair in pairs):
            stream.synchronize()

    def __del__(self) -> None:
        with contextlib.suppress(Exception):  # a process that ends takes its driver away first
            self.drop()

    def _made(self, profile: int) -> tuple[Any, Any]:
        context, stream = self.maker.context(), self._gpu.new_stream()
        if context is None:
            raise BackendError("TensorRT made no context, for lack of memory perhaps: Runner.trim() gives some back")
        if not context.set_optimization_profile_async(profile, stream.cuda_stream):
            raise BackendError(
                f"TensorRT refuses profile {profile}: the engine and its manifest disagree: export again"
            )
        return context, stream


class _ContextMaker:
    """Makes an engine's contexts, without memory: each call gives the one it has what its shapes take.

    By themselves they would hold the most that any profile takes, each of them and all the time.
    """

    def __init__(self, trt: ModuleType, engine: Any, settings: EngineSettings) -> None:
        self._engine = engine
        self._strategy = trt.ExecutionContextAllocationStrategy.USER_MANAGED
        self._config: Any = None
        self._cache: Any = None
        if not hasattr(trt, "DynamicShapesKernelSpecializationStrategy"):
            if settings.needs_rtx:
                raise RequestError(
                    f"{settings} is of TensorRT for RTX, and this engine was built with {trt.__name__}, which fixes "
                    "its kernels when it builds: expected no engine settings"
                )
            return
        self._config = engine.create_runtime_config()
        self._config.set_execution_context_allocation_strategy(self._strategy)
        specialization = getattr(trt.DynamicShapesKernelSpecializationStrategy, settings.specialization.upper())
        self._config.dynamic_shapes_kernel_specialization_strategy = specialization
        capture = trt.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE if settings.cuda_graph else trt.CudaGraphStrategy.DISABLED
        self._config.cuda_graph_strategy = capture
        if settings.runtime_cache is not None:
            self._cache = self._config.create_runtime_cache()
            if settings.runtime_cache.is_file():
                # refused, it stays empty: it is of another GPU or release, and the next one saved takes its place
                self._cache.deserialize(settings.runtime_cache.read_bytes())
            if not self._config.set_runtime_cache(self._cache):
                raise BackendError(f"{trt.__name__} refuses a runtime cache: load without one")

    def context(self) -> Any:
        """Return a new context; None where the library has no memory for it."""
        return self._engine.create_execution_context(self._strategy if self._config is None else self._config)

    def save(self, path: Path) -> None:
        """Write the runtime cache to a file, in one step."""
        partial = path.with_name(f"{path.name}.partial")
        partial.write_bytes(bytes(self._cache.serialize()))
        partial.replace(path)


def _require_signature(trt: ModuleType, engine: Any, manifest: Manifest) -> None:
    """Check that an engine takes and gives what its manifest says: it would read and write past the end of tensors.

    Raises:
        ArtifactError: it does not.
    """
    names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
    for kind, mode, specs in (
        ("inputs", trt.TensorIOMode.INPUT, manifest.inputs),
        ("outputs", trt.TensorIOMode.OUTPUT, manifest.outputs),
    ):
        found = {name: _dtype_name(engine, name) for name in names if engine.get_tensor_mode(name) == mode}
        expected = {spec.name: spec.dtype for spec in specs}
        if found != expected:
            raise ArtifactError(f"{FILE} has the {kind} {found}, and the manifest says {expected}: export again")
    if engine.num_optimization_profiles != len(manifest.buckets):
        raise ArtifactError(
            f"{FILE} has {engine.num_optimization_profiles} profiles, and the manifest has {len(manifest.buckets)} "
            "buckets: expected a profile for each; export again"
        )


def _without(output: Tensor, spec: TensorSpec, added: int) -> Tensor:
    """Return an output without the tokens that were added: the last of the axis that has tokens."""
    axes = [axis for axis, dim in enumerate(spec.shape) if "tokens" in str(dim)] if added else []
    for axis in axes:
        output = output.narrow(axis, 0, output.shape[axis] - added)
    return output


def _dtype_name(engine: Any, name: str) -> str:
    """Return the dtype of an engine's tensor, torch's name where it has one."""
    found = engine.get_tensor_dtype(name).name
    return _DTYPES.get(found, found)


def _reason(messages: Sequence[tuple[str, str]]) -> str:
    """Return what TensorRT's log says of a refusal."""
    errors = [text for severity, text in messages if severity == "error"]
    return "; ".join(errors or [text for _, text in messages]) or "it gives no reason"
