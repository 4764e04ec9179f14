"""What came of comparing two artifacts by their vectors of the same photos."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from naflex_export.embed.sources import Source
from naflex_export.errors import GateFailure

QUANTILES = {"least": 0.0, "1 %": 0.01, "5 %": 0.05, "25 %": 0.25, "half": 0.5, "most": 1.0}
"""Of the cosines: the share of photos whose cosine is at most so much."""

DECADES = tuple(range(-7, 1))
"""Powers of ten by which moves are counted: 1 minus the cosine between a photo's two vectors."""


@dataclass(frozen=True)
class Compared:
    """One of the two artifacts.

    Attributes:
        folder: where it lies.
        model: what it was exported from.
        weights_sha256: of its weights.
        target: that it was exported to.
        dtype: that it computes in.
    """

    folder: str
    model: str
    weights_sha256: str
    target: str
    dtype: str

    def __str__(self) -> str:
        return f"{self.folder} ({self.model}, {self.target}, {self.dtype})"


@dataclass(frozen=True)
class Found:
    """A photo that was found: its name, its place among the photos, and the cosine."""

    name: str
    place: int
    cosine: float


@dataclass(frozen=True)
class Moved:
    """A photo, and what was found for it.

    Attributes:
        photo: itself; the cosine is that between its two vectors.
        recall: the share of `old` that is found by the new vector.
        old: its nearest by the old vectors alone, the nearest first.
        new: what its new vector finds among the old ones.
    """

    photo: Found
    recall: float
    old: tuple[Found, ...]
    new: tuple[Found, ...]


@dataclass(frozen=True)
class CompareReport:
    """Whether an index that was built with one artifact may be searched with another.

    Attributes:
        k: how many nearest photos were looked at.
        min_recall: the recall that passes.
        photos: how many were compared.
        recall: mean share of the k nearest, as the old artifact alone finds them, that the new one's vectors find
            among the old one's: what becomes of an index that is kept.
        overlap: the same where the photos are embedded anew: what becomes of an index that is built again.
        finds_itself: share of photos whose new vector is nearest to its own old one.
        cosines: between the two vectors of each photo.
        worst: photos of which least is found again.
        nowhere: names of photos to which an artifact, "old" or "new", gives no direction: zeros, or what is no number.
        old: the artifact that the index was built with.
        new: the artifact that is to search it.
        differences: what their manifests say otherwise that may move vectors.
        bad_photos: what is wrong with each photo that could not be read, by its name.
        source: where the photos can be read again, for a page; of a report that is not compared.
    """

    k: int
    min_recall: float
    photos: int
    recall: float
    overlap: float
    finds_itself: float
    cosines: tuple[float, ...]
    worst: tuple[Moved, ...]
    nowhere: Mapping[str, list[str]]
    old: Compared
    new: Compared
    differences: tuple[str, ...]
    bad_photos: Mapping[str, str]
    source: Source | None = field(default=None, repr=False, compare=False)

    @property
    def passed(self) -> bool:
        """Whether the index may be kept."""
        return not self.failures

    @property
    def failures(self) -> list[str]:
        """What failed, in words."""
        found = []
        if not self.recall >= self.min_recall:
            found.append(f"recall@{self.k} is {self.recall:.4f}: expected at least {self.min_recall:g}")
        for name, photos in self.nowhere.items():
            if photos:
                shown = ", ".join(photos[:3])
                found.append(f"the {name} artifact's vectors of {len(photos)} photos are zero or not finite: {shown}")
        return found

    @property
    def chance(self) -> float:
        """The recall that photos in any order would have."""
        return self.k / (self.photos - 1)

    def quantiles(self) -> dict[str, float]:
        """Return the least cosine, the most, and those between that so many photos stay below."""
        ordered = sorted(self.cosines)
        return {name: ordered[round(share * (len(ordered) - 1))] for name, share in QUANTILES.items()}

    def moves(self) -> list[int]:
        """Return how many photos moved by up to each power of ten of `DECADES`, and last by more than all."""
        counts = [0] * (len(DECADES) + 1)
        for cosine in self.cosines:
            moved = 1 - cosine
            counts[next((at for at, power in enumerate(DECADES) if moved <= 10.0**power), len(DECADES))] += 1
        return counts

    def raise_for_failure(self) -> None:
        """Raise GateFailure with what failed, unless the index may be kept."""
        if not self.passed:
            told = [*self.failures, *(f"what differs: {line}" for line in self.differences)]
            raise GateFailure("\n  ".join(["the index must be built anew:", *told]))

    def to_json(self) -> dict[str, Any]:
        """Return the report as plain JSON values; a cosine that is no number is text."""
        fields = {name: getattr(self, name) for name in ("k", "min_recall", "photos", "recall", "overlap")}
        return {
            "schema": 1,
            "passed": self.passed,
            "failures": self.failures,
            **fields,
            "chance": self.chance,
            "finds_itself": self.finds_itself,
            "cosines": {**self.quantiles(), "mean": math.fsum(self.cosines) / len(self.cosines)},
            "moves": [
                {"up_to": None if power is None else 10.0**power, "photos": count}
                for power, count in zip((*DECADES, None), self.moves(), strict=True)
            ],
            "old": asdict(self.old),
            "new": asdict(self.new),
            "differences": list(self.differences),
            "bad_photos": dict(self.bad_photos),
            "nowhere": dict(self.nowhere),
            "worst": [asdict(one) for one in self.worst],
        }
