"""Wrong candidates: what they answer."""

from __future__ import annotations

import torch
from torch import Tensor

from mutants.mutant import CLASSES, Candidate, Inputs, answering, fed, mutant, true


@mutant()
def not_a_number(dtype: torch.dtype) -> Candidate:
    """Every output is NaN."""
    return answering(dtype, lambda out: torch.full_like(out, float("nan")))


@mutant()
def one_image_not_a_number(dtype: torch.dtype) -> Candidate:
    """The outputs of one image are NaN."""

    def change(out: Tensor) -> Tensor:
        return torch.cat([out[:-1], torch.full_like(out[-1:], float("nan"))])

    return answering(dtype, change)


@mutant()
def infinite(dtype: torch.dtype) -> Candidate:
    """Every output is infinite."""
    return answering(dtype, lambda out: out * float("inf"))


@mutant()
def zero(dtype: torch.dtype) -> Candidate:
    """Every output is zero."""
    return answering(dtype, torch.zeros_like)


@mutant()
def always_the_same(dtype: torch.dtype) -> Candidate:
    """The output is that of an empty image, whatever the image."""
    model = true(dtype)
    return lambda p, c, v: model(torch.zeros_like(p), c, v)


@mutant()
def scaled(dtype: torch.dtype) -> Candidate:
    """Outputs are 1.2 times as large."""
    return answering(dtype, lambda out: 1.2 * out)


@mutant()
def shifted(dtype: torch.dtype) -> Candidate:
    """Outputs are 1 higher, as without a bias."""
    return answering(dtype, lambda out: out + 1.0)


@mutant()
def one_spike(dtype: torch.dtype) -> Candidate:
    """One value is off, by a tenth of the largest."""

    def change(out: Tensor) -> Tensor:
        return torch.cat([out[:, :-1], out[:, -1:] + 0.1 * out.abs().max()], dim=1)

    return answering(dtype, change)


@mutant()
def reversed_batch(dtype: torch.dtype) -> Candidate:
    """Answers come in reverse order."""
    return answering(dtype, lambda out: out.flip(0))


@mutant()
def one_image_wrong(dtype: torch.dtype) -> Candidate:
    """The last image of a batch is wrong: what an average would hide."""
    return answering(dtype, lambda out: torch.cat([out[:-1], out[-1:].roll(1, dims=1)]))


@mutant()
def swapped_classes(dtype: torch.dtype) -> Candidate:
    """Two classes are swapped."""
    return answering(dtype, lambda out: out[:, [1, 0, *range(2, CLASSES)]])


@mutant()
def previous_answer(dtype: torch.dtype) -> Candidate:
    """It returns what it computed in the call before, as from a buffer that is read too early."""
    model, kept = true(dtype), []

    def run(*inputs: Tensor) -> Tensor:
        kept.append(model(*inputs))
        before = kept[-2] if len(kept) > 1 else torch.zeros_like(kept[-1])
        return before[torch.arange(len(kept[-1])) % len(before)]

    return run


@mutant()
def wrong_shape(dtype: torch.dtype) -> Candidate:
    """The last class is cut off."""
    return answering(dtype, lambda out: out[:, :-1])


@mutant()
def missing_output(dtype: torch.dtype) -> Candidate:
    """The output has another name."""
    return answering(dtype, lambda out: {"logits": out})


@mutant()
def fails_beyond_its_batch(dtype: torch.dtype) -> Candidate:
    """It raises for more images than 4, and 8 were promised."""

    def change(p: Tensor, c: Tensor, v: Tensor) -> Inputs:
        if len(p) > 4:
            raise ValueError(f"got {len(p)} images, expected at most 4")
        return p, c, v

    return fed(dtype, change)
