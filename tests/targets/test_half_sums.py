"""What docs/tensorrt.md says of attention that sums probabilities and values in half, as TensorRT for RTX does."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from torch import Tensor

PAGE = Path(__file__).parents[2] / "docs" / "tensorrt.md"
WIDTH, ROWS, AT_ONCE = 64, 32, 16
"""A tensor core adds the products of so many tokens at once, and keeps what it has so far in the sum's dtype."""


def attended(scores: Tensor, values: Tensor, sums: torch.dtype) -> Tensor:
    """Return attention [rows, width] as a fused kernel computes it: exponents first, and their sum divided out last."""
    weights = (scores - scores.amax(dim=-1, keepdim=True)).exp()
    held = torch.zeros(len(scores), values.shape[-1], dtype=sums)
    for start in range(0, values.shape[0], AT_ONCE):
        part = weights[:, start : start + AT_ONCE].half().float() @ values[start : start + AT_ONCE].float()
        held = (held.float() + part).to(sums)
    return (held.float() / weights.sum(dim=-1, keepdim=True)).half()


def error(tokens: int, sums: torch.dtype) -> float:
    draw = torch.Generator().manual_seed(0)
    query, key, values = (torch.randn(tokens, WIDTH, generator=draw).half() for _ in range(3))
    scores = query[:ROWS].float() @ key.float().mT * WIDTH**-0.5
    exact = scores.double().softmax(dim=-1) @ values.double()
    return float((attended(scores, values, sums).double() - exact).norm() / exact.norm())


def test_errors_grow_with_tokens_where_sums_are_in_half() -> None:
    """To within the third that one emulation and another differ by; sums in float32 do not grow."""
    page = " ".join(PAGE.read_text(encoding="utf-8").split())
    said = {int(tokens): float(number) for number, tokens in re.findall(r"(\d\.\de-\d) at (\d+)", page)}
    assert list(said) == [256, 1024, 4096]
    for tokens, expected in said.items():
        assert error(tokens, torch.float16) == pytest.approx(expected, rel=1 / 3)
        assert error(tokens, torch.float32) < 4e-4


@pytest.mark.parametrize(("tokens", "most"), [(256, 256), (1024, 64), (4096, 16)])
def test_flat_attention_overflows_beyond_few_values(tokens: int, most: int) -> None:
    """Every exponent is 1, so the sum is all tokens' values; in float32 it holds."""
    flat = torch.zeros(1, tokens)
    for value, is_finite in ((most - 1, True), (most + 1, False)):
        values = torch.full((tokens, 1), float(value)).half()
        assert bool(torch.isfinite(attended(flat, values, torch.float16)).all()) is is_finite
        assert float(attended(flat, values, torch.float32)) == value
