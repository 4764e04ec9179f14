"""Running `model.onnx` with ONNX Runtime."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from naflex_export.errors import BackendError
from naflex_export.serving.device import resolve_device
from naflex_export.serving.graph_signature import check_graph
from naflex_export.serving.manifest import Manifest
from naflex_export.serving.onnx_session import new_session, require_onnxruntime, specs_of
from naflex_export.serving.runner import Runner

FILE = "model.onnx"


def require_run() -> None:
    require_onnxruntime()


def open(folder: Path, manifest: Manifest, device: torch.device | None) -> Runner:
    device = resolve_device(device or default_device())
    if manifest.dtype == "bfloat16" and device.type == "cpu":
        raise BackendError(
            "ONNX Runtime's CPU provider has no bfloat16: run this artifact on a GPU, or export in another dtype"
        )
    if manifest.precision.quantized == "fp8" and device.type == "cpu":
        raise BackendError(
            "ONNX Runtime's CPU provider multiplies no FP8: run this artifact on a GPU, or export with --dtype int8"
        )
    return OnnxRunner(folder / FILE, manifest, device)


def default_device() -> torch.device:
    """Return where a graph runs unless told: a GPU where there is one and the ONNX Runtime that is installed has it."""
    import onnxruntime

    has_gpu = torch.cuda.is_available() and "CUDAExecutionProvider" in onnxruntime.get_available_providers()
    return torch.device("cuda" if has_gpu else "cpu")


class OnnxRunner(Runner):
    """Runs `model.onnx` with ONNX Runtime, on the provider asked for and no other."""

    def __init__(self, path: Path, manifest: Manifest, device: torch.device) -> None:
        super().__init__(manifest, device)
        self.path = path
        self._session = open_session(path, device)
        check_graph(manifest, specs_of(self._session.get_inputs()), specs_of(self._session.get_outputs()))

    def trim(self) -> None:
        """Run one small batch at whose end the session's arena shrinks to it; nothing else makes it shrink."""
        self.refuse_closed()
        import onnxruntime

        options = onnxruntime.RunOptions()
        place = "cpu:0" if self.device.type == "cpu" else f"gpu:{self.device.index or 0}"
        options.add_run_config_entry("memory.enable_memory_arena_shrinkage", place)
        smallest = min(bucket.batch[0] for bucket in self.manifest.buckets)
        tokens = 1 if "tokens" in self.input_format.opened else self.manifest.buckets[0].tokens
        inputs = self.example("trim", smallest, tokens)
        self.run(self._session, self.output_names, tuple(tensor.to(self.device) for tensor in inputs), options)

    def execute(self, inputs: tuple[Tensor, ...]) -> list[Tensor]:
        return self.run(self._session, self.output_names, inputs)

    def run(self, session: Any, names: Sequence[str], inputs: tuple[Tensor, ...], options: Any = None) -> list[Tensor]:
        """Return outputs of a session, by name, for inputs on its device.

        Args:
            session: of the runner's graph, or of a copy of it with further outputs.
            names: of the outputs.
            inputs: on the session's device.
            options: ONNX Runtime's, for this run.
        """
        given = {spec.name: tensor.contiguous() for spec, tensor in zip(self.manifest.inputs, inputs, strict=True)}
        if self.device.type == "cuda":
            return self._run_on_device(session, names, given, options)
        arrays = {name: tensor.numpy() for name, tensor in given.items()}
        return [torch.from_numpy(array) for array in session.run(names, arrays, options)]

    def _run_on_device(
        self, session: Any, names: Sequence[str], inputs: dict[str, Tensor], options: Any
    ) -> list[Tensor]:
        """Run on the GPU without a copy of the inputs or outputs through the host."""
        import onnxruntime

        index = self.device.index or 0
        binding = session.io_binding()
        torch.cuda.current_stream(self.device).synchronize()
        for name, tensor in inputs.items():
            element = _ELEMENTS[tensor.dtype]
            binding.bind_input(name, "cuda", index, element, tuple(tensor.shape), tensor.data_ptr())
        for name in names:
            binding.bind_output(name, "cuda", index)
        session.run_with_iobinding(binding, options)
        binding.synchronize_outputs()
        values: list[onnxruntime.OrtValue] = binding.get_outputs()
        return [torch.utils.dlpack.from_dlpack(value._ortvalue.to_dlpack()).clone() for value in values]


_ELEMENTS: dict[torch.dtype, Any] = {
    torch.float32: np.float32,
    torch.float16: np.float16,
    torch.bfloat16: 16,  # onnx.TensorProto.BFLOAT16; numpy has no such dtype
    torch.int32: np.int32,
    torch.int64: np.int64,
    torch.bool: np.bool_,
}


def open_session(path: Path, device: torch.device, as_written: bool = False) -> Any:
    """Return a session on one provider, with as many threads as torch has in this process.

    Args:
        path: of the graph.
        device: where it is to run.
        as_written: as for `new_session`.

    Raises:
        ArtifactError: the file is no graph, or a wrong one.
        BackendError: ONNX Runtime cannot run it here.
    """
    return new_session(path, device, torch.get_num_threads(), as_written)
