"""Batches to judge with: from photos, and generated to be hard."""

from __future__ import annotations

import math
import os
import random
import re
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache

import torch
from timm.data.naflex_transforms import get_image_size_for_seq
from torch import Tensor

from naflex_export.accuracy.photos import photos_name
from naflex_export.accuracy.sampling import Budget, Sizes, drawn_freely, sample
from naflex_export.batch import Batch, noise_batch
from naflex_export.errors import RequestError
from naflex_export.grid import SEEDS, Bucket, Grid

MAX_ASPECT = 8.0
"""Widest aspect ratio, either way, of the generated mixed grids; NaFlex's size rule admits any."""


LEARNED = 16
"""The side of the grid that most models have learned, in patches."""


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
    """Return long columns, with little padding where there is room for any."""
    tokens = max(1, bucket.tokens - 1)
    return Plan([Grid(max(1, tokens - tokens // 64), 1)] * bucket.batch[0], tokens)


def _square(bucket: Bucket, draw: random.Random) -> Plan:
    """Return the most square grid, with no padding."""
    side = math.isqrt(bucket.tokens)
    return Plan([Grid(side, side)] * bucket.batch[0], side * side)


def _smallest(bucket: Bucket, draw: random.Random) -> Plan:
    """Return images of a single patch, with no padding."""
    return Plan([Grid(1, 1)] * bucket.batch[0], 1)


def _padding(bucket: Bucket, draw: random.Random) -> Plan:
    """Return small grids drowned in padding."""
    return Plan([_small_grid(bucket, draw) for _ in range(_usual_batch(bucket))], max(1, 3 * bucket.tokens // 4))


def _large_values(bucket: Bucket, draw: random.Random) -> Plan:
    """Return patches ten times as large as a photo's, where a narrow dtype overflows first."""
    tokens = max(1, 5 * bucket.tokens // 8)
    return Plan([_drawn_grid(bucket, draw, tokens) for _ in range(bucket.batch[0])], tokens, scale=10.0)


def _largest_batch(bucket: Bucket, draw: random.Random) -> Plan:
    """Return as many images as the bucket takes, small ones, and smaller ones of many, so that it costs little."""
    count = bucket.batch[2]
    side, tokens = (3, 9) if count <= 16 else (2, 5)
    return Plan([_small_grid(bucket, draw, side) for _ in range(count)], min(tokens, bucket.tokens))


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

LARGER = "larger"
"""Two batches of several images and many tokens, which a sample by worth and cost leaves out."""

SPREAD = "spread"
"""A few batches of a small sample of all sizes: what the quick effort has in place of a survey."""

SAMPLED, FRESH, EXTREME, HOLES = "sampled", "fresh", "extreme", "holes"
"""Kinds of batches that a survey adds, several of each: see `survey_names`."""

CONTENTS: tuple[tuple[float, float], ...] = (
    (0.0, 0.0),
    (-1.0, 0.0),
    (1.0, 0.0),
    (0.3, 0.0),
    (3.0, 0.0),
    (-0.95, 0.03),
    (0.95, 0.03),
    (5.0, 1.0),
    (0.0, 0.01),
    (0.0, 30.0),
)
"""Mean and spread of the values of each image of `EXTREME`: constant, dark, bright, faint and glaring ones.

One image more has them patch by patch, so that some of its patches are zero and others constant.
"""

BLACK = 1
"""The place in `CONTENTS` of what the last batch of `EXTREME` has, images that are larger and have no padding."""

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


_STANDARD = ("mixed", "one-row", "one-column", "square", "smallest", "padding", "large-values", "largest-batch")

_QUICK = ("mixed", "one-column")

QUICK, STANDARD = "quick", "standard"

EFFORTS = {
    QUICK: Effort(_QUICK, once=(SPREAD,), every_bucket=False),
    STANDARD: Effort(_STANDARD, once=(LARGER,), sampled=(STANDARD_SAMPLE,)),
    "thorough": Effort(
        _STANDARD,
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


def cases_of(bucket: Bucket, selection: CaseSelection, num_photos: int) -> list[str]:
    """Return the names of the cases that a bucket is judged on.

    Args:
        bucket: what the candidate serves.
        selection: which cases are asked for.
        num_photos: how many photos there are.
    """
    effort = EFFORTS["thorough" if selection.only else selection.effort]
    if selection.only:
        kinds = (*effort.kinds, *effort.once, SPREAD, *SURVEYED)
        asked = [kind for kind in kinds if any(name.startswith(f"{kind}-") for name in selection.only)]
        kinds_of = dict.fromkeys(_seeds_in(selection.only), tuple(asked))
    else:
        kinds_of = dict.fromkeys(range(selection.seed, selection.seed + effort.num_seeds), effort.kinds)
        kinds_of[selection.seed] += effort.once
    names = [photos_name(bucket, number) for number in range(math.ceil(num_photos / bucket.batch[1]))]
    names += [name for seed, kinds in kinds_of.items() for kind in kinds for name in _names(kind, bucket, seed)]
    return [name for name in names if not selection.only or name in selection.only]


def is_quick(name: str) -> bool:
    """Whether a case is one that every effort has."""
    return name.startswith(tuple(f"{kind}-" for kind in ("photos", *_QUICK)))


def survey_names(bucket: Bucket, selection: CaseSelection) -> list[str]:
    """Return the names of the batches that a survey adds to the cases of a bucket; none in an effort without one.

    Args:
        bucket: what the candidate serves.
        selection: which cases are asked for.
    """
    effort = EFFORTS[selection.effort]
    if not effort.sampled or selection.only:
        return []
    others = _sizes_of_cases(bucket, selection.seed)
    names = _numbered(SAMPLED, bucket, selection.seed, len(sample(bucket, selection.seed, effort.sampled, others)))
    names += _names(EXTREME, bucket, selection.seed) + _names(HOLES, bucket, selection.seed)
    fresh = drawn_freely(bucket, selection.fresh_seed, effort.fresh)
    return names + _numbered(FRESH, bucket, selection.fresh_seed, len(fresh))


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
    plan = _plan(kind, number, bucket, seed)
    needed, there = 4 * len(plan.grids) * plan.tokens * token_width, _memory()
    if needed > there // 2:
        raise RequestError(
            f"case {name!r} has {len(plan.grids)} images of {plan.tokens} tokens, {needed / 2**30:.0f} GiB of patches, "
            f"and this machine has {there / 2**30:.0f}: judge other cases with --case, or export smaller buckets"
        )
    batch = noise_batch(name, plan.grids, plan.tokens, token_width, plan.scale)
    if kind == EXTREME:
        is_last = number == len(_plans(kind, bucket, seed)) - 1
        count = len(CONTENTS) + 1
        return _with_contents(
            batch, [BLACK if is_last else (number * bucket.batch[2] + row) % count for row in range(len(plan.grids))]
        )
    return _with_holes(batch) if kind == HOLES else batch


def _memory() -> int:
    """Return the bytes of this machine's memory."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else 2**40


def _with_contents(batch: Batch, numbers: Sequence[int]) -> Batch:
    """Return the batch with its images' values moved to those of `CONTENTS`, by a number for each image."""
    contents, images = torch.tensor(CONTENTS), []
    for number, patches_ND in zip(numbers, batch.patches, strict=True):
        patch_by_patch = torch.arange(len(patches_ND)) % len(CONTENTS)
        mean_N, spread_N = contents[patch_by_patch if number == len(CONTENTS) else [number] * len(patches_ND)].unbind(1)
        images.append(mean_N.unsqueeze(1) + spread_N.unsqueeze(1) * patches_ND)
    return replace(batch, patches=torch.where(batch.patch_valid.unsqueeze(-1), torch.stack(images), 0))


HOLES_IN: tuple[Callable[[Tensor], Tensor], ...] = (
    lambda place: place == len(place) // 2,
    lambda place: place == 0,
    lambda place: place % 3 == 1,
    lambda place: place != len(place) // 2,
)
"""Which places of an image's mask are holes, of one image after the other: amid, the first, a third, all but one."""


def _with_holes(batch: Batch) -> Batch:
    """Return the batch with tokens of each image masked, and large values in them."""
    valid, patches = batch.patch_valid.clone(), batch.patches.clone()
    for row, grid in enumerate(batch.grids):
        if grid.tokens > 2:
            holes = HOLES_IN[row % len(HOLES_IN)](torch.arange(grid.tokens)).nonzero().flatten()
            valid[row, holes] = False
            patches[row, holes] *= 30
    return replace(batch, patches=patches, patch_valid=valid)


def _names(kind: str, bucket: Bucket, seed: int) -> list[str]:
    if kind not in SEVERAL:
        return [f"{kind}-{bucket.tokens}-seed{seed}"]
    return _numbered(kind, bucket, seed, len(_plans(kind, bucket, seed)))


def _numbered(kind: str, bucket: Bucket, seed: int, count: int) -> list[str]:
    return [f"{kind}-{number}-{bucket.tokens}-seed{seed}" for number in range(count)]


def _parsed(name: str) -> tuple[str, int, int]:
    """Return the kind, the number within the kind and the seed that a name says."""
    found = re.fullmatch(r"([a-z-]+?)(?:-(\d+))?-\d+-seed(\d+)", name)
    assert found is not None  # `cases_of` made it
    return found[1], int(found[2] or 0), int(found[3])


def _seeds_in(names: Sequence[str]) -> list[int]:
    found = (re.search(r"-seed(\d+)$", name) for name in names)
    return sorted({int(match[1]) for match in found if match})


def _plans(kind: str, bucket: Bucket, seed: int) -> list[Plan]:
    if kind in SEVERAL:
        return SEVERAL[kind](bucket, seed)
    return [PLANS[kind](bucket, random.Random(f"{kind} {bucket} {seed}"))]


def _plan(kind: str, number: int, bucket: Bucket, seed: int) -> Plan:
    """Return one plan of a kind; one that the standard sample has is found without a thorough one."""
    if kind == SAMPLED and number < len(found := _sampled(bucket, seed, STANDARD)):
        return found[number]
    return _plans(kind, bucket, seed)[number]


def _every_grid(bucket: Bucket, seed: int) -> list[Plan]:
    grids, size = naflex_grids(bucket.tokens), _usual_batch(bucket)
    chunks = [grids[start : start + size] for start in range(0, len(grids), size)]
    return [Plan((chunk * size)[: max(len(chunk), bucket.batch[0])], bucket.tokens) for chunk in chunks]


def _sampled(bucket: Bucket, seed: int, effort: str = "thorough") -> list[Plan]:
    """Return the sample of an effort; that of the most thorough one begins with that of the standard one."""
    return [Plan(*sizes) for sizes in sample(bucket, seed, EFFORTS[effort].sampled, _sizes_of_cases(bucket, seed))]


def _fresh(bucket: Bucket, seed: int) -> list[Plan]:
    """Return the fresh batches of the most thorough effort, which begin with those of the standard one."""
    return [Plan(*sizes) for sizes in drawn_freely(bucket, seed, EFFORTS["thorough"].fresh)]


def _spread(bucket: Bucket, seed: int) -> list[Plan]:
    """Return batches that cover as many sizes beside the other cases of the quick effort as a little work allows."""
    return [Plan(*sizes) for sizes in sample(bucket, seed, (QUICK_SAMPLE,), _sizes_of(_QUICK, bucket, seed))]


def _strips(bucket: Bucket, draw: random.Random) -> Plan:
    """Return a long row and a square with some padding, of most of the tokens that the bucket takes."""
    tokens = max(1, int(draw.uniform(0.68, 0.8) * bucket.tokens) // 4 * 4 + 2)
    tokens = min(tokens, bucket.tokens)
    area = max(1, int(draw.uniform(0.85, 0.97) * tokens))
    side = math.isqrt(area)
    return _as_many(bucket, [Grid(1, area), Grid(side, side)], 2, tokens)


def _crowd(bucket: Bucket, draw: random.Random) -> Plan:
    """Return more images than the usual cases have, of nearly a third of the tokens each: some fill it, some do not.

    Two have a side that most learned grids have, which is then resized along the other side alone.
    """
    tokens = max(2, int(draw.uniform(0.337, 0.345) * bucket.tokens)) // 2 * 2
    side, half = math.isqrt(tokens), math.isqrt(tokens // 2)
    across = max(1, tokens // LEARNED)
    shapes = [(tokens // 2, 2), (across, LEARNED), (LEARNED, across), (3, tokens // 3), (2 * half, half), (side, side)]
    return _as_many(bucket, [Grid(max(1, height), max(1, width)) for height, width in shapes], 6, tokens)


def _as_many(bucket: Bucket, grids: Sequence[Grid], count: int, tokens: int) -> Plan:
    """Return grids repeated to a number of images, or to what the bucket takes; one with no room becomes a patch."""
    smallest, _, largest = bucket.batch
    fit = [grid if grid.tokens <= tokens else Grid(1, 1) for grid in grids]
    return Plan([fit[row % len(fit)] for row in range(max(smallest, min(largest, count)))], tokens)


def _larger(bucket: Bucket, seed: int) -> list[Plan]:
    """Return several images of many tokens."""
    draw = random.Random(f"larger {bucket} {seed}")
    return [_strips(bucket, draw), _crowd(bucket, draw)]


def _extreme(bucket: Bucket, seed: int) -> list[Plan]:
    """Return images of the same few patches, of each content one, in as many batches as that takes, and a larger one.

    That is all there is in its batch, where it may be.
    """
    smallest, _, largest = bucket.batch
    side, larger = min(3, math.isqrt(bucket.tokens)), min(9, math.isqrt(bucket.tokens))
    images = len(CONTENTS) + 1
    counts = [max(smallest, min(largest, images - start)) for start in range(0, images, largest)]
    several = [Plan([Grid(side, side)] * count, min(side * side + 1, bucket.tokens)) for count in counts]
    return [*several, Plan([Grid(larger, larger)] * smallest, larger * larger)]


def _holes(bucket: Bucket, seed: int) -> list[Plan]:
    """Return images with holes in their masks, where there is room for a token beside them."""
    side = math.isqrt(min(bucket.tokens, 20))
    grids = [Grid(side, side), Grid(1, max(1, side - 1)), Grid(side, side), Grid(side, max(1, side - 1))]
    return [_as_many(bucket, grids, len(HOLES_IN), min(bucket.tokens, side * side + 1))] if side > 1 else []


SEVERAL: dict[str, Callable[[Bucket, int], list[Plan]]] = {
    EVERY_GRID: _every_grid,
    SPREAD: _spread,
    SAMPLED: _sampled,
    FRESH: _fresh,
    LARGER: _larger,
    EXTREME: _extreme,
    HOLES: _holes,
}
"""The kinds of which there are several batches for one bucket and seed."""

SURVEYED = (SAMPLED, FRESH, EXTREME, HOLES)


def _sizes_of_cases(bucket: Bucket, seed: int) -> tuple[Sizes, ...]:
    """Return the sizes of the generated cases of the standard effort."""
    return _sizes_of((*_STANDARD, LARGER), bucket, seed)


def _sizes_of(kinds: Sequence[str], bucket: Bucket, seed: int) -> tuple[Sizes, ...]:
    plans = (plan for kind in kinds for plan in _plans(kind, bucket, seed))
    return tuple(Sizes(tuple(plan.grids), plan.tokens) for plan in plans)


def _usual_batch(bucket: Bucket) -> int:
    """Return how many images a batch has where the number is not the point: the bucket's usual, but few of many tokens.

    Many sizes are for the survey, in batches that are small.
    """
    few = max(2, min(8, 512 // bucket.tokens))
    return max(bucket.batch[0], min(bucket.batch[1], few))


def _drawn_grid(bucket: Bucket, draw: random.Random, tokens: int = 0) -> Grid:
    return naflex_grid(MAX_ASPECT ** draw.uniform(-1, 1), tokens or bucket.tokens)


def _small_grid(bucket: Bucket, draw: random.Random, most: int = 3) -> Grid:
    side = min(most, math.isqrt(3 * bucket.tokens // 4) or 1)
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
