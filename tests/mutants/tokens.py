"""Wrong candidates: the tokens, where they are an output too."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from mutants.mutant import REGISTERS, Candidate, mutant, true


def telling(dtype: torch.dtype, change: Callable[[Tensor, Tensor], Tensor]) -> Candidate:
    """Return the true model with both outputs, its tokens [B, registers + N, C] changed; `change` gets validity too."""
    model = true(dtype)

    def run(p: Tensor, c: Tensor, v: Tensor) -> dict[str, Tensor]:
        tokens = model.forward_features(p, patch_coord=c, patch_valid=v)["patches"]
        return {"features": model.forward_head(tokens, patch_valid=v), "tokens": change(tokens, v)}

    return run


BOTH = ("features", "tokens")


@mutant(outputs=BOTH)
def truncated_tokens(dtype: torch.dtype) -> Candidate:
    """The output `tokens` lacks its last one."""
    return telling(dtype, lambda tokens, v: tokens[:, :-1])


@mutant(outputs=BOTH)
def tokens_without_registers(dtype: torch.dtype) -> Candidate:
    """The output `tokens` lacks the register tokens."""
    return telling(dtype, lambda tokens, v: tokens[:, REGISTERS:])


@mutant(outputs=BOTH)
def registers_last(dtype: torch.dtype) -> Candidate:
    """The output `tokens` has the register tokens at its end."""
    return telling(dtype, lambda tokens, v: tokens.roll(-REGISTERS, dims=1))


@mutant(outputs=BOTH)
def last_token_zero(dtype: torch.dtype) -> Candidate:
    """The last valid token of each image is zero in the output `tokens`."""

    def change(tokens: Tensor, v: Tensor) -> Tensor:
        is_last_BN = torch.arange(v.shape[1]) == v.sum(dim=1, keepdim=True) - 1
        return torch.where(F.pad(is_last_BN, (REGISTERS, 0)).unsqueeze(-1), 0, tokens)

    return telling(dtype, change)
