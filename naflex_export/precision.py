"""In how many digits a model is exported, run and judged."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from naflex_export.errors import RequestError

if TYPE_CHECKING:
    import torch

DTYPES = ("float32", "float16", "bfloat16")

DTYPE_ALIASES = {
    "fp32": "float32",
    "float": "float32",
    "f32": "float32",
    "fp16": "float16",
    "half": "float16",
    "f16": "float16",
    "bf16": "bfloat16",
}
"""Other words for them, as users know them from elsewhere."""

PRESETS = {
    "residual": "tokens on their way from block to block, and what is added to them",
    "norm": "every normalization",
    "softmax": "the scores of attention, and their softmax",
    "pooling": "all that follows the blocks",
    "embedding": "all that comes ahead of the blocks",
}
"""What can be kept in float32 by a rule, in place of a module's name."""

AUTO = "auto"
"""In place of names: let a search find what to keep."""


@dataclass(frozen=True)
class Precision:
    """What a model computes in: one value from the request to the graph, its checks, the manifest and the gate.

    Attributes:
        dtype: of weights, and of floating inputs and outputs.
        keep_float32: what computes in float32 all the same: names of modules of the model (of its image tower, where it
            holds more), which count with all that they are made of, or of `PRESETS`. `AUTO`, alone, stands for what a
            search is yet to find.

    Raises:
        RequestError: the dtype is not one of `DTYPES`, or there is nothing to keep in float32 since all is.
    """

    dtype: str = "float32"
    keep_float32: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise RequestError(f"dtype {self.dtype!r} is not supported: expected one of {', '.join(DTYPES)}")
        if not self.keep_float32:
            return
        kept = ",".join(self.keep_float32)
        if self.dtype == "float32":
            raise RequestError(
                f"keep_float32 {kept!r} changes nothing in dtype float32, where all is: expected dtype float16 or "
                "bfloat16 beside it, on the command line --dtype float16"
            )
        if AUTO in self.keep_float32 and len(self.keep_float32) > 1:
            raise RequestError(f"keep_float32 {kept!r}: 'auto' stands alone; expected 'auto', or names and no 'auto'")
        if len(set(self.keep_float32)) < len(self.keep_float32) or "" in self.keep_float32:
            raise RequestError(f"keep_float32 {kept!r}: expected each name once, with one comma between two")

    @classmethod
    def of(cls, dtype: str, keep_float32: str | Sequence[str] = ()) -> Precision:
        """Return the precision of a dtype and what is kept in float32, as a user writes it.

        Args:
            dtype: as the attribute, or another word for it, such as "fp16"; torch's own is taken too.
            keep_float32: names, or a text of names with commas between them.
        """
        dtype = dtype_named(str(dtype))
        if not keep_float32:
            return cls(dtype)
        names = keep_float32.split(",") if isinstance(keep_float32, str) else keep_float32
        return cls(dtype, tuple(name.strip() for name in names))

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
    def is_auto(self) -> bool:
        """Whether a search is to find what is kept in float32."""
        return self.keep_float32 == (AUTO,)

    @property
    def limits(self) -> str:
        """Which of the gate's limits hold, by the dtype that they are for."""
        return self.dtype

    def __str__(self) -> str:
        return f"{self.dtype} with {','.join(self.keep_float32)} in float32" if self.keep_float32 else self.dtype


FLOAT32 = Precision()


def dtype_named(text: str) -> str:
    """Return one of `DTYPES` by that name or another word for it, in any case; what is none, as it is."""
    name = text.strip().lower().removeprefix("torch.")
    name = DTYPE_ALIASES.get(name, name)
    return name if name in DTYPES else text


@dataclass(frozen=True)
class Kept:
    """What of a model computes in float32.

    Attributes:
        modules: names in the model's tower, each with all that it is made of; none is part of another.
        residual: whether tokens are in float32 between blocks.
        softmax: whether scores of attention are.
    """

    modules: frozenset[str] = frozenset()
    residual: bool = False
    softmax: bool = False

    def holds(self, module: str) -> bool:
        """Whether a module of that name, in the tower, computes in float32."""
        return any(module == name or module.startswith(f"{name}.") for name in self.modules)


ALL_LOW = Kept()
