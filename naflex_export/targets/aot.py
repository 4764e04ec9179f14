"""AOTInductor: `model.pt2`, the graph compiled ahead of time to native code for one kind of device."""

from __future__ import annotations

import errno
import io
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from naflex_export.errors import BuildError, tells_of_a_full_disk
from naflex_export.graph.build_settings import BuildSettings
from naflex_export.graph.intermediates import Shapes, Tapped
from naflex_export.graph.program import Program
from naflex_export.precision import Precision
from naflex_export.serving.aot_runner import FILE, PROMISED, promise
from naflex_export.serving.manifest import Manifest
from naflex_export.serving.runner import Runner
from naflex_export.targets import StandIn, needs

PACKAGES = ("torch", "triton")


def require_build() -> None:
    needs.require_compiler()


def build(program: Program, folder: Path, settings: BuildSettings) -> dict[str, Any]:
    device = next(iter(program.exported.state_dict.values())).device
    settings.announce(f"compiling native code for {device.type}")
    content = io.BytesIO()  # torch's own writer ends the process where the disk is full
    try:
        torch._inductor.aoti_compile_and_package(
            program.exported,
            package_path=content,
            inductor_configs={
                "aot_inductor.metadata": {PROMISED: promise(program.inputs, program.outputs, program.buckets)}
            },
        )
    except OSError:
        raise
    except Exception as error:  # whatever inductor raises, it is about this model's graph
        if tells_of_a_full_disk(error):
            raise OSError(errno.ENOSPC, "the compiler says: No space left on device") from error
        raise BuildError(f"AOTInductor refused the model: {error}") from error
    (folder / FILE).write_bytes(content.getbuffer())
    capability = list(torch.cuda.get_device_capability(device)) if device.type == "cuda" else None
    return {"device": device.type, "compute_capability": capability}


def cannot_run(precision: Precision) -> str:
    return ""


def stand_in(folder: Path, manifest: Manifest) -> StandIn | None:
    return None


def as_on_gpu(runner: Runner) -> None:
    return None


def taps(runner: Runner, inputs: tuple[Tensor, ...], modules: Shapes) -> Tapped:
    return Tapped(
        unavailable="native code has no modules left to look at: export the model to 'compile', in the same dtype, "
        "and gate that with --locate"
    )
