"""Faults of resample/: the resize on a CPU."""

from __future__ import annotations

from code_mutants.mutant import CodeMutant

CPU = ("tests/resample/test_resample_cpu.py",)

RESAMPLE = (
    CodeMutant(
        "images are grouped by grid without their lengths",
        "resample/cpu.py",
        "key = (h, w, row_length, column_length)",
        "key = (h, w)",
        CPU,
    ),
    CodeMutant(
        "tokens in any memory are added to directly",
        "resample/cpu.py",
        "direct = x_BNC.dtype is torch.float32 and x_BNC.is_contiguous()",
        "direct = x_BNC.dtype is torch.float32",
        CPU,
    ),
    CodeMutant(
        "a TorchScript trace gets the operator",
        "resample/add.py",
        "return torch.compiler.is_exporting() or torch.jit.is_tracing()",
        "return torch.compiler.is_exporting()",
        CPU,
    ),
)
