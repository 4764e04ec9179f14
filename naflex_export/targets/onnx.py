"""ONNX: `model.onnx`, run by ONNX Runtime.

Opset 23, where scaled dot-product attention is one `Attention` node that reads heads in rows: on a CPU it runs at the
speed of eager torch or better, while the MatMul-Softmax form of earlier opsets does not fuse with a full mask and is
1.2 to 1.3 times slower.
"""

from __future__ import annotations

import importlib.util
import logging
import tempfile
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor

from naflex_export.batch import noise_batch
from naflex_export.errors import BackendError
from naflex_export.graph import onnx_passes as passes
from naflex_export.graph.build_settings import BuildSettings
from naflex_export.graph.intermediates import Shapes, Tapped, fitting
from naflex_export.graph.onnx_translate import FILE, WEIGHTS, write_onnx
from naflex_export.graph.program import Program
from naflex_export.graph.view import step_of
from naflex_export.grid import Grid
from naflex_export.serving.manifest import Manifest
from naflex_export.serving.runner import Runner
from naflex_export.targets import StandIn

PACKAGES = ("torch", "onnx", "onnxscript", "onnxruntime-gpu", "onnxruntime")
OPSET = 23


def require() -> None:
    for package in ("onnx", "onnxscript", "onnxruntime"):
        if importlib.util.find_spec(package) is None:
            raise BackendError(f"package {package!r} is missing: pip install {package}")


def build(program: Program, folder: Path, settings: BuildSettings) -> dict[str, Any]:
    return write_onnx(program, folder, settings, OPSET, refusals)


def open(folder: Path, manifest: Manifest, device: torch.device | None, check_inputs: bool) -> Runner:
    device = device or torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if manifest.dtype == "bfloat16" and device.type == "cpu":
        raise BackendError(
            "ONNX Runtime's CPU provider has no bfloat16: run this artifact on a GPU, or export in another dtype"
        )
    return OnnxRunner(folder / FILE, manifest, device, check_inputs)


def cannot_run(dtype: str) -> str:
    return "ONNX Runtime's CPU provider has no bfloat16" if dtype == "bfloat16" else ""


def stand_in(folder: Path, manifest: Manifest) -> StandIn | None:
    """Return the bfloat16 graph widened to float32, which a CPU can run."""
    reason = cannot_run(manifest.dtype)
    if not reason:
        return None
    runner = WidenedRunner(folder / FILE, manifest)
    return StandIn(
        runner,
        judged=f"{FILE}, widened to float32, on ONNX Runtime's CPU provider",
        not_run=f"{FILE} in {manifest.dtype} was built and not run: {reason}",
    )


def refusals(model: ir.Model) -> list[str]:
    """Return what ONNX Runtime's CPU provider has no kernel for, or its build does not know.

    ONNX Runtime itself is asked, with a session on the graph without its weights; of a bfloat16 graph it is asked
    about the one widened to float32, which is what it will run on a CPU.
    """
    import onnxruntime

    asked = ir.from_proto(passes.without_weights(model))
    passes.widen_bfloat16(asked)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4  # fatal: what is wrong comes as an exception
    content = ir.to_proto(asked).SerializeToString()
    try:
        onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime raises classes of its own for every cause
        reason = str(error).strip()
        named = [step_of(node) for node in model.graph if node.name and node.name in reason.replace("'", " ").split()]
        where = str(named[0]) if named else f"the graph of opset {dict(model.opset_imports)['']}"
        return [
            f"{where}: ONNX Runtime {onnxruntime.__version__} refuses it ({reason}); take a newer onnxruntime-gpu, or "
            "write the module in operators that it has"
        ]
    return []


class OnnxRunner(Runner):
    """Runs `model.onnx` with ONNX Runtime, on the provider asked for and no other."""

    def __init__(self, path: Path, manifest: Manifest, device: torch.device, check_inputs: bool = True) -> None:
        super().__init__(manifest, device, check_inputs)
        self._path = path
        self._session = _session(path, device)

    def trim(self) -> None:
        """Run one small batch at whose end the session's arena shrinks to it; nothing else makes it shrink."""
        import onnxruntime

        options = onnxruntime.RunOptions()
        place = "cpu:0" if self.device.type == "cpu" else f"gpu:{self.device.index or 0}"
        options.add_run_config_entry("memory.enable_memory_arena_shrinkage", place)
        patches = self.manifest.inputs[0]
        smallest = min(bucket.batch[0] for bucket in self.manifest.buckets)
        batch = noise_batch("trim", [Grid(1, 1)] * smallest, 1, int(patches.shape[2]))
        first, *rest = self.layout.arrange(batch)
        inputs = (first.to(getattr(torch, patches.dtype)), *rest)
        self._run(self._session, self.output_names, tuple(tensor.to(self.device) for tensor in inputs), options)

    def execute(self, inputs: tuple[Tensor, ...]) -> list[Tensor]:
        return self._run(self._session, self.output_names, inputs)

    def taps(self, inputs: tuple[Tensor, ...], modules: Shapes) -> Tapped:
        """Return modules' outputs from a copy of the graph that gives them too."""
        named, session = _tapped_session(ir.load(self._path), self.device, modules)
        inputs = tuple(tensor.to(self.device) for tensor in inputs)
        return _tapped(named, modules, self.output_names, lambda names: self._run(session, names, inputs))

    def _run(self, session: Any, names: Sequence[str], inputs: tuple[Tensor, ...], options: Any = None) -> list[Tensor]:
        """Return outputs of a session, by name, for inputs on its device."""
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


class WidenedRunner(Runner):
    """Runs a bfloat16 graph in float32 on a CPU, to judge the graph and its weights."""

    def __init__(self, path: Path, manifest: Manifest) -> None:
        super().__init__(manifest, torch.device("cpu"))
        self._path = path
        self._session = _session_of(self._widened(), self.device)

    def execute(self, inputs: tuple[Tensor, ...]) -> list[Tensor]:
        return [output.to(torch.bfloat16) for output in self._run(self._session, self.output_names, inputs)]

    def taps(self, inputs: tuple[Tensor, ...], modules: Shapes) -> Tapped:
        """Return modules' outputs from a copy of the widened graph that gives them too, in float32."""
        named, session = _tapped_session(self._widened(), self.device, modules)
        return _tapped(named, modules, self.output_names, lambda names: self._run(session, names, inputs))

    def _widened(self) -> ir.Model:
        model = ir.load(self._path)
        passes.widen_bfloat16(model)
        return model

    def _run(self, session: Any, names: Sequence[str], inputs: tuple[Tensor, ...]) -> list[Tensor]:
        arrays = {
            spec.name: (tensor.float() if tensor.is_floating_point() else tensor).numpy()
            for spec, tensor in zip(self.manifest.inputs, inputs, strict=True)
        }
        return [torch.from_numpy(array) for array in session.run(names, arrays)]


Named = list[tuple[str, str]]
"""Modules, each with the name of a value in the graph that may be its output."""


def _tapped_session(model: ir.Model, device: torch.device, modules: Collection[str]) -> tuple[Named, Any]:
    """Return a session of a graph that gives modules' outputs too, and what they are called there."""
    named = passes.tap_modules(model, modules)
    return named, _session_of(model, device)


def _tapped(named: Named, modules: Shapes, outputs: Sequence[str], run: Callable[[list[str]], list[Tensor]]) -> Tapped:
    """Return what a tapped session gives, run once for modules and outputs."""
    names = list(dict.fromkeys([*(name for _, name in named), *outputs]))
    found = dict(zip(names, run(names), strict=True))
    values = fitting(((module, found[name]) for module, name in named), modules)
    return Tapped(values, {name: found[name] for name in outputs})


def _session_of(model: ir.Model, device: torch.device) -> Any:
    """Return a session of a graph that is in no file; its weights go through one, so that they may be of any size."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / FILE
        ir.save(model, path, external_data=WEIGHTS)
        return _session(path, device)


_ELEMENTS: dict[torch.dtype, Any] = {
    torch.float32: np.float32,
    torch.float16: np.float16,
    torch.bfloat16: 16,  # onnx.TensorProto.BFLOAT16; numpy has no such dtype
    torch.int32: np.int32,
    torch.int64: np.int64,
    torch.bool: np.bool_,
}


def _session(path: Path, device: torch.device) -> Any:
    """Return a session on one provider, or raise BackendError: ONNX Runtime itself falls back to the CPU unasked.

    It uses as many threads as torch does in this process. By itself it would take a core each, whatever
    `OMP_NUM_THREADS` or `torch.set_num_threads` say.
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
        options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    try:
        session = onnxruntime.InferenceSession(path, options, providers=[provider], enable_fallback=0)
    except Exception as error:  # onnxruntime raises classes of its own for every cause
        raise BackendError(f"ONNX Runtime cannot run {path.name} on {device}: {error}") from error
    if wanted not in session.get_providers():
        raise BackendError(
            f"ONNX Runtime offers {session.get_providers()} and not {wanted}: install onnxruntime-gpu and its CUDA "
            "libraries, or load with device='cpu'"
        )
    return session
