"""In how many digits a model is exported, run and judged."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from naflex_export.errors import RequestError

if TYPE_CHECKING:
    import torch

DTYPES = ("float32", "float16", "bfloat16")

QUANTIZED = ("int8", "fp8")
"""What layers of blocks can be quantized to, in place of a dtype: all else then computes in float16, or in float32."""

QUANTIZED_TARGETS = ("onnx", "trt")
"""Targets whose graphs say what is quantized."""

DTYPE_ALIASES = {
    "fp32": "float32",
    "float": "float32",
    "f32": "float32",
    "fp16": "float16",
    "half": "float16",
    "f16": "float16",
    "bf16": "bfloat16",
    "i8": "int8",
    "float8": "fp8",
    "f8": "fp8",
    "e4m3": "fp8",
    "float8_e4m3fn": "fp8",
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
        quantized: "int8" or "fp8", what the linear layers of blocks hold their weights in and multiply; empty where
            nothing is quantized.
        keep_unquantized: names of modules whose layers are not, with all that they are made of.

    Raises:
        RequestError: the dtype is not one of `DTYPES` or `QUANTIZED`, or there is nothing to keep in float32 since all
            is, or nothing to keep unquantized.
    """

    dtype: str = "float32"
    keep_float32: tuple[str, ...] = ()
    quantized: str = ""
    keep_unquantized: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            known = ", ".join((*DTYPES, *QUANTIZED))
            raise RequestError(f"dtype {self.dtype!r} is not supported: expected one of {known}")
        if self.quantized not in ("", *QUANTIZED):
            raise RequestError(f"quantized {self.quantized!r} is not supported: expected {' or '.join(QUANTIZED)}")
        self._check_unquantized()
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
        if self.quantized and self.is_auto:
            raise RequestError(
                f"keep_float32 'auto' and dtype {self.quantized!r} were both given: the search is for float16 and "
                "bfloat16; search there, and give the names that it finds"
            )

    def _check_unquantized(self) -> None:
        if not self.keep_unquantized:
            return
        kept = ",".join(self.keep_unquantized)
        if not self.quantized:
            raise RequestError(
                f"keep_unquantized {kept!r} changes nothing in dtype {self.dtype}, where nothing is quantized: "
                "expected dtype int8 or fp8 beside it, on the command line --dtype int8"
            )
        if len(set(self.keep_unquantized)) < len(self.keep_unquantized) or "" in self.keep_unquantized:
            raise RequestError(f"keep_unquantized {kept!r}: expected each name once, with one comma between two")

    @classmethod
    def of(
        cls, dtype: str, keep_float32: str | Sequence[str] = (), keep_unquantized: str | Sequence[str] = ()
    ) -> Precision:
        """Return the precision of a dtype and what is kept of it, as a user writes it.

        Args:
            dtype: as the attribute, or another word for it, such as "fp16"; torch's own is taken too. With "int8" or
                "fp8" what is not quantized is in float16.
            keep_float32: names, or a text of names with commas between them; presets and "auto" in any case.
            keep_unquantized: the same, of modules that are not to be quantized.

        Raises:
            RequestError: as `Precision`, or names are given that are no text.
        """
        dtype = dtype_named(str(dtype))
        quantized = dtype if dtype in QUANTIZED else ""
        kept = tuple(_word(name) for name in _names("keep_float32", keep_float32))
        return cls("float16" if quantized else dtype, kept, quantized, _names("keep_unquantized", keep_unquantized))

    def for_target(self, target: str) -> Precision:
        """Return it as a target has it: int8 in ONNX, which CPUs run, beside float32, which CPUs compute in.

        Where some is to be kept in float32, the rest is float16 all the same.

        Args:
            target: "compile", "aot", "onnx" or "trt".

        Raises:
            RequestError: the target takes nothing that is quantized.
        """
        if self.quantized and target not in QUANTIZED_TARGETS:
            raise RequestError(
                f"dtype {self.quantized!r} and target {target!r} were both given: what is quantized is exported to "
                f"{' and '.join(QUANTIZED_TARGETS)}; expected one of {', '.join(DTYPES)} for {target!r}"
            )
        is_for_cpus = self.quantized == "int8" and target == "onnx" and not self.keep_float32
        return replace(self, dtype="float32") if is_for_cpus else self

    @property
    def torch_dtype(self) -> torch.dtype:
        """The dtype as torch has it."""
        import torch

        found: torch.dtype = getattr(torch, self.dtype)
        return found

    @property
    def is_low(self) -> bool:
        """Whether it has fewer digits than the reference, so that eager in it is the gate's second yardstick."""
        return self.dtype != "float32" or bool(self.quantized)

    @property
    def is_auto(self) -> bool:
        """Whether a search is to find what is kept in float32."""
        return self.keep_float32 == (AUTO,)

    @property
    def limits(self) -> str:
        """Which of the gate's limits hold, by the dtype that they are for."""
        return self.name

    @property
    def name(self) -> str:
        """What a user asks for it by: what is quantized to, or else the dtype."""
        return self.quantized or self.dtype

    def __str__(self) -> str:
        names = "what a search finds" if self.is_auto else ",".join(self.keep_float32)
        kept = f"{self.name} with {names} in float32" if names else self.name
        return f"{kept}, {','.join(self.keep_unquantized)} not quantized" if self.keep_unquantized else kept


def _names(what: str, given: str | Sequence[str]) -> tuple[str, ...]:
    """Return names, or those of texts with commas between them.

    Args:
        what: they are given for.
        given: by a caller.

    Raises:
        RequestError: they are no texts.
    """
    if not given:
        return ()
    texts = [given] if isinstance(given, str) else given
    if not isinstance(texts, list | tuple) or not all(isinstance(text, str) for text in texts):
        raise RequestError(f"{what}={given!r}: expected a text of names with commas between them, or a list of names")
    return tuple(name.strip() for text in texts for name in text.split(","))


def _word(name: str) -> str:
    """Return a preset or `AUTO` by that name in any case; else the name."""
    return name.lower() if name.lower() in (*PRESETS, AUTO) else name


FLOAT32 = Precision()


def dtype_named(text: str) -> str:
    """Return one of `DTYPES` or `QUANTIZED` by that name or another word for it, in any case; else the text."""
    name = text.strip().lower().removeprefix("torch.")
    name = DTYPE_ALIASES.get(name, name)
    return name if name in (*DTYPES, *QUANTIZED) else text


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
