"""`Mutant`: a wrong candidate, what each is made from, and how one is registered."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import tiny
import torch
from torch import Tensor

Candidate = Callable[[Tensor, Tensor, Tensor], Any]
Maker = Callable[[torch.dtype], Candidate]
Inputs = tuple[Tensor, Tensor, Tensor]

DTYPES = ("float32", "float16", "bfloat16")
CLASSES = 10
REGISTERS = 4


@dataclass(frozen=True)
class Mutant:
    """A wrong candidate.

    Attributes:
        fault: what is wrong, in a sentence.
        make: returns the candidate for a dtype.
        dtypes: in which it must be caught.
        why: why not in the others; empty where there are none.
        outputs: that it gives.
        depends: checks that catch it on some machines and not on others, by how their kernels split a sum.
    """

    fault: str
    make: Maker
    dtypes: tuple[str, ...] = DTYPES
    why: str = ""
    outputs: tuple[str, ...] = ("features",)
    depends: tuple[str, ...] = ()


REGISTERED: dict[str, Mutant] = {}


def mutant(
    dtypes: tuple[str, ...] = DTYPES,
    why: str = "",
    outputs: tuple[str, ...] = ("features",),
    depends: tuple[str, ...] = (),
) -> Callable[[Maker], Maker]:
    """Register a maker under its own name; its docstring is the fault."""

    def register(make: Maker) -> Maker:
        assert make.__doc__
        REGISTERED[make.__name__.replace("_", "-")] = Mutant(make.__doc__, make, dtypes, why, outputs, depends)
        return make

    return register


def true(dtype: torch.dtype, **options: Any) -> Any:
    """Return the classifier that every mutant is made from, in a dtype; with timm's options, another model."""
    return tiny.naflexvit("naflexvit_base_patch16_gap", num_classes=CLASSES, **options).to(dtype)


def fed(dtype: torch.dtype, change: Callable[[Tensor, Tensor, Tensor], Inputs]) -> Candidate:
    """Return the true model fed with changed inputs."""
    model = true(dtype)
    return lambda *inputs: model(*change(*inputs))


def answering(dtype: torch.dtype, change: Callable[[Tensor], Any]) -> Candidate:
    """Return the true model with its output changed."""
    model = true(dtype)
    return lambda *inputs: change(model(*inputs))
