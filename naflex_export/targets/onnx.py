"""ONNX: `model.onnx`, run by ONNX Runtime.

Opset 23, where scaled dot-product attention is one `Attention` node that reads heads in rows: on a CPU it runs at the
speed of eager torch or better, while the MatMul-Softmax form of earlier opsets does not fuse with a full mask and is
1.2 to 1.3 times slower.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import onnx_ir as ir
import torch
from torch import Tensor

from naflex_export.graph import onnx_passes as passes
from naflex_export.graph.build_settings import BuildSettings
from naflex_export.graph.intermediates import Shapes, Tapped, fitting
from naflex_export.graph.onnx_rounding import round_each_result, widen
from naflex_export.graph.onnx_translate import WEIGHTS, write_onnx
from naflex_export.graph.program import Program
from naflex_export.graph.view import step_of
from naflex_export.precision import Precision
from naflex_export.serving.manifest import Manifest
from naflex_export.serving.onnx_runner import FILE, OnnxRunner, default_device, open_session
from naflex_export.serving.runner import Runner
from naflex_export.targets import StandIn, needs

PACKAGES = ("torch", "onnx", "onnxscript", "onnxruntime-gpu", "onnxruntime")
OPSET = 23


def require_build() -> None:
    needs.require_onnx()


def build(program: Program, folder: Path, settings: BuildSettings) -> dict[str, Any]:
    return write_onnx(program, folder, settings, settings.opset or OPSET, refusals)


def cannot_run(precision: Precision) -> str:
    if default_device().type != "cpu":
        return ""
    if precision.quantized == "fp8":
        return "ONNX Runtime's CPU provider multiplies no FP8"
    return "ONNX Runtime's CPU provider has no bfloat16" if precision.dtype == "bfloat16" else ""


def stand_in(folder: Path, manifest: Manifest) -> StandIn | None:
    """Return a graph in bfloat16, or with layers in FP8, in float32, each result rounded, which a CPU can run."""
    reason = cannot_run(manifest.precision)
    name = manifest.precision.name
    return rounded(folder, manifest, f"{FILE} in {name} was built and not run: {reason}") if reason else None


def as_on_gpu(runner: Runner) -> Runner | None:
    """Return a float16 graph with each result rounded; ONNX Runtime's CPU provider computes it in float32."""
    if not isinstance(runner, OnnxRunner) or runner.device.type != "cpu" or runner.manifest.dtype == "float32":
        return None
    return RoundedRunner(runner.path, runner.manifest)


def rounded(folder: Path, manifest: Manifest, not_run: str) -> StandIn:
    """Return a 16-bit graph as a CPU can run it, with each result rounded.

    Args:
        folder: the artifact's.
        manifest: its own.
        not_run: why the artifact itself is not run.
    """
    also = f" and the inputs of layers to {manifest.precision.quantized}" if manifest.precision.quantized else ""
    judged = f"{FILE}, each result rounded to {manifest.dtype}{also}, on ONNX Runtime's CPU provider"
    return StandIn(RoundedRunner(folder / FILE, manifest), judged, not_run)


def refusals(model: ir.Model) -> list[str]:
    """Return what ONNX Runtime's CPU provider has no kernel for, or its build does not know.

    ONNX Runtime itself is asked, with a session on the graph without its weights; of a bfloat16 graph it is asked
    about the one widened to float32, which is what it will run on a CPU.
    """
    import onnxruntime

    asked = ir.from_proto(passes.without_weights(model))
    widen(asked, ir.DataType.BFLOAT16)
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


class RoundedRunner(Runner):
    """Runs a 16-bit graph in float32 on a CPU, with each result rounded as the 16 bits would have it."""

    def __init__(self, path: Path, manifest: Manifest) -> None:
        super().__init__(manifest, torch.device("cpu"))
        self.path = path
        self._session = _session_of(self.graph(), self.device)

    def execute(self, inputs: tuple[Tensor, ...]) -> list[Tensor]:
        dtype = self.manifest.precision.torch_dtype
        return [output.to(dtype) for output in self.run(self._session, self.output_names, inputs)]

    def graph(self) -> ir.Model:
        """Return the graph, with each result rounded."""
        model = ir.load(self.path)
        round_each_result(model, ir.DataType[self.manifest.dtype.upper()])
        return model

    def run(self, session: Any, names: Sequence[str], inputs: tuple[Tensor, ...]) -> list[Tensor]:
        """Return outputs of a session, by name, in float32.

        Args:
            session: of the rounded graph, or of a copy of it with further outputs.
            names: of the outputs.
            inputs: in the graph's own dtype.
        """
        arrays = {
            spec.name: (tensor.float() if tensor.is_floating_point() else tensor).numpy()
            for spec, tensor in zip(self.manifest.inputs, inputs, strict=True)
        }
        return [torch.from_numpy(array) for array in session.run(names, arrays)]


def taps(runner: OnnxRunner | RoundedRunner, inputs: tuple[Tensor, ...], modules: Shapes) -> Tapped:
    """Return modules' outputs from a copy of the graph that gives them too; of a rounded one, in float32.

    Args:
        runner: of the artifact, or of what stands in for it.
        inputs: as for a call of it; they are not checked.
        modules: to look at, by name, with the shapes of their outputs.
    """
    model = runner.graph() if isinstance(runner, RoundedRunner) else ir.load(runner.path)
    named = passes.tap_modules(model, modules)
    session = _session_of(model, runner.device)
    names = list(dict.fromkeys([*(name for _, name in named), *runner.output_names]))
    given = runner.run(session, names, tuple(tensor.to(runner.device) for tensor in inputs))
    found = dict(zip(names, given, strict=True))
    values = fitting(((module, found[name]) for module, name in named), modules)
    return Tapped(values, {name: found[name] for name in runner.output_names})


def _session_of(model: ir.Model, device: torch.device) -> Any:
    """Return a session of a graph that is in no file; its weights go through one, so that they may be of any size."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / FILE
        ir.save(model, path, external_data=WEIGHTS)
        return open_session(path, device, as_written=True)
