"""How an engine is run, where there is a choice: what TensorRT for RTX compiles while it runs, and what it keeps."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path

from naflex_export.errors import RequestError

SPECIALIZATIONS = ("none", "eager", "lazy")
"""When TensorRT for RTX makes kernels for one shape: never, before its first run, or in the background."""


@dataclass(frozen=True)
class EngineSettings:
    """How an engine is run; `specialization` and `runtime_cache` are of TensorRT for RTX, which compiles on the GPU.

    Attributes:
        specialization: "none": the same kernels for every shape, from the first call on. "eager": the first call of
            each (batch, tokens) waits for kernels of its own. "lazy": they are made in the background while the general
            ones run, so that results may change in their last digits from one call to the next.
        cuda_graph: capture a call as a CUDA graph, and replay it where shapes are the same. TensorRT for RTX does it by
            itself, where addresses are the same too. For `tensorrt` the first call of each shape runs the engine,
            waits for it and captures it; graphs of the shapes used last are kept, with memory of their own.
        runtime_cache: file of compiled kernels to begin with, if it is there; the Runner's `save_runtime_cache` writes
            it. Beside the artifact, not in it: its folder holds nothing that the manifest does not list. What is in it
            runs on the GPU, so take one only from where you would install software.
        token_sizes: how many numbers of tokens a bucket's batches may have: each batch is padded to the next of so many
            equal steps up to the bucket's tokens, and outputs lose that padding again. So there are few shapes to
            specialize for, or to capture. 0: batches are run as they come.

    Raises:
        RequestError: the specialization is not one of `SPECIALIZATIONS`, or another value is none of its kind.
    """

    specialization: str = "none"
    cuda_graph: bool = False
    runtime_cache: Path | str | None = None
    token_sizes: int = 0

    def __post_init__(self) -> None:
        if self.specialization not in SPECIALIZATIONS:
            raise RequestError(
                f"specialization {self.specialization!r} is not known: expected one of {', '.join(SPECIALIZATIONS)}"
            )
        if not isinstance(self.cuda_graph, bool):
            raise RequestError(f"cuda_graph {self.cuda_graph!r} is not possible: expected True or False")
        if not isinstance(self.token_sizes, int) or isinstance(self.token_sizes, bool) or self.token_sizes < 0:
            raise RequestError(
                f"token_sizes {self.token_sizes!r} is not possible: expected 0, or how many sizes to have"
            )
        if self.runtime_cache == "" or not isinstance(self.runtime_cache, Path | str | None):
            raise RequestError(f"runtime_cache {self.runtime_cache!r} is not possible: expected the path of a file")

    @property
    def cache_file(self) -> Path | None:
        """The runtime cache's path, where there is one."""
        return None if self.runtime_cache is None else Path(self.runtime_cache)

    def check_cache(self, artifact: Path) -> None:
        """Check that the runtime cache can be written, and is not in the artifact, which would not load again.

        Args:
            artifact: the folder of the artifact that is loaded.

        Raises:
            RequestError: it cannot, or is.
        """
        if self.cache_file is None:
            return
        cache = self.cache_file.resolve()
        if artifact.resolve() in cache.parents:
            raise RequestError(
                f"runtime_cache {str(self.runtime_cache)!r} is in the artifact's folder, which holds nothing that its "
                "manifest does not list: expected a file beside it"
            )
        if cache.is_dir() or not cache.parent.is_dir():
            raise RequestError(
                f"runtime_cache {str(self.runtime_cache)!r} cannot be written: expected a file in a folder that exists"
            )

    @property
    def needs_rtx(self) -> bool:
        """Whether anything is asked for that only TensorRT for RTX can do."""
        return replace(self, token_sizes=0, cuda_graph=False) != EngineSettings()

    def padded_tokens(self, tokens: int, budget: int) -> int:
        """Return how many tokens a batch is padded to.

        Args:
            tokens: that it has.
            budget: of its bucket.
        """
        if not self.token_sizes:
            return tokens
        step = math.ceil(tokens * self.token_sizes / budget)
        return math.ceil(budget * step / self.token_sizes)
