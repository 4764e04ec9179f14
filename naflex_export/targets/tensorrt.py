"""TensorRT: `model.plan`, one optimization profile per bucket, with the `model.onnx` it was built from beside it.

Through `tensorrt` where it imports, else through `tensorrt_rtx`, which builds on a machine without a GPU. Opset 20:
the TensorRT-RTX builder has no kernel for a float32 `Attention` node, and fuses MatMul-Softmax attention by itself.

Networks are strongly typed: precision is what the graph says, and TF32 is off, so float32 means float32.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any, cast

import onnx_ir as ir
import torch
from torch import Tensor

from naflex_export.errors import BackendError, BuildError
from naflex_export.graph import onnx_passes as passes
from naflex_export.graph.build_settings import BuildSettings
from naflex_export.graph.intermediates import Shapes, Tapped
from naflex_export.graph.onnx_translate import write_onnx
from naflex_export.graph.program import Program
from naflex_export.graph.view import step_of
from naflex_export.grid import Range
from naflex_export.precision import Precision
from naflex_export.serving import onnx_runner
from naflex_export.serving.manifest import Manifest
from naflex_export.serving.onnx_runner import OnnxRunner
from naflex_export.serving.runner import Runner
from naflex_export.serving.signature import TensorSpec
from naflex_export.serving.tensorrt_library import tensorrt
from naflex_export.serving.tensorrt_log import tensorrt_log
from naflex_export.serving.tensorrt_runner import FILE, TensorRTRunner, why_not_on
from naflex_export.targets import StandIn, needs, onnx

PACKAGES = (*onnx.PACKAGES, "tensorrt", "tensorrt-rtx")
OPSET = 20

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Profile:
    """The smallest, usual and largest shape of each input: what TensorRT calls an optimization profile."""

    shapes: dict[str, tuple[Shape, Shape, Shape]]


def require_build() -> None:
    needs.require_tensorrt()


def build(program: Program, folder: Path, settings: BuildSettings) -> dict[str, Any]:
    trt = tensorrt()
    written = write_onnx(program, folder, settings, settings.opset or OPSET, refusals)
    settings.announce(f"building the engine with {trt.__name__} {trt.__version__}")
    plan = build_engine(folder / onnx_runner.FILE, profiles_of(program), settings.verbose)
    (folder / FILE).write_bytes(plan)
    capability = ".".join(map(str, torch.cuda.get_device_capability())) if torch.cuda.is_available() else None
    return {
        **written,
        "library": trt.__name__,
        "library_version": trt.__version__,
        # tensorrt_rtx compiles its kernels on the GPU that loads the engine; tensorrt fixes them to the builder's GPU
        "compute_capability": capability if trt.__name__ == "tensorrt" else None,
        "profiles": len(program.buckets),
    }


def cannot_run(precision: Precision) -> str:
    return why_not_on(tensorrt().__name__) if torch.cuda.is_available() else "there is no CUDA device"


def stand_in(folder: Path, manifest: Manifest) -> StandIn | None:
    """Return the ONNX that the engine was built from, on a CPU, where there is no GPU for the engine."""
    has_gpu = torch.cuda.is_available()
    reason = why_not_on(manifest.build["library"]) if has_gpu else cannot_run(manifest.precision)
    return onnx_on_cpu(folder, manifest, not_run=f"{FILE} was built and not run: {reason}") if reason else None


def onnx_on_cpu(folder: Path, manifest: Manifest, not_run: str) -> StandIn:
    """Return the ONNX that an engine was built from, on a CPU: as it is, or in 16 bits with each result rounded.

    Args:
        folder: the artifact's.
        manifest: its own.
        not_run: why the engine itself is not run.
    """
    if manifest.dtype != "float32":
        return onnx.rounded(folder, manifest, not_run)
    runner = onnx_runner.open(folder, manifest, torch.device("cpu"))
    return StandIn(runner, f"{onnx_runner.FILE} on ONNX Runtime's CPU provider", not_run)


def as_on_gpu(runner: Runner) -> None:
    return None


def taps(runner: Runner, inputs: tuple[Tensor, ...], modules: Shapes) -> Tapped:
    """Return modules' outputs from the ONNX that the engine was built from: an engine shows nothing inside.

    Args:
        runner: of the engine, or of the ONNX that stands in for it.
        inputs: as for a call of it; they are not checked.
        modules: to look at, by name, with the shapes of their outputs.
    """
    if not isinstance(runner, TensorRTRunner):  # that ONNX itself, which stands in for the engine
        return onnx.taps(cast(OnnxRunner, runner), inputs, modules)
    replacement = onnx_on_cpu(runner.folder, runner.manifest, not_run="an engine shows nothing of its modules")
    return replace(taps(replacement.runner, inputs, modules), instead=replacement.judged)


def refusals(model: ir.Model) -> list[str]:
    """Return the nodes whose operator TensorRT's parser does not know.

    The parser says of an operator that it may take it; what it makes of each node shows when it parses.
    """
    trt = tensorrt()
    builder = _create_builder(trt)
    network = builder.create_network(_creation_flags(trt))
    parser = trt.OnnxParser(network, tensorrt_log(trt))
    return [
        f"{step_of(node)}: the parser of {trt.__name__} {trt.__version__} does not know it; write the module in "
        "operators that it has"
        for node in model.graph.all_nodes()
        if not parser.supports_operator(node.op_type)
    ]


def profiles_of(program: Program) -> list[Profile]:
    """Return a profile for each bucket, in their order."""
    opened = set(program.dim_names.values())
    ranges = [bucket.dims_of(opened) for bucket in program.buckets]
    return [Profile({spec.name: _shapes(spec, dims) for spec in program.inputs}) for dims in ranges]


def _shapes(spec: TensorSpec, dims: Mapping[str, Range]) -> tuple[Shape, Shape, Shape]:
    """Return the smallest, usual and largest shape of an input whose open dimensions have these ranges."""
    smallest, usual, largest = (spec.at({name: sizes[place] for name, sizes in dims.items()}) for place in range(3))
    return smallest, usual, largest


def build_engine(path: Path, profiles: Sequence[Profile], verbose: bool = False) -> bytes:
    """Return the serialized engine of an ONNX file.

    Args:
        path: of the ONNX file.
        profiles: one for each bucket.
        verbose: print TensorRT's own log to standard error.

    Raises:
        BackendError: the library cannot build on this machine.
        BuildError: the parser or the builder reported an error, read no layer, ignored an input, or returned nothing;
            or a profile's shapes are not in order.
    """
    for profile in profiles:
        _check_profile(profile)
    trt = tensorrt()
    with tensorrt_log(trt).recording(verbose) as messages:
        builder = _create_builder(trt)
        network = builder.create_network(_creation_flags(trt))
        parser = trt.OnnxParser(network, tensorrt_log(trt))
        parsed = parser.parse_from_file(str(path))
        _check_parsed(path, parsed, parser, network, messages)

        config = _create_config(builder)
        for profile in profiles:
            config.add_optimization_profile(_create_profile(builder, profile))
        plan = builder.build_serialized_network(network, config)
        _check_log(messages, "build")
        if plan is None:
            raise BuildError(f"{trt.__name__} built no engine and gave no reason; --verbose shows its log")
        return bytes(plan)


def _check_profile(profile: Profile) -> None:
    for name, (smallest, usual, largest) in profile.shapes.items():
        for low, mid, high in zip(smallest, usual, largest, strict=True):
            if not 1 <= low <= mid <= high:
                raise BuildError(
                    f"the profile of {name!r} is min {smallest}, opt {usual}, max {largest}: expected min <= opt <= max"
                )


def _check_parsed(path: Path, parsed: bool, parser: Any, network: Any, messages: list[tuple[str, str]]) -> None:
    """Raise BuildError for everything the parser gets wrong, also where it calls that success."""
    errors = [parser.get_error(index) for index in range(parser.num_errors)]
    if errors or not parsed:
        modules = _modules_of(path)
        lines = [
            f"{error.node_operator()} node {error.node_name()!r} from module "
            f"{modules.get(error.node_name(), '')!r}: {error.desc()}"
            for error in errors
        ]
        logged = [text for severity, text in messages if severity == "error"]
        raise BuildError("TensorRT's parser refused the ONNX graph:\n  " + "\n  ".join(lines or logged))
    if network.num_layers == 0:
        raise BuildError(f"TensorRT's parser read no layer from {path.name}: the file is empty or damaged")
    unread = _unread_inputs(network)
    if unread:
        raise BuildError(f"TensorRT's parser dropped what reads input {unread[0]!r}: what it says would have no effect")
    _check_log(messages, "parse")


def _unread_inputs(network: Any) -> list[str]:
    """Return the network inputs that no output depends on."""
    producers = {}
    for index in range(network.num_layers):
        layer = network.get_layer(index)
        for position in range(layer.num_outputs):
            producers[layer.get_output(position).name] = layer
    reached: set[str] = set()
    waiting = [network.get_output(index).name for index in range(network.num_outputs)]
    while waiting:
        name = waiting.pop()
        if name in reached:
            continue
        reached.add(name)
        layer = producers.get(name)
        read = [] if layer is None else [layer.get_input(position) for position in range(layer.num_inputs)]
        waiting += [tensor.name for tensor in read if tensor is not None]
    return [name for name in (network.get_input(i).name for i in range(network.num_inputs)) if name not in reached]


def _check_log(messages: list[tuple[str, str]], step: str) -> None:
    """Raise BuildError for an error in TensorRT's log, and for a warning that an input has no effect."""
    errors = [text for severity, text in messages if severity == "error"]
    if errors:
        raise BuildError(f"TensorRT reported an error (in {step}):\n  " + "\n  ".join(errors))
    unused = [text for _, text in messages if "unused input" in text.lower() or "is unused or used only at" in text]
    if unused:
        raise BuildError(f"TensorRT ignores an input (in {step}), so what it says has no effect: {unused[0]}")


def _modules_of(path: Path) -> dict[str, str]:
    """Return the model's module for each node name of an ONNX file; nothing where it cannot be read."""
    with contextlib.suppress(Exception):  # a file that TensorRT refused may be no ONNX at all
        return {node.name or "": passes.module_of(node) for node in ir.load(path).graph.all_nodes()}
    return {}


def _create_builder(trt: ModuleType) -> Any:
    try:
        return trt.Builder(tensorrt_log(trt))
    except Exception as error:  # pybind turns a failed CUDA initialization into a plain TypeError
        raise BackendError(
            f"{trt.__name__} {trt.__version__} cannot build on this machine: {error}. tensorrt needs a GPU to build; "
            "without one, uninstall it and install tensorrt-rtx"
        ) from error


def _create_config(builder: Any) -> Any:
    """Return a configuration in which float32 means float32: TF32 is on by default."""
    config = builder.create_builder_config()
    config.clear_flag(tensorrt().BuilderFlag.TF32)
    return config


def _creation_flags(trt: ModuleType) -> int:
    """Ask for strong typing where it is a choice: TensorRT 10. Later releases have nothing else."""
    flag = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    return 0 if flag is None else 1 << int(flag)


def _create_profile(builder: Any, profile: Profile) -> Any:
    created = builder.create_optimization_profile()
    for name, shapes in profile.shapes.items():
        created.set_shape(name, *shapes)
    return created
