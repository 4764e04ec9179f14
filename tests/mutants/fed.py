"""Wrong candidates: what the model is fed."""

from __future__ import annotations

import torch
from torch import Tensor

from mutants.mutant import Candidate, Inputs, answering, fed, mutant, true


@mutant()
def dropped_mask(dtype: torch.dtype) -> Candidate:
    """The mask is dropped: padding is attended to and pooled."""
    return fed(dtype, lambda p, c, v: (p, c, torch.ones_like(v)))


@mutant()
def swapped_height_and_width(dtype: torch.dtype) -> Candidate:
    """Coordinates are read as (x, y)."""
    return fed(dtype, lambda p, c, v: (p, c.flip(-1), v))


@mutant()
def wrong_order_of_coordinates(dtype: torch.dtype) -> Candidate:
    """Patches come column by column, while coordinates go row by row."""

    def change(p: Tensor, c: Tensor, v: Tensor) -> Inputs:
        height_B1, width_B1 = (c.amax(dim=1, keepdim=True) + 1).unbind(-1)
        token_N = torch.arange(c.shape[1])
        taken_BN = (token_N % height_B1) * width_B1 + token_N // height_B1
        taken_BN = torch.where(v, taken_BN, token_N)
        return p.gather(1, taken_BN.unsqueeze(-1).expand(p.shape)), c, v

    return fed(dtype, change)


@mutant()
def off_by_one_row(dtype: torch.dtype) -> Candidate:
    """Rows are counted from 1."""
    return fed(dtype, lambda p, c, v: (p, c + torch.tensor([1, 0]), v))


@mutant()
def last_token_dropped(dtype: torch.dtype) -> Candidate:
    """The last token of every image is taken for padding."""

    def change(p: Tensor, c: Tensor, v: Tensor) -> Inputs:
        token_N = torch.arange(v.shape[1])
        return p, c, v & ((token_N < v.sum(dim=1, keepdim=True) - 1) | (token_N == 0))

    return fed(dtype, change)


@mutant()
def truncated_input(dtype: torch.dtype) -> Candidate:
    """The last four tokens of the batch are cut off, as by a sequence that is too short."""
    return fed(dtype, lambda p, c, v: (p[:, :-4], c[:, :-4], v[:, :-4]) if v.shape[1] > 4 else (p, c, v))


@mutant()
def baked_batch(dtype: torch.dtype) -> Candidate:
    """The batch size of the example, 3, is baked in: further images get the answers of the first three."""
    model = true(dtype)

    def run(*inputs: Tensor) -> Tensor:
        repeated = torch.arange(len(inputs[0])) % 3
        return model(*(tensor[:3] for tensor in inputs))[repeated]

    return run


@mutant()
def first_image_for_all(dtype: torch.dtype) -> Candidate:
    """A batch size of 1 is baked in: every image gets the first one's answer."""
    return answering(dtype, lambda out: out[:1].expand_as(out))


@mutant()
def swapped_colours(dtype: torch.dtype) -> Candidate:
    """Patches are read as blue, green, red."""
    return fed(dtype, lambda p, c, v: (p.unflatten(-1, (-1, 3)).flip(-1).flatten(-2), c, v))


@mutant()
def transposed_patches(dtype: torch.dtype) -> Candidate:
    """Pixels within a patch are read column by column."""
    return fed(dtype, lambda p, c, v: (p.unflatten(-1, (4, 4, 3)).transpose(-2, -3).flatten(-3), c, v))
