"""How far a candidate's outputs are from the reference's: measures and their limits, no models."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from naflex_export.grid import Grid


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
        top5_agreement: share of the five highest classes that are among the reference's, or tie with its fifth; None
            where there are no more than five classes.
    """

    max_abs: float
    max_share: float
    relative_l2: float
    worst_cosine: float
    top1_agreement: float | None = None
    top5_agreement: float | None = None


@dataclass(frozen=True)
class ImageMeasures:
    """Distance of a candidate from the reference for one image: its grid, and measures as in `Measures`."""

    grid: str
    max_abs: float
    relative_l2: float
    cosine: float


WORST_IMAGE = 3.0
"""How many times as far off as all images together may be, by `relative_l2`, a single one may be."""

TIE = 3 * math.sqrt(2)
"""How many times the error that `relative_l2` allows two classes must differ by for their order to mean anything.

Where every value is off by that much, the difference of two is off by the square root of 2 times as much, and by three
times that about once in 400.
"""


@dataclass(frozen=True)
class Limits:
    """The worst measures that pass, for one dtype; `agreement` is that of the highest class and of the highest five."""

    max_share: float
    relative_l2: float
    agreement: float
    worst_cosine: float

    @classmethod
    def of(cls, max_share: float, relative_l2: float, agreement: float) -> Limits:
        """Return limits where a single image may be `WORST_IMAGE` times as far off as all together.

        For small errors 1 - cosine is half the square of the relative error across the image's own direction.

        Args:
            max_share: as the attribute.
            relative_l2: as the attribute.
            agreement: as the attribute.
        """
        return cls(max_share, relative_l2, agreement, worst_cosine=1 - (WORST_IMAGE * relative_l2) ** 2 / 2)

    @property
    def tie(self) -> float:
        """Difference between two classes that counts as none, as a share of the logits' root mean square."""
        return TIE * self.relative_l2

    def widened_by(self, baseline: Measures | None, factor: float) -> Limits:
        """Return the limits for a case on which eager, in the candidate's dtype, has these measures itself.

        No candidate is blamed for what eager does as well: where a limit is within `factor` times eager's own error, it
        gives way to that. One image may be far more sensitive than most, or its outputs small, and its error, or that
        of the worst of many, has no bound that holds for all models.
        """
        if baseline is None or not all(math.isfinite(value) for value in (baseline.max_share, baseline.worst_cosine)):
            return self
        agreements = [found for found in (baseline.top1_agreement, baseline.top5_agreement) if found is not None]
        return Limits(
            max_share=max(self.max_share, factor * baseline.max_share),
            relative_l2=max(self.relative_l2, factor * baseline.relative_l2),
            agreement=min([self.agreement, *agreements]),
            worst_cosine=min(self.worst_cosine, 1 - factor**2 * (1 - baseline.worst_cosine)),
        )

    def times(self, factor: float) -> Limits:
        """Return limits that let pass what is so many times as far off, and classes in any order."""
        return Limits(
            max_share=factor * self.max_share,
            relative_l2=factor * self.relative_l2,
            agreement=0.0,
            worst_cosine=1 - factor**2 * (1 - self.worst_cosine),
        )

    def exceeded_by(self, measures: Measures) -> list[str]:
        """Return what exceeds these limits, in words; a measure that is not a number exceeds any."""
        exceeded = []
        for name in ("max_share", "relative_l2"):
            value, limit = getattr(measures, name), getattr(self, name)
            if not value <= limit:
                exceeded.append(f"{name} {value:.2g} > {limit:.2g}")
        least = {"worst_cosine": self.worst_cosine, "top1_agreement": self.agreement, "top5_agreement": self.agreement}
        for name, limit in least.items():
            value = getattr(measures, name)
            if value is not None and not value >= limit:
                exceeded.append(f"{name} {value:.9g} < {limit:.9g}")
        return exceeded


LIMITS: dict[str, Limits] = {
    # Reordered float32 sums measure up to 1.1e-6, their largest share 4.8e-6. The least faults that a float32 graph is
    # to show, a norm's eps of 1e-5 for 1e-6 and a position embedding that went through float16, measure 2.1e-5 or more.
    "float32": Limits.of(max_share=3e-5, relative_l2=1e-5, agreement=1.0),
    # Ten times the 1e-3 that base models measure. One image in 32 may have two classes within rounding.
    "float16": Limits.of(max_share=2e-2, relative_l2=1e-2, agreement=0.96),
    # Three times the 1e-2 that eager bfloat16 itself measures.
    "bfloat16": Limits.of(max_share=5e-2, relative_l2=3e-2, agreement=0.85),
    # Of 8 bits in the linear layers of blocks; docs/precision.md has what was measured, and recall has a limit too.
    "int8": Limits(max_share=0.3, relative_l2=0.1, agreement=0.85, worst_cosine=0.98),
    "fp8": Limits(max_share=0.3, relative_l2=0.1, agreement=0.85, worst_cosine=0.98),
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
    difference, expected, given = _compared(candidate, reference, valid)
    cosine_B = _cosines(given, expected)
    top1, top5 = (None, None) if tie is None else (_agreement(given, expected, k, tie) for k in (1, 5))
    return Measures(
        max_abs=float(difference.abs().max()),
        max_share=_ratio(difference.abs().max(), expected.abs().max()),
        relative_l2=_ratio(difference.norm(), expected.norm()),
        worst_cosine=float(cosine_B.min()) if bool(cosine_B.isfinite().all()) else math.nan,
        top1_agreement=top1,
        top5_agreement=top5,
    )


def measure_images(
    candidate: Tensor, reference: Tensor, grids: Sequence[Grid], valid: Tensor | None = None
) -> tuple[ImageMeasures, ...]:
    """Return how far a candidate is from the reference for each image by itself; arguments as of `measure`.

    Args:
        candidate: as of `measure`.
        reference: as of `measure`.
        grids: of the images.
        valid: as of `measure`.
    """
    difference, expected, given = _compared(candidate, reference, valid)
    columns = difference.abs().amax(dim=1), difference.norm(dim=1) / expected.norm(dim=1), _cosines(given, expected)
    rows = zip(grids, *(column.tolist() for column in columns), strict=True)
    return tuple(ImageMeasures(str(grid), *found) for grid, *found in rows)


DECADES = range(-10, 2)
"""Powers of ten that `spread_of` sorts errors by."""


def spread_of(candidate: Tensor, reference: Tensor, valid: Tensor | None = None) -> Tensor:
    """Return how many values have an error of each size, as a share of the reference's root mean square.

    Args:
        candidate: as of `measure`.
        reference: as of `measure`.
        valid: as of `measure`.

    Returns:
        [len(DECADES) + 1] int64: errors below the lowest of `DECADES`, up to each of the next, and above the highest;
        an error that is not a number is above.
    """
    difference, expected, _ = _compared(candidate, reference, valid)
    inside = _rows(torch.ones(reference.shape), valid).bool()
    shares = difference.abs()[inside] / expected[inside].square().mean().sqrt()
    edges = torch.tensor([10.0**power for power in DECADES], dtype=torch.float64)
    return torch.bincount(torch.bucketize(shares.nan_to_num(nan=math.inf), edges), minlength=len(edges) + 1)


def why_uninformative(reference: Tensor, valid: Tensor | None = None, images_differ: bool = True) -> str:
    """Return why an output of the reference proves nothing about a candidate, empty where it does.

    Values that are not finite, zero, or the same for every image would pass whatever the candidate computes. Images
    that are the same themselves may well have the same output.

    Args:
        reference: its output for a batch.
        valid: [B, T] bool, the tokens that are compared; all of them by default.
        images_differ: whether the batch's images do.
    """
    rows = _rows(reference.detach().cpu().double(), valid)
    if not bool(rows.isfinite().all()):
        return "it holds values that are not finite"
    if not bool(rows.any()):
        return "it is zero everywhere: an untrained head, perhaps"
    if images_differ and len(rows) > 1 and torch.allclose(rows, rows[:1].expand_as(rows), rtol=1e-9, atol=0):
        return "it is the same for every image"
    return ""


def _compared(candidate: Tensor, reference: Tensor, valid: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Return difference, reference and candidate in float64, one row per image."""
    given, expected = candidate.detach().cpu().double(), reference.detach().cpu().double()
    return _rows(given - expected, valid), _rows(expected, valid), _rows(given, valid)


def _cosines(given: Tensor, expected: Tensor) -> Tensor:
    return torch.nn.functional.cosine_similarity(given, expected, dim=1, eps=1e-300)


def _agreement(given: Tensor, expected: Tensor, k: int, tie: float) -> float | None:
    """Return the share of the candidate's k highest classes that are among the reference's, or tie with its k-th."""
    if k > 1 and expected.shape[1] <= k:
        return None
    least_B1 = expected.topk(k, dim=1).values[:, -1:]
    behind_BK = least_B1 - expected.gather(1, given.topk(k, dim=1).indices)
    return float((behind_BK <= tie * expected.square().mean().sqrt()).double().mean())


def _rows(values: Tensor, valid: Tensor | None) -> Tensor:
    """Return one row per image, with zeros where a token is not valid."""
    if valid is not None:
        values = torch.where(valid.cpu().unsqueeze(-1), values, 0)
    return values.flatten(1)


def _ratio(part: Tensor, whole: Tensor) -> float:
    return float(part / whole) if float(whole) > 0 else math.nan
