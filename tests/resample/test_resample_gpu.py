"""The kernels for a GPU: their values in Triton's interpreter, and that they compile for real GPUs."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

triton = pytest.importorskip("triton")
from naflex_export.resample import add as add_resampled  # noqa: E402
from naflex_export.resample import triton_kernels as resample_kernels  # noqa: E402
from naflex_export.resample.gpu import CELL_BLOCKS, COMPILED, TOKEN_BLOCKS  # noqa: E402

BLOCKS = {
    "BLOCK_X": 16,
    "BLOCK_H": 16,
    "BLOCK_W": 16,
    "BLOCK_C": 64,
    "BLOCK_N": 256,
    "BLOCK_P": 16,
    "SPLIT": 1,
    "WEIGHTS": True,
}
KINDS = {"CUBIC": True, "ANTIALIAS": True, "ALIGNED": False, "FILL": True, "PRECISION": "ieee"}
KERNELS = {
    "examine": {},
    "add_rows": {},
    "gradient_of_rows": {},
    "add_tokens": TOKEN_BLOCKS,
    "gradient_of_tokens": TOKEN_BLOCKS,
    "add_cells": CELL_BLOCKS,
    "gradient_of_cells": CELL_BLOCKS,
}
POINTERS = {
    **dict.fromkeys(("grid_ptr", "total_ptr", "partial_ptr", "weights_ptr"), "*fp32"),
    **dict.fromkeys(("plan_ptr", "lengths_ptr"), "*i32"),
    "coord_ptr": "*i64",
}


@pytest.mark.parametrize(
    ("capability", "installed", "hip", "on"),
    [((9, 0), True, None, True), ((8, 0), True, None, True), ((7, 5), True, None, False), ((9, 0), False, None, False),
     ((9, 4), True, "6.2", False)],
    ids=["hopper", "ampere", "turing", "no-triton", "rocm"],
)  # fmt: skip
def test_a_gpu_runs_them_where_it_can(
    capability: tuple[int, int], installed: bool, hip: str | None, on: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch.version, "hip", hip)
    monkeypatch.setattr(add_resampled, "HAS_TRITON", installed)
    gpu = torch.device("cuda", 0)
    assert add_resampled._has_own_evaluation(gpu) is on
    monkeypatch.setattr(add_resampled, "KERNELS_ON_GPU", False)
    assert not add_resampled._has_own_evaluation(gpu)
    assert add_resampled._has_own_evaluation(torch.device("cpu"))
    assert not add_resampled._has_own_evaluation(torch.device("mps"))


@pytest.mark.skipif(
    tuple(map(int, triton.__version__.split(".")[:2])) < (3, 8),
    reason="the interpreter of Triton 3.6, which torch 2.11 comes with, fails under numpy 2.4",
)
@pytest.mark.parametrize(
    ("chosen", "number"),
    [
        pytest.param("", 16, marks=pytest.mark.full, id="all"),
        pytest.param("few-cells-shuffled-zeros or operator", 2, id="few"),
    ],
)
def test_they_compute_what_the_graph_does(chosen: str, number: int) -> None:
    file = Path(__file__).with_name("interpreted_kernels.py")
    command = [sys.executable, "-m", "pytest", "-q", "-n", "0", "-p", "no:cacheprovider", "-k", chosen, str(file)]
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{number} passed" in done.stdout


@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("name", KERNELS)
def test_they_compile_for_gpus(name: str, dtype: str, capability: int) -> None:
    from triton.backends.compiler import GPUTarget

    kernel: Any = getattr(resample_kernels, name)
    constants = {key: value for key, value in {**BLOCKS, **KINDS, **KERNELS[name]}.items() if key in kernel.arg_names}
    types = {**POINTERS, "x_ptr": f"*{dtype}", "grad_ptr": f"*{dtype}"}
    signature = {key: "constexpr" if key in constants else types.get(key, "i32") for key in kernel.arg_names}
    source = triton.compiler.ASTSource(fn=kernel, signature=signature, constexprs=constants)
    compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=COMPILED)
    assert compiled.asm["cubin"]
