"""How far a candidate's outputs are from the reference's: measures and their limits, no models."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Measures:
    """Distance of a candidate from the reference over the images of one batch.

    Attributes:
        max_abs: largest difference of any value.
        max_share: the same as a share of the reference's largest value.
        relative_l2: norm of the difference over norm of the reference, all images together.
        worst_cosine: cosine of the image whose direction differs most.
        top1_agreement: share of images whose highest class is the reference's, or ties with it there; None where
            outputs are no logits.
    """

    max_abs: float
    max_share: float
    relative_l2: float
    worst_cosine: float
    top1_agreement: float | None = None


@dataclass(frozen=True)
class Limits:
    """The worst measures that pass, for one dtype."""

    max_share: float
    relative_l2: float
    worst_cosine: float
    top1_agreement: float

    def broken_by(self, measures: Measures) -> list[str]:
        """Return what exceeds these limits, in words; a measure that is not a number exceeds any."""
        broken = []
        for name in ("max_share", "relative_l2"):
            value, limit = getattr(measures, name), getattr(self, name)
            if not value <= limit:
                broken.append(f"{name} {value:.2g} > {limit:.2g}")
        for name in ("worst_cosine", "top1_agreement"):
            value, limit = getattr(measures, name), getattr(self, name)
            if value is not None and not value >= limit:
                broken.append(f"{name} {value:.6f} < {limit:.6f}")
        return broken


LIMITS: dict[str, Limits] = {
    # Reordered float32 sums: 12 to 27 blocks measure 1e-6 to 3e-6; 30 times that is still far below any real fault.
    "float32": Limits(max_share=1e-4, relative_l2=1e-4, worst_cosine=1 - 1e-6, top1_agreement=1.0),
    # Ten times the 1e-3 that base models measure. One image in 32 may have two classes within rounding.
    "float16": Limits(max_share=2e-2, relative_l2=1e-2, worst_cosine=1 - 1e-4, top1_agreement=0.96),
    # Three times the 1e-2 that eager bfloat16 itself measures.
    "bfloat16": Limits(max_share=5e-2, relative_l2=3e-2, worst_cosine=1 - 5e-4, top1_agreement=0.85),
}


def measure(candidate: Tensor, reference: Tensor, valid: Tensor | None = None, tie: float | None = None) -> Measures:
    """Return how far a candidate is from the reference, computed in float64.

    Args:
        candidate: [B, F] or [B, T, C] outputs.
        reference: outputs of the same images, in the same shape.
        valid: [B, T] bool, the tokens to compare; all of them by default.
        tie: for logits, the difference between two classes that counts as none, as a share of the logits' root mean
            square: below what the dtype may move them by, either may come out on top.
    """
    difference, expected, given = (
        _rows(tensor.detach().cpu().double(), valid)
        for tensor in (candidate.detach().cpu().double() - reference.detach().cpu().double(), reference, candidate)
    )
    cosine_B = torch.nn.functional.cosine_similarity(given, expected, dim=1, eps=1e-300)
    agreement = None
    if tie is not None:
        behind_B = expected.amax(dim=1) - expected.gather(1, given.argmax(dim=1, keepdim=True)).squeeze(1)
        agreement = float((behind_B <= tie * expected.square().mean().sqrt()).double().mean())
    return Measures(
        max_abs=float(difference.abs().max()),
        max_share=_ratio(difference.abs().max(), expected.abs().max()),
        relative_l2=_ratio(difference.norm(), expected.norm()),
        worst_cosine=float(cosine_B.min()) if bool(cosine_B.isfinite().all()) else math.nan,
        top1_agreement=agreement,
    )


def says_nothing(reference: Tensor, valid: Tensor | None = None, images_differ: bool = True) -> str:
    """Return why an output of the reference proves nothing about a candidate, empty where it does.

    Values that are not finite, zero, or the same for every image would pass whatever the candidate computes. Images
    that are the same themselves may well have the same output.
    """
    rows = _rows(reference.detach().cpu().double(), valid)
    if not bool(rows.isfinite().all()):
        return "it holds values that are not finite"
    if not bool(rows.any()):
        return "it is zero everywhere: an untrained head, perhaps"
    if images_differ and len(rows) > 1 and torch.allclose(rows, rows[:1].expand_as(rows), rtol=1e-9, atol=0):
        return "it is the same for every image"
    return ""


def _rows(values: Tensor, valid: Tensor | None) -> Tensor:
    """Return one row per image, with zeros where a token is not valid."""
    if valid is not None:
        values = torch.where(valid.cpu().unsqueeze(-1), values, 0)
    return values.flatten(1)


def _ratio(part: Tensor, whole: Tensor) -> float:
    return float(part / whole) if float(whole) > 0 else math.nan
