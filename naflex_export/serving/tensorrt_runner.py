"""Running `model.plan`, an engine, with the library that built it: `tensorrt` or `tensorrt_rtx`."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
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
from naflex_export.serving.tensorrt_capture import MOST_CAPTURED, CapturedRun, Shapes
from naflex_export.serving.tensorrt_contexts import ContextMaker, EngineContext, Pool
from naflex_export.serving.tensorrt_library import LIBRARIES, tensorrt
from naflex_export.serving.tensorrt_log import reason, tensorrt_log

FILE = "model.plan"

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


class TensorRTRunner(Runner):
    """Runs `model.plan` on a GPU, each call by a context, or a captured run, that no other call has meanwhile."""

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
        self.settings.check_cache(self.folder)
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
                f"compute capability {built['compute_capability']}: {reason(messages)}. Export again on this machine"
            )
        _require_signature(trt, self._engine, manifest)
        if self.settings.token_sizes and manifest.packed:
            raise RequestError("token_sizes pads batches, and a packed artifact takes none with padding: leave it out")
        self._maker = maker = ContextMaker(trt, self._engine, self.settings)
        on, log = self._gpu, self._log

        # neither holds the runner, which would then stay, with all its memory, until somebody collects cycles
        def context(profile: int) -> EngineContext:
            return EngineContext(maker, profile, manifest, on, log)

        def captured(key: tuple[int, Shapes]) -> CapturedRun:
            profile, shapes = key
            return CapturedRun(context(profile), manifest.inputs, shapes)

        self._contexts, self._captured = Pool(context), Pool(captured, MOST_CAPTURED)

    def trim(self) -> None:
        self.refuse_closed()
        with self._gpu.current():
            self._contexts.drop()  # they hold the memory; the next call makes its own
            self._captured.drop()

    def save_runtime_cache(self) -> None:
        """Write the kernels compiled so far to the settings' `runtime_cache`, in one step.

        Raises:
            RequestError: the settings name no file, or the Runner was closed.
        """
        self.refuse_closed()
        if self.settings.cache_file is None:
            raise RequestError(
                "there is no runtime cache to save: load with engine=nx.EngineSettings(runtime_cache=Path(...))"
            )
        self._maker.save(self.settings.cache_file)

    def execute(self, inputs: tuple[Tensor, ...]) -> list[Tensor]:
        sizes = sizes_of(self.manifest.inputs, inputs)
        profile = self._profile(sizes)
        added = self._padding_for(sizes, profile)
        run = self._run_captured if self.settings.cuda_graph and not self._maker.captures else self._run
        with self._gpu.current():
            outputs = run(profile, self._padded(inputs, sizes["tokens"] + added) if added else inputs)
        return [_without(output, spec, added) for output, spec in zip(outputs, self.manifest.outputs, strict=True)]

    def _run(self, profile: int, inputs: Sequence[Tensor]) -> list[Tensor]:
        gpu = self._gpu
        with self._contexts.taken(profile) as context:
            context.set_shapes(inputs)
            memory = context.use_memory()
            read = [gpu.readable(tensor) for tensor in inputs]
            outputs = context.empty_outputs()
            context.set_addresses(read, outputs)
            # All memory is the caller's stream's, which waits in its turn: so it is ready here, and none of it is used
            # for anything else before the engine is done with it.
            caller = gpu.callers_stream()
            context.stream.wait_stream(caller)
            context.run()
            caller.wait_stream(context.stream)
            del memory  # the caller's stream has it again once the engine is done
        return outputs

    def _run_captured(self, profile: int, inputs: Sequence[Tensor]) -> list[Tensor]:
        shapes = tuple(tuple(tensor.shape) for tensor in inputs)
        with self._captured.taken((profile, shapes)) as captured:
            return captured(inputs)

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

    def _profile(self, sizes: Mapping[str, int]) -> int:
        """Return the index of the smallest bucket that takes these sizes; `check` has made sure that one does."""
        for index, bucket in enumerate(self.manifest.buckets):
            if bucket.takes(sizes):
                return index
        raise AssertionError("unreachable: the inputs were checked")


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
