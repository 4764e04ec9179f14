"""Efforts: which kinds of generated batches to judge on, and how many of each. It needs no torch."""

from __future__ import annotations

import secrets
from dataclasses import dataclass, field, replace

from naflex_export.accuracy.sampling import Budget
from naflex_export.errors import RequestError
from naflex_export.grid import SEEDS

EVERY_GRID = "every-grid"

LARGER = "larger"
"""Two batches of several images and many tokens, which a sample by worth and cost leaves out."""

SPREAD = "spread"
"""A few batches of a small sample of all sizes: what the quick effort has in place of a survey."""

SAMPLED, FRESH, EXTREME, HOLES = "sampled", "fresh", "extreme", "holes"
"""Kinds of batches that a survey adds, several of each: see `cases.survey_names`."""

SURVEYED = (SAMPLED, FRESH, EXTREME, HOLES)

STANDARD_SAMPLE = Budget(total=4320, most=640)
"""What the sample of sizes of the standard effort may cost: about as much as the other cases do."""

QUICK_SAMPLE = Budget(total=900, most=256)
"""What `SPREAD` may cost: 6 batches of a bucket of 256 tokens, as many tokens as `mixed` has."""

STANDARD_FRESH = Budget(total=500, most=256)
"""What the batches may cost that are drawn anew in each run."""


@dataclass(frozen=True)
class Effort:
    """How many cases to judge on.

    Attributes:
        kinds: of generated batches, drawn for every seed.
        once: further kinds, drawn for the first seed only.
        num_seeds: how many seeds, from the one asked for on.
        every_bucket: check invariances in every bucket, not only in the largest.
        sampled: what the sample of all sizes may cost; none where empty, and then there is no survey at all.
        fresh: what further sizes may cost that are drawn anew in each run.
    """

    kinds: tuple[str, ...]
    once: tuple[str, ...] = ()
    num_seeds: int = 1
    every_bucket: bool = True
    sampled: tuple[Budget, ...] = ()
    fresh: Budget = STANDARD_FRESH


STANDARD_KINDS = ("mixed", "one-row", "one-column", "square", "smallest", "padding", "large-values", "largest-batch")

QUICK_KINDS = ("mixed", "one-column")

QUICK, STANDARD, THOROUGH = "quick", "standard", "thorough"

EFFORTS = {
    QUICK: Effort(QUICK_KINDS, once=(SPREAD,), every_bucket=False),
    STANDARD: Effort(STANDARD_KINDS, once=(LARGER,), sampled=(STANDARD_SAMPLE,)),
    THOROUGH: Effort(
        STANDARD_KINDS,
        once=(LARGER, "full-batch", EVERY_GRID),
        num_seeds=4,
        sampled=(STANDARD_SAMPLE, Budget(total=30_000, most=8192)),
        fresh=replace(STANDARD_FRESH, total=6000),
    ),
}


def difference_from_standard(name: str) -> str:
    """Return what an effort leaves out of the standard one and adds to it, in words; empty for the standard."""
    effort, standard = EFFORTS[name], EFFORTS[STANDARD]
    kinds, usual = effort.kinds + effort.once, standard.kinds + standard.once
    said = []
    if skipped := [kind for kind in usual if kind not in kinds]:
        said.append(f"without {', '.join(skipped)}")
    if added := [kind for kind in kinds if kind not in usual]:
        said.append(f"with {', '.join(added)} too")
    if effort.num_seeds > standard.num_seeds:
        said.append(f"{effort.num_seeds} seeds")
    if not effort.every_bucket:
        said.append("invariances in the largest bucket only")
    if effort.sampled != standard.sampled:
        said.append("a larger sample of all sizes" if effort.sampled else "no sample of all sizes")
    return "; ".join(said)


@dataclass(frozen=True)
class CaseSelection:
    """Which cases to judge on.

    Attributes:
        seed: of the generated batches.
        effort: of `EFFORTS`.
        only: names of the cases to run again, such as `mixed-256-seed3`; these say their seeds themselves.
        fresh_seed: of the batches that are drawn anew in each run, so that no candidate can know them.

    Raises:
        RequestError: the effort is unknown, or the seed none.
    """

    seed: int = 0
    effort: str = STANDARD
    only: tuple[str, ...] = ()
    fresh_seed: int = field(default_factory=lambda: secrets.randbelow(10**6), compare=False)

    def __post_init__(self) -> None:
        if self.effort not in EFFORTS:
            raise RequestError(f"effort {self.effort!r} is unknown: expected one of {', '.join(EFFORTS)}")
        if not 0 <= self.seed < SEEDS:
            raise RequestError(f"seed {self.seed!r}: expected a whole number from 0 to {SEEDS - 1}")
