"""Wrong candidates: how they round."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from mutants.mutant import Candidate, mutant, true


@mutant(("float32",), why="it is what was asked for", depends=("amount",))
def float16_behind_float32(dtype: torch.dtype) -> Candidate:
    """It computes in float16 and says float32: what a silent fallback looks like."""
    return rounded(dtype, torch.float16)


@mutant(("float32", "float16"), why="it is what was asked for", depends=("amount",))
def bfloat16_behind_another(dtype: torch.dtype) -> Candidate:
    """It computes in bfloat16 and says float32 or float16."""
    return rounded(dtype, torch.bfloat16)


@mutant(("float32",), why="a float16 graph has such weights, and bfloat16 has fewer bits")
def weights_through_float16(dtype: torch.dtype) -> Candidate:
    """Weights went through float16 on their way to a float32 graph."""
    return true(torch.float16).to(dtype)


def rounded(dtype: torch.dtype, narrow: torch.dtype) -> Candidate:
    """Return the true model computing in a narrow dtype, and answering in the one it claims."""
    model = true(narrow)
    return lambda p, c, v: model(p.to(narrow), c, v).to(dtype)


@mutant()
def float16_overflow(dtype: torch.dtype) -> Candidate:
    """A sum within the first block overflows float16: infinities, and after the next norm no numbers."""
    return overflowing(dtype, lambda x: x)


@mutant()
def float16_saturation(dtype: torch.dtype) -> Candidate:
    """The same sum is held at float16's largest number: wrong, and finite."""
    largest = torch.finfo(torch.float16).max
    return overflowing(dtype, lambda x: x.clamp(-largest, largest))


def overflowing(dtype: torch.dtype, held: Callable[[Tensor], Tensor]) -> Candidate:
    """Return the true model whose first block's values pass through float16 at 65536 times their size."""
    model = true(dtype)
    scale = 2.0**16
    model.blocks[0].register_forward_hook(lambda block, inputs, x: (held(scale * x.float()).half() / scale).to(dtype))
    return model


@mutant(("float16", "bfloat16"), why="float32 has no baseline: its limits know how float32 rounds")
def three_times_the_rounding(dtype: torch.dtype) -> Candidate:
    """It is three times as far from the reference as eager in its dtype: within the limits, and no rounding of it."""
    exact, model = true(torch.float32), true(dtype)

    def run(p: Tensor, c: Tensor, v: Tensor) -> Tensor:
        expected = exact(p.float(), c, v)
        return (expected + 3 * (model(p, c, v).float() - expected)).to(dtype)

    return run


@mutant(("float32",), why="the two curves differ by less than float16 rounds")
def tanh_for_gelu(dtype: torch.dtype) -> Candidate:
    """GELU is replaced by its approximation through tanh."""
    model = true(dtype)
    for block in model.blocks:
        block.mlp.act = nn.GELU(approximate="tanh")
    return model
