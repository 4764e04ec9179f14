"""Wrong candidates: what outputs must not depend on, and must."""

from __future__ import annotations

import torch
from torch import Tensor

from mutants.mutant import Candidate, Inputs, answering, fed, mutant, true


@mutant()
def padding_leaks(dtype: torch.dtype) -> Candidate:
    """What padding holds is in the outputs. A loader pads with zeros, so no comparison can see it."""
    model = true(dtype)

    def run(p: Tensor, c: Tensor, v: Tensor) -> Tensor:
        return model(p, c, v) + 1e-3 * torch.where(v.unsqueeze(-1), 0, p).abs().amax(dim=(1, 2)).unsqueeze(1)

    return run


@mutant()
def mask_from_coordinates(dtype: torch.dtype) -> Candidate:
    """The mask is made from coordinates, and the input is ignored: the same, until a caller masks anything else."""

    def change(p: Tensor, c: Tensor, v: Tensor) -> Inputs:
        return p, c, torch.arange(v.shape[1]) < (c.amax(dim=1) + 1).prod(dim=1, keepdim=True)

    return fed(dtype, change)


@mutant()
def fails_on_a_masked_token(dtype: torch.dtype) -> Candidate:
    """It raises where the mask is not what coordinates say, as a graph does that was traced with a check of it."""

    def change(p: Tensor, c: Tensor, v: Tensor) -> Inputs:
        if not torch.equal(v.sum(dim=1), (c.amax(dim=1) + 1).prod(dim=1)):
            raise ValueError("a mask with gaps")
        return p, c, v

    return fed(dtype, change)


@mutant()
def first_image_leaks(dtype: torch.dtype) -> Candidate:
    """Some of the first image is in the outputs of all."""
    return answering(dtype, lambda out: out + 0.05 * out[:1])


@mutant()
def token_count_leaks(dtype: torch.dtype) -> Candidate:
    """Outputs grow with the number of tokens that a batch is padded to."""
    model = true(dtype)
    return lambda p, c, v: model(p, c, v) * (1 + 0.1 * v.shape[1] / 24)
