"""Batches to judge with: from photos, and generated to be hard."""

from __future__ import annotations

import math
import os
import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

from timm.data.naflex_transforms import get_image_size_for_seq

from naflex_export.accuracy.photos import photos_name
from naflex_export.batch import Batch, noise_batch
from naflex_export.errors import RequestError
from naflex_export.grid import Bucket, Grid

MAX_ASPECT = 8.0
"""Widest aspect ratio, either way, of the generated mixed grids; NaFlex's size rule admits any."""


@dataclass(frozen=True)
class Plan:
    """A batch to draw: its grids, the tokens that they are padded to, and the size of its patches' values."""

    grids: Sequence[Grid]
    tokens: int
    scale: float = 1.0


def _mixed(bucket: Bucket, draw: random.Random) -> Plan:
    """Return grids that NaFlex's size rule gives, several in one batch."""
    return Plan([_drawn_grid(bucket, draw) for _ in range(_usual_batch(bucket))], bucket.tokens)


def _one_row(bucket: Bucket, draw: random.Random) -> Plan:
    return Plan([Grid(1, bucket.tokens)] * bucket.batch[0], bucket.tokens)


def _one_column(bucket: Bucket, draw: random.Random) -> Plan:
    rows = max(1, bucket.tokens - 1)
    return Plan([Grid(rows, 1)] * bucket.batch[0], rows)


def _square(bucket: Bucket, draw: random.Random) -> Plan:
    """Return the most square grid, with no padding."""
    side = math.isqrt(bucket.tokens)
    return Plan([Grid(side, side)] * bucket.batch[0], side * side)


def _smallest(bucket: Bucket, draw: random.Random) -> Plan:
    """Return images of a single patch, with no padding."""
    return Plan([Grid(1, 1)] * bucket.batch[0], 1)


def _padding(bucket: Bucket, draw: random.Random) -> Plan:
    """Return small grids drowned in padding."""
    return Plan([_small_grid(bucket, draw) for _ in range(_usual_batch(bucket))], bucket.tokens)


def _large_values(bucket: Bucket, draw: random.Random) -> Plan:
    """Return patches ten times as large as a photo's, where a narrow dtype overflows first."""
    return Plan([_drawn_grid(bucket, draw) for _ in range(bucket.batch[0])], bucket.tokens, scale=10.0)


def _largest_batch(bucket: Bucket, draw: random.Random) -> Plan:
    """Return as many images as the bucket takes, small ones, so that it costs little."""
    return Plan([_small_grid(bucket, draw) for _ in range(bucket.batch[2])], min(9, bucket.tokens))


def _full_batch(bucket: Bucket, draw: random.Random) -> Plan:
    """Return as many images as the bucket takes, of as many tokens as it takes."""
    return Plan([_drawn_grid(bucket, draw) for _ in range(bucket.batch[2])], bucket.tokens)


PLANS: dict[str, Callable[[Bucket, random.Random], Plan]] = {
    "mixed": _mixed,
    "one-row": _one_row,
    "one-column": _one_column,
    "square": _square,
    "smallest": _smallest,
    "padding": _padding,
    "large-values": _large_values,
    "largest-batch": _largest_batch,
    "full-batch": _full_batch,
}
"""What hurts, for one bucket; `every-grid`, which is several batches, is beside it."""

EVERY_GRID = "every-grid"


@dataclass(frozen=True)
class Effort:
    """How many cases to judge on.

    Attributes:
        kinds: of generated batches, drawn for every seed.
        once: further kinds, drawn for the first seed only.
        num_seeds: how many seeds, from the one asked for on.
        every_bucket: check invariances in every bucket, not only in the largest.
    """

    kinds: tuple[str, ...]
    once: tuple[str, ...] = ()
    num_seeds: int = 1
    every_bucket: bool = True


_STANDARD = ("mixed", "one-row", "one-column", "square", "smallest", "padding", "large-values", "largest-batch")

STANDARD = "standard"

EFFORTS = {
    "quick": Effort(("mixed", "one-column"), every_bucket=False),
    STANDARD: Effort(_STANDARD),
    "thorough": Effort(_STANDARD, once=("full-batch", EVERY_GRID), num_seeds=4),
}


def difference_from_standard(name: str) -> str:
    """Return what an effort leaves out of the standard one and adds to it, in words; empty for the standard."""
    effort, standard = EFFORTS[name], EFFORTS[STANDARD]
    kinds = effort.kinds + effort.once
    said = []
    if skipped := [kind for kind in standard.kinds if kind not in kinds]:
        said.append(f"without {', '.join(skipped)}")
    if added := [kind for kind in kinds if kind not in standard.kinds]:
        said.append(f"with {', '.join(added)} too")
    if effort.num_seeds > standard.num_seeds:
        said.append(f"{effort.num_seeds} seeds")
    if not effort.every_bucket:
        said.append("invariances in the largest bucket only")
    return "; ".join(said)


@dataclass(frozen=True)
class CaseSelection:
    """Which cases to judge on.

    Attributes:
        seed: of the generated batches.
        effort: of `EFFORTS`.
        only: names of the cases to run again, such as `mixed-256-seed3`; these say their seeds themselves.

    Raises:
        RequestError: the effort is unknown.
    """

    seed: int = 0
    effort: str = STANDARD
    only: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.effort not in EFFORTS:
            raise RequestError(f"effort {self.effort!r} is unknown: expected one of {', '.join(EFFORTS)}")


def cases_of(bucket: Bucket, selection: CaseSelection, num_photos: int) -> list[str]:
    """Return the names of the cases that a bucket is judged on.

    Args:
        bucket: what the candidate serves.
        selection: which cases are asked for.
        num_photos: how many photos there are.
    """
    effort = EFFORTS["thorough" if selection.only else selection.effort]
    if selection.only:
        kinds_of = dict.fromkeys(_seeds_in(selection.only), effort.kinds + effort.once)
    else:
        kinds_of = dict.fromkeys(range(selection.seed, selection.seed + effort.num_seeds), effort.kinds)
        kinds_of[selection.seed] += effort.once
    names = [photos_name(bucket, number) for number in range(math.ceil(num_photos / bucket.batch[1]))]
    names += [name for seed, kinds in kinds_of.items() for kind in kinds for name in _names(kind, bucket, seed)]
    return [name for name in names if not selection.only or name in selection.only]


def generated_batch(name: str, bucket: Bucket, token_width: int) -> Batch:
    """Return the seeded batch of a name that `cases_of` gave, such as `mixed-256-seed0`.

    The name says its kind, its bucket's tokens and its seed: with the bucket's batch sizes, all it is drawn from. None
    is of the shape that `trace.EXAMPLE` has.

    Args:
        name: the batch's.
        bucket: what the candidate serves.
        token_width: values in a flattened patch.

    Raises:
        RequestError: it would not fit into this machine's memory.
    """
    kind, number, seed = _parsed(name)
    plan = _plans(kind, bucket, seed)[number]
    needed, there = 4 * len(plan.grids) * plan.tokens * token_width, _memory()
    if needed > there // 2:
        raise RequestError(
            f"case {name!r} has {len(plan.grids)} images of {plan.tokens} tokens, {needed / 2**30:.0f} GiB of patches, "
            f"and this machine has {there / 2**30:.0f}: judge other cases with --case, or export smaller buckets"
        )
    return noise_batch(name, plan.grids, plan.tokens, token_width, plan.scale)


def _memory() -> int:
    """Return the bytes of this machine's memory."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else 2**40


def _names(kind: str, bucket: Bucket, seed: int) -> list[str]:
    if kind != EVERY_GRID:
        return [f"{kind}-{bucket.tokens}-seed{seed}"]
    return [f"{kind}-{number}-{bucket.tokens}-seed{seed}" for number in range(len(_plans(kind, bucket, seed)))]


def _parsed(name: str) -> tuple[str, int, int]:
    """Return the kind, the number within the kind and the seed that a name says."""
    found = re.fullmatch(r"([a-z-]+?)(?:-(\d+))?-\d+-seed(\d+)", name)
    assert found is not None  # `cases_of` made it
    return found[1], int(found[2] or 0), int(found[3])


def _seeds_in(names: Sequence[str]) -> list[int]:
    found = (re.search(r"-seed(\d+)$", name) for name in names)
    return sorted({int(match[1]) for match in found if match})


def _plans(kind: str, bucket: Bucket, seed: int) -> list[Plan]:
    if kind != EVERY_GRID:
        return [PLANS[kind](bucket, random.Random(f"{kind} {bucket} {seed}"))]
    grids, size = naflex_grids(bucket.tokens), _usual_batch(bucket)
    chunks = [grids[start : start + size] for start in range(0, len(grids), size)]
    return [Plan((chunk * size)[: max(len(chunk), bucket.batch[0])], bucket.tokens) for chunk in chunks]


def _usual_batch(bucket: Bucket) -> int:
    """Return how many images a batch has where the number is not the point: the bucket's usual, up to 8 if it may."""
    return max(bucket.batch[0], min(bucket.batch[1], 8))


def _drawn_grid(bucket: Bucket, draw: random.Random) -> Grid:
    return naflex_grid(MAX_ASPECT ** draw.uniform(-1, 1), bucket.tokens)


def _small_grid(bucket: Bucket, draw: random.Random) -> Grid:
    side = min(3, math.isqrt(bucket.tokens))
    return Grid(draw.randint(1, side), draw.randint(1, side))


def naflex_grid(aspect: float, tokens: int) -> Grid:
    """Return the grid that NaFlex's size rule gives an image of an aspect ratio (height over width)."""
    height, width = 4096 * math.sqrt(aspect), 4096 / math.sqrt(aspect)
    _, (pixels_h, pixels_w) = get_image_size_for_seq((round(height), round(width)), 16, tokens)
    return Grid(pixels_h // 16, pixels_w // 16)


@lru_cache
def naflex_grids(tokens: int) -> tuple[Grid, ...]:
    """Return the grids that NaFlex's size rule gives images of up to `MAX_ASPECT`, tall to wide.

    All of them but a few that only a sliver of aspect ratios meets: 61 of 62 for 256 tokens.
    """
    steps = 2**16
    aspects = (MAX_ASPECT ** (1 - 2 * step / steps) for step in range(steps + 1))
    return tuple(dict.fromkeys(naflex_grid(aspect, tokens) for aspect in aspects))
