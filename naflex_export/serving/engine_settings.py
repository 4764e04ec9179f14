"""How an engine is run, where there is a choice: what TensorRT for RTX compiles while it runs, and what it keeps."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from naflex_export.errors import RequestError

SPECIALIZATIONS = ("none", "eager", "lazy")
"""When TensorRT for RTX makes kernels for one shape: never, before its first run, or in the background."""


@dataclass(frozen=True)
class EngineSettings:
    """How an engine is run; all but the defaults are of TensorRT for RTX, which compiles kernels on the GPU.

    Attributes:
        specialization: "none": the same kernels for every shape, from the first call on. "eager": the first call of
            each (batch, tokens) waits for kernels of its own. "lazy": they are made in the background while the general
            ones run, so that results may change in their last digits from one call to the next.
        cuda_graph: let the library capture a call as a CUDA graph, and replay it where shapes and addresses are the
            same.
        runtime_cache: file of compiled kernels to begin with, if it is there; the Runner's `save_runtime_cache` writes
            it. Beside the artifact, not in it: its folder holds nothing that the manifest does not list. What is in it
            runs on the GPU, so take one only from where you would install software.

    Raises:
        RequestError: the specialization is not one of `SPECIALIZATIONS`.
    """

    specialization: str = "none"
    cuda_graph: bool = False
    runtime_cache: Path | None = None

    def __post_init__(self) -> None:
        if self.specialization not in SPECIALIZATIONS:
            raise RequestError(
                f"specialization {self.specialization!r} is not known: expected one of {', '.join(SPECIALIZATIONS)}"
            )

    @property
    def needs_rtx(self) -> bool:
        """Whether anything is asked for that only TensorRT for RTX can do."""
        return self != EngineSettings()
