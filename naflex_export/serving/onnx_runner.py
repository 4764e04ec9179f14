"""Running `model.onnx` with ONNX Runtime."""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from naflex_export.batch import noise_batch
from naflex_export.errors import ArtifactError, BackendError
from naflex_export.grid import Grid
from naflex_export.serving.device import resolve_device
from naflex_export.serving.graph_signature import check_graph
from naflex_export.serving.manifest import Manifest
from naflex_export.serving.runner import Runner
from naflex_export.serving.signature import TensorSpec

FILE = "model.onnx"


def require_run() -> None:
    if importlib.util.find_spec("onnxruntime") is None:
        raise BackendError("package 'onnxruntime' is missing: pip install onnxruntime-gpu, or onnxruntime for a CPU")


def open(folder: Path, manifest: Manifest, device: torch.device | None) -> Runner:
    device = resolve_device(device or default_device())
    if manifest.dtype == "bfloat16" and device.type == "cpu":
        raise BackendError(
            "ONNX Runtime's CPU provider has no bfloat16: run this artifact on a GPU, or export in another dtype"
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
        check_graph(manifest, _specs(self._session.get_inputs()), _specs(self._session.get_outputs()))

    def trim(self) -> None:
        """Run one small batch at whose end the session's arena shrinks to it; nothing else makes it shrink."""
        import onnxruntime

        options = onnxruntime.RunOptions()
        place = "cpu:0" if self.device.type == "cpu" else f"gpu:{self.device.index or 0}"
        options.add_run_config_entry("memory.enable_memory_arena_shrinkage", place)
        patches = self.manifest.inputs[0]
        smallest = min(bucket.batch[0] for bucket in self.manifest.buckets)
        batch = noise_batch("trim", [Grid(1, 1)] * smallest, 1, int(patches.shape[-1]))
        first, *rest = self.input_format.arrange(batch)
        inputs = (first.to(getattr(torch, patches.dtype)), *rest)
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


def _specs(nodes: Sequence[Any]) -> list[TensorSpec]:
    """Return what ONNX Runtime says of a graph's inputs or outputs, in torch's words."""
    names = {"float": "float32", "double": "float64"}
    kinds = [node.type.removeprefix("tensor(").removesuffix(")") for node in nodes]
    shapes = [tuple(dim if isinstance(dim, int) else str(dim) for dim in node.shape) for node in nodes]
    return [
        TensorSpec(node.name, names.get(kind, kind), shape)
        for node, kind, shape in zip(nodes, kinds, shapes, strict=True)
    ]


_DAMAGED = ("InvalidProtobuf", "InvalidGraph", "NoSuchFile", "NoModel", "InvalidArgument", "Fail")
"""What ONNX Runtime raises of a file that is no graph, or a wrong one."""

_TOO_NEW = ("opset", "IR version", "ir_version")
"""What it says of a graph that a newer release of it would take."""

_OF_SHAPES = {
    *("Shape", "Size", "Constant", "ConstantOfShape", "Gather", "Slice", "Split", "Concat", "Squeeze", "Unsqueeze"),
    *("Reshape", "Identity", "Cast", "Range", "Expand", "Where", "Equal", "Less", "Greater", "Not", "And", "Or"),
    *("Add", "Sub", "Mul", "Div", "Mod", "Neg", "Abs", "Min", "Max"),
}
"""Operators that compute sizes from sizes, which ONNX Runtime does on the CPU for the GPU's sake."""


def open_session(path: Path, device: torch.device) -> Any:
    """Return a session on one provider: ONNX Runtime itself falls back to the CPU unasked.

    On a GPU it still computes the sizes of tensors on the CPU, and refuses every graph of open sizes where that is
    forbidden (`session.disable_cpu_ep_fallback`): so it is asked afterwards what runs where.

    It uses as many threads as torch does in this process. By itself it would take a core each, whatever
    `OMP_NUM_THREADS` or `torch.set_num_threads` say.

    Raises:
        ArtifactError: the file is no graph, or a wrong one.
        BackendError: ONNX Runtime cannot run it here.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    verbose = logging.getLogger("naflex_export").isEnabledFor(logging.DEBUG)
    options.log_severity_level = 1 if verbose else 3  # 1 is informational, 3 errors
    wanted = "CPUExecutionProvider"
    provider: Any = wanted
    if device.type == "cuda":
        wanted = "CUDAExecutionProvider"
        provider = (wanted, {"device_id": device.index or 0, "use_tf32": 0})
        options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    try:
        session = onnxruntime.InferenceSession(path, options, providers=[provider], enable_fallback=0)
    except Exception as error:  # onnxruntime raises classes of its own for every cause
        is_too_new = any(word in str(error) for word in _TOO_NEW)
        if device.type == "cpu" and type(error).__name__ in _DAMAGED and not is_too_new:
            reason = str(error).strip()[:500]
            raise ArtifactError(f"{path.name} is no graph that ONNX Runtime reads ({reason}): export again") from error
        raise BackendError(f"ONNX Runtime cannot run {path.name} on {device}: {error}") from error
    if wanted not in session.get_providers():
        raise BackendError(
            f"ONNX Runtime offers {session.get_providers()} and not {wanted}: install onnxruntime-gpu and its CUDA "
            "libraries, or load with device='cpu'"
        )
    if device.type == "cuda" and (strays := left_to_cpu(session)):
        raise BackendError(
            f"ONNX Runtime's CUDA provider has no kernel for {', '.join(strays)} of {path.name}, which would run on "
            "the CPU: take a newer onnxruntime-gpu, export in another dtype, or load with device='cpu'"
        )
    return session


def left_to_cpu(session: Any) -> list[str]:
    """Return the nodes that a session for a GPU would run on the CPU, but for those that compute sizes.

    Args:
        session: made with `session.record_ep_graph_assignment_info`.
    """
    return [
        f"{node.op_type} {node.name!r}"
        for part in session.get_provider_graph_assignment_info()
        if part.ep_name == "CPUExecutionProvider"
        for node in part.get_nodes()
        if node.op_type not in _OF_SHAPES
    ]
