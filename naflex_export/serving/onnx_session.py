"""A session of ONNX Runtime on one device and no other, without torch."""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from naflex_export.errors import ArtifactError, BackendError
from naflex_export.serving.signature import TensorSpec


class Device(Protocol):
    """Where a session runs, as `torch.device` has it."""

    @property
    def type(self) -> str: ...

    @property
    def index(self) -> int | None: ...


def require_onnxruntime() -> None:
    """Check that ONNX Runtime is there.

    Raises:
        BackendError: it is not.
    """
    if importlib.util.find_spec("onnxruntime") is None:
        raise BackendError("package 'onnxruntime' is missing: pip install onnxruntime-gpu, or onnxruntime for a CPU")


def specs_of(nodes: Sequence[Any]) -> list[TensorSpec]:
    """Return what ONNX Runtime says of a graph's inputs or outputs, as a manifest has it."""
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


def new_session(path: Path, device: Device, threads: int, as_written: bool = False) -> Any:
    """Return a session on one provider: ONNX Runtime itself falls back to the CPU unasked.

    On a GPU it still computes the sizes of tensors on the CPU, and refuses every graph of open sizes where that is
    forbidden (`session.disable_cpu_ep_fallback`): so it is asked afterwards what runs where.

    By itself it would take a thread for each core, whatever `OMP_NUM_THREADS` or `torch.set_num_threads` say.

    Args:
        path: of the graph.
        device: where it is to run.
        threads: that one call may take.
        as_written: keep pairs of QuantizeLinear and DequantizeLinear where the graph has them, and fuse nothing with
            them: ONNX Runtime also does so with FP8, which it then finds no kernel for.

    Raises:
        ArtifactError: the file is no graph, or a wrong one.
        BackendError: ONNX Runtime cannot run it here.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    if as_written:
        options.add_session_config_entry("session.disable_quant_qdq", "1")
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
