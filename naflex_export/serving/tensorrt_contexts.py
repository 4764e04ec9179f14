"""An engine's execution contexts: how they are made, what one is told ahead of a run, and who has which."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Hashable, Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, Generic, Protocol, TypeVar

import torch
from torch import Tensor

from naflex_export.errors import BackendError, RequestError
from naflex_export.serving.engine_settings import EngineSettings
from naflex_export.serving.gpu import Gpu
from naflex_export.serving.manifest import Manifest
from naflex_export.serving.tensorrt_log import reason


class EngineContext:
    """A context that is set to a profile, and its stream.

    It is used by one call at a time, and all its work is queued on its own stream: TensorRT defines neither two threads
    in one context nor one context on two streams. A call does not wait for its work to be done, and the next one, of
    whatever thread, may queue more behind it.

    Attributes:
        gpu: that it is on.
        stream: on which its work is queued.
    """

    def __init__(self, maker: ContextMaker, profile: int, manifest: Manifest, gpu: Gpu, log: Any) -> None:
        self.gpu, self.stream = gpu, gpu.new_stream()
        self._context = maker.context()
        self._profile, self._manifest, self._log = profile, manifest, log
        if self._context is None:
            raise BackendError("TensorRT made no context, for lack of memory perhaps: Runner.trim() gives some back")
        if not self._context.set_optimization_profile_async(profile, self.stream.cuda_stream):
            raise BackendError(
                f"TensorRT refuses profile {profile}: the engine and its manifest disagree: export again"
            )

    def set_shapes(self, inputs: Sequence[Tensor]) -> None:
        """Say how large the inputs are; what follows of it can be asked for then."""
        with self._log.recording() as messages:
            for spec, tensor in zip(self._manifest.inputs, inputs, strict=True):
                # refused, a context would go on with the shape of its last call
                if not self._context.set_input_shape(spec.name, tuple(tensor.shape)):
                    raise BackendError(
                        f"TensorRT refuses {spec.name} of shape {list(tensor.shape)} in profile {self._profile}: "
                        f"{reason(messages)}. The engine and its manifest disagree: export again"
                    )
            missing = self._context.infer_shapes()
        if missing:
            raise BackendError(f"TensorRT needs shapes for {missing}: the engine and its manifest disagree")

    def use_memory(self) -> Tensor:
        """Return memory for the context's own values at the shapes it has, which it uses from now on."""
        size = int(self._context.update_device_memory_size_for_shapes())
        memory = self.gpu.empty((max(size, 1),), torch.uint8)
        self._context.set_device_memory(memory.data_ptr(), size)
        return memory

    def empty_outputs(self) -> list[Tensor]:
        """Return tensors of any content, as large as the outputs are."""
        return [
            self.gpu.empty(tuple(self._context.get_tensor_shape(spec.name)), getattr(torch, spec.dtype))
            for spec in self._manifest.outputs
        ]

    def set_addresses(self, inputs: Sequence[Tensor], outputs: Sequence[Tensor]) -> None:
        """Say where it reads and writes."""
        specs = (*self._manifest.inputs, *self._manifest.outputs)
        with self._log.recording() as messages:
            for spec, tensor in zip(specs, (*inputs, *outputs), strict=True):
                if not self._context.set_tensor_address(spec.name, tensor.data_ptr()):
                    raise BackendError(f"TensorRT refuses the address of {spec.name}: {reason(messages)}")

    def run(self) -> None:
        """Queue a run on the stream."""
        with self._log.recording() as messages:
            if not self._context.execute_async_v3(self.stream.cuda_stream):
                raise BackendError(f"TensorRT refused to run the engine: {reason(messages)}")


class ContextMaker:
    """Makes an engine's contexts, without memory: each call gives the one it has what its shapes take.

    By themselves they would hold the most that any profile takes, each of them and all the time.

    Attributes:
        captures: whether the library captures runs as CUDA graphs by itself, where it is told to.
    """

    def __init__(self, trt: ModuleType, engine: Any, settings: EngineSettings) -> None:
        self._engine = engine
        self._strategy = trt.ExecutionContextAllocationStrategy.USER_MANAGED
        self._config: Any = None
        self._cache: Any = None
        self.captures = hasattr(trt, "CudaGraphStrategy")
        if not hasattr(trt, "DynamicShapesKernelSpecializationStrategy"):
            if settings.needs_rtx:
                raise RequestError(
                    f"{settings} is of TensorRT for RTX, and this engine was built with {trt.__name__}, which fixes "
                    "its kernels when it builds: expected no specialization and no runtime_cache"
                )
            return
        self._config = engine.create_runtime_config()
        self._config.set_execution_context_allocation_strategy(self._strategy)
        specialization = getattr(trt.DynamicShapesKernelSpecializationStrategy, settings.specialization.upper())
        self._config.dynamic_shapes_kernel_specialization_strategy = specialization
        capture = trt.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE if settings.cuda_graph else trt.CudaGraphStrategy.DISABLED
        self._config.cuda_graph_strategy = capture
        if settings.cache_file is not None:
            self._cache = self._config.create_runtime_cache()
            if settings.cache_file.is_file():
                # refused, it stays empty: it is of another GPU or release, and the next one saved takes its place
                self._cache.deserialize(settings.cache_file.read_bytes())
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


class Queued(Protocol):
    """What may have work queued on a stream of its own."""

    @property
    def stream(self) -> Any:
        """The stream."""


K = TypeVar("K", bound=Hashable)
T = TypeVar("T", bound=Queued)


class Pool(Generic[K, T]):
    """What calls have one at a time, by what it is for: made where none is idle, and kept for the next call.

    Args:
        make: a new one.
        most: how many idle ones are kept, those used last; all of them by default.
    """

    def __init__(self, make: Callable[[K], T], most: int | None = None) -> None:
        self._make, self._most = make, most
        self._lock = threading.Lock()
        self._idle: list[tuple[K, T]] = []  # in the order of their last use

    @contextlib.contextmanager
    def taken(self, key: K) -> Iterator[T]:
        """Give one that is the caller's alone until the block ends."""
        with self._lock:
            at = next((index for index, (of, _) in enumerate(self._idle) if of == key), None)
            found = None if at is None else self._idle.pop(at)[1]
        found = found or self._make(key)
        try:
            yield found
        finally:
            with self._lock:
                self._idle.append((key, found))
            self._keep(self._most)

    def drop(self) -> None:
        """Give up those that no call has, once the work is done that is queued on their streams."""
        self._keep(0)

    def _keep(self, most: int | None) -> None:
        """Give up those that were used longest ago, where there are more."""
        with self._lock:
            first_kept = 0 if most is None else max(0, len(self._idle) - most)
            dropped, self._idle = self._idle[:first_kept], self._idle[first_kept:]
        for _, one in dropped:
            one.stream.synchronize()

    def __del__(self) -> None:
        with contextlib.suppress(Exception):  # a process that ends takes its driver away first
            self.drop()
