"""A stand-in for TensorRT on a `strict_gpu`, which keeps its list of broken rules.

What an engine computes is computed by ONNX Runtime, from memory at the addresses that it got.
"""

from __future__ import annotations

import enum
import json
import threading
import types
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from strict_gpu import GARBAGE, Stream, World
from torch import Tensor

from naflex_export.serving.gpu import ALIGNMENT
from naflex_export.serving.manifest import Manifest
from naflex_export.targets.tensorrt import Profile


class DataType(enum.Enum):
    FLOAT = "float32"
    HALF = "float16"
    BF16 = "bfloat16"
    INT32 = "int32"
    INT64 = "int64"
    BOOL = "bool"


class TensorIOMode(enum.Enum):
    NONE = 0
    INPUT = 1
    OUTPUT = 2


class ExecutionContextAllocationStrategy(enum.Enum):
    STATIC = 0
    ON_PROFILE_CHANGE = 1
    USER_MANAGED = 2


class DynamicShapesKernelSpecializationStrategy(enum.Enum):
    LAZY = 0
    EAGER = 1
    NONE = 2


class CudaGraphStrategy(enum.Enum):
    DISABLED = 0
    WHOLE_GRAPH_CAPTURE = 1


class ILogger:
    INTERNAL_ERROR, ERROR, WARNING, INFO, VERBOSE = range(5)


def write_plan(path: Path, onnx: Path, manifest: Manifest, profiles: Sequence[Profile], **changes: str) -> Path:
    """Write what stands for an engine: an ONNX graph, and what an engine says of it.

    Args:
        path: of the engine.
        onnx: of the graph.
        manifest: which says what goes in and out.
        profiles: of the engine.
        changes: dtypes that the engine has, by tensor, in place of the manifest's.
    """
    header = {
        "inputs": {spec.name: changes.get(spec.name, spec.dtype) for spec in manifest.inputs},
        "outputs": {spec.name: changes.get(spec.name, spec.dtype) for spec in manifest.outputs},
        "shapes": {spec.name: spec.shape for spec in (*manifest.inputs, *manifest.outputs)},
        "profiles": [profile.shapes for profile in profiles],
    }
    path.write_bytes(json.dumps(header).encode() + b"\n" + onnx.read_bytes())
    return path


def library(world: World, name: str = "tensorrt") -> types.ModuleType:
    """Return what is to be imported as TensorRT."""
    module: Any = types.ModuleType(name)
    module.__version__ = "0.strict"
    module.ILogger, module.DataType, module.TensorIOMode = ILogger, DataType, TensorIOMode
    module.ExecutionContextAllocationStrategy = ExecutionContextAllocationStrategy
    if name == "tensorrt_rtx":
        module.DynamicShapesKernelSpecializationStrategy = DynamicShapesKernelSpecializationStrategy
        module.CudaGraphStrategy = CudaGraphStrategy
    module.Runtime = lambda log: Runtime(world, log)
    return module  # type: ignore[no-any-return]


class Runtime:
    def __init__(self, world: World, log: Any) -> None:
        self.world, self.log = world, log

    def deserialize_cuda_engine(self, plan: bytes) -> Engine | None:
        header, _, graph = plan.partition(b"\n")
        try:
            return Engine(self, json.loads(header), graph)
        except ValueError:
            self.log.log(ILogger.ERROR, "the plan's magic tag does not match")
            return None


class RuntimeCache:
    """Compiled kernels: here, the bytes that it was given, and a mark for each context that was made with it."""

    def __init__(self) -> None:
        self.content = b""

    def deserialize(self, blob: bytes) -> bool:
        if not blob.startswith(b"kernels"):
            return False
        self.content = bytes(blob)
        return True

    def serialize(self) -> bytes:
        return self.content or b"kernels"


class RuntimeConfig:
    """What contexts of TensorRT for RTX are made by."""

    def __init__(self) -> None:
        self.allocation = ExecutionContextAllocationStrategy.STATIC
        self.dynamic_shapes_kernel_specialization_strategy = DynamicShapesKernelSpecializationStrategy.LAZY
        self.cuda_graph_strategy = CudaGraphStrategy.DISABLED
        self.cache: RuntimeCache | None = None

    def set_execution_context_allocation_strategy(self, strategy: ExecutionContextAllocationStrategy) -> None:
        self.allocation = strategy

    def create_runtime_cache(self) -> RuntimeCache:
        return RuntimeCache()

    def set_runtime_cache(self, cache: RuntimeCache) -> bool:
        self.cache = cache
        return True


class Engine:
    def __init__(self, runtime: Runtime, header: dict[str, Any], graph: bytes) -> None:
        self.runtime, self.world, self.header = runtime, runtime.world, header
        self.device = self.world.device
        self.session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
        self.names = [*header["inputs"], *header["outputs"]]
        self.dtypes = {name: DataType(dtype) for part in ("inputs", "outputs") for name, dtype in header[part].items()}
        self.num_io_tensors = len(self.names)
        self.num_optimization_profiles = len(header["profiles"])

    def get_tensor_name(self, index: int) -> str:
        return self.names[index]

    def get_tensor_mode(self, name: str) -> TensorIOMode:
        return TensorIOMode.INPUT if name in self.header["inputs"] else TensorIOMode.OUTPUT

    def get_tensor_dtype(self, name: str) -> DataType:
        return self.dtypes[name]

    def create_runtime_config(self) -> RuntimeConfig:
        return RuntimeConfig()

    def create_execution_context(
        self, made_by: ExecutionContextAllocationStrategy | RuntimeConfig = ExecutionContextAllocationStrategy.STATIC
    ) -> Context:
        config = made_by if isinstance(made_by, RuntimeConfig) else None
        strategy = made_by.allocation if isinstance(made_by, RuntimeConfig) else made_by
        return Context(self, strategy, config)


class Context:
    """An execution context: a profile, then shapes, then what follows of them, then addresses, then a run."""

    def __init__(
        self, engine: Engine, strategy: ExecutionContextAllocationStrategy, config: RuntimeConfig | None = None
    ) -> None:
        self.engine, self.world, self.log = engine, engine.world, engine.runtime.log
        self.strategy, self.config = strategy, config
        self.memory: tuple[int, int] | None = None
        self.wanted: int | None = None
        self.profile: int | None = None
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.addresses: dict[str, int] = {}
        self.inferred = False
        self.thread: int | None = None
        self.last: tuple[Stream, int] | None = None
        self.has_run = False  # at the shapes that it has
        self.alive = [True]  # which a captured run asks
        self.is_captured = False
        self._on_device("made")

    def __del__(self) -> None:
        self.alive.clear()
        if self.last is not None and self.last[0].done < self.last[1]:
            self.world.faults.append("a context was destroyed while its work was queued")

    def set_optimization_profile_async(self, profile: int, handle: int) -> bool:
        self._enter()
        self._leave()
        if not 0 <= profile < self.engine.num_optimization_profiles:
            return self._refuse(f"profile {profile} is out of range")
        self.profile, self.shapes, self.inferred, self.wanted = profile, {}, False, None
        return handle in self.world.streams

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self._enter()
        if self.profile is None:
            self.world.faults.append("a shape was set before the profile")
            return False
        if name not in self.engine.header["inputs"]:
            return self._refuse(f"{name} is no input")
        smallest, _, largest = self.engine.header["profiles"][self.profile][name]
        if len(shape) != len(smallest) or not all(map(_between, smallest, shape, largest)):
            return self._refuse(f"{name} {list(shape)} is not within {smallest} and {largest}")  # the old one stays
        self._must_not_be_captured()
        self.shapes[name], self.inferred, self.wanted, self.has_run = tuple(shape), False, None, False
        return True

    def infer_shapes(self) -> list[str]:
        self._enter()
        self.inferred = True
        return [name for name in self.engine.header["inputs"] if name not in self.shapes]

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        self._enter()
        if name in self.shapes:
            return self.shapes[name]
        said: dict[str, Any] = self.engine.header["shapes"]
        sizes = {}
        for given, shape in self.shapes.items():
            sizes |= {dim: size for dim, size in zip(said[given], shape, strict=True) if isinstance(dim, str)}
        known = self.inferred and len(self.shapes) == len(self.engine.header["inputs"])
        return tuple(eval(str(dim), {}, sizes) if known else -1 for dim in said[name])  # "4 + tokens"

    def update_device_memory_size_for_shapes(self) -> int:
        """Return what the shapes in hand take: a page, and 64 bytes for each of their numbers."""
        self._enter()
        if len(self.shapes) < len(self.engine.header["inputs"]):
            self.world.faults.append("the size of memory was asked for before all shapes were set")
        self.wanted = 4096 + 64 * sum(int(np.prod(shape)) for shape in self.shapes.values())
        return self.wanted

    def set_device_memory(self, memory: int, size: int) -> None:
        self._enter()
        if self.strategy is not ExecutionContextAllocationStrategy.USER_MANAGED:
            self.world.faults.append("memory was given to a context that has its own")
        if memory % ALIGNMENT:
            self.world.faults.append("the memory of a context is not aligned")
        self.memory = memory, size

    def set_tensor_address(self, name: str, address: int) -> bool:
        self._enter()
        if name not in self.engine.names:
            return self._refuse(f"{name} is no tensor of the engine")
        if address % ALIGNMENT:
            self.world.faults.append(f"the address of {name} is not aligned")
        self.addresses[name] = address
        return True

    def execute_async_v3(self, handle: int) -> bool:
        self._enter()
        self._on_device("run")
        stream = self.world.streams[handle]
        if handle == 0:
            self.world.faults.append("run on the default stream: TensorRT would synchronize")
        if stream.device != self.engine.device:
            self.world.faults.append("run on a stream of another device")
        if not self.inferred:
            self.world.faults.append("run before shapes were inferred")
        if self.strategy is ExecutionContextAllocationStrategy.USER_MANAGED:
            self._check_memory()
        missing = [name for name in self.engine.names if name not in self.addresses]
        if missing:
            return self._refuse(f"no address is set for {missing}")
        self._check_order(stream)
        self._must_not_be_captured()
        engine, alive = self.engine, self.alive  # the queue must not be what keeps the context
        shapes = {name: self.get_tensor_shape(name) for name in engine.names}
        addresses, memory = dict(self.addresses), self.memory

        def work(on: Stream, at: int) -> None:
            if captured and not alive:
                engine.world.faults.append("a captured run was replayed after its context was gone")
            _compute(engine, shapes, addresses, memory, (on, at))

        captured = self.is_captured = stream.captured is not None
        if captured and not self.has_run:
            self.world.faults.append("a run was captured before one at its shapes: what that puts off is in the graph")
        stream.add(work)
        self.has_run = True
        if not captured:
            self.last = (stream, len(stream.queue))
        self._leave()
        return True

    def _must_not_be_captured(self) -> None:
        if self.is_captured:
            self.world.faults.append("a context was used for something else after its run was captured")

    def _check_memory(self) -> None:
        if self.wanted is None:
            self.world.faults.append("run before the size of memory was asked for these shapes")
        elif self.memory is None or self.memory[1] < self.wanted:
            self.world.faults.append("run with less memory than these shapes take")

    def _check_order(self, stream: Stream) -> None:
        if self.last is None or self.last[0] is stream:
            return
        before, count = self.last
        if before.done < count and stream.reached().get(before, 0) < count:
            self.world.faults.append("a context was run on a second stream while its work was queued on the first")

    def _on_device(self, what: str) -> None:
        if self.world.device != self.engine.device:
            self.world.faults.append(f"a context of device {self.engine.device} was {what} on {self.world.device}")

    def _enter(self) -> None:
        caller = threading.get_ident()
        if self.thread not in (None, caller):
            self.world.faults.append("two threads are in one context")
        self.thread = caller

    def _leave(self) -> None:
        self.thread = None

    def _refuse(self, reason: str) -> bool:
        self.log.log(ILogger.ERROR, reason)
        self._leave()
        return False


def _between(smallest: int, size: int, largest: int) -> bool:
    return smallest <= size <= largest


def _compute(
    engine: Engine,
    shapes: dict[str, tuple[int, ...]],
    addresses: dict[str, int],
    workspace: tuple[int, int] | None,
    when: tuple[Stream, int],
) -> None:
    stream, at = when
    if workspace is not None:
        engine.world.use(*workspace, "the memory of a context", stream, at)[:] = GARBAGE

    def memory(name: str) -> Tensor:
        dtype = getattr(torch, engine.dtypes[name].value)
        size = int(np.prod(shapes[name])) * dtype.itemsize
        found = engine.world.use(addresses[name], size, name, stream, at)
        return torch.from_numpy(found).view(dtype).view(shapes[name])

    outputs = list(engine.header["outputs"])
    given = engine.session.run(outputs, {name: memory(name).numpy() for name in engine.header["inputs"]})
    for name, value in zip(outputs, given, strict=True):
        memory(name).copy_(torch.from_numpy(value))
