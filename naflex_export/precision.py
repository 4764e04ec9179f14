"""In how many digits a model is exported, run and judged."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from naflex_export.errors import RequestError

if TYPE_CHECKING:
    import torch

DTYPES = ("float32", "float16", "bfloat16")


@dataclass(frozen=True)
class Precision:
    """What a model computes in: one value from the request to the graph, its checks, the manifest and the gate.

    Attributes:
        dtype: of weights, and of floating inputs and outputs.
        float32_modules: names of modules that stay in float32; none can yet.

    Raises:
        RequestError: the dtype is not one of `DTYPES`, or a module is to stay in float32.
    """

    dtype: str = "float32"
    float32_modules: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise RequestError(f"dtype {self.dtype!r} is not supported: expected one of {', '.join(DTYPES)}")
        if self.float32_modules:
            raise RequestError(
                f"modules {', '.join(self.float32_modules)} cannot stay in float32: this release exports whole models "
                "in one dtype"
            )

    @property
    def torch_dtype(self) -> torch.dtype:
        """The dtype as torch has it."""
        import torch

        found: torch.dtype = getattr(torch, self.dtype)
        return found

    @property
    def is_low(self) -> bool:
        """Whether it has fewer digits than the reference, so that eager in it is the gate's second yardstick."""
        return self.dtype != "float32"

    @property
    def limits(self) -> str:
        """Which of the gate's limits hold, by the dtype that they are for."""
        return self.dtype

    def __str__(self) -> str:
        return self.dtype


FLOAT32 = Precision()
