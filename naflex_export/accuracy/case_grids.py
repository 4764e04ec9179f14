"""Which grids the generated batches of each kind have, and the tokens that they are padded to."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

from timm.data.naflex_transforms import get_image_size_for_seq

from naflex_export.accuracy.case_contents import CONTENTS, HOLES_IN
from naflex_export.accuracy.efforts import (
    EFFORTS,
    EVERY_GRID,
    EXTREME,
    FRESH,
    HOLES,
    LARGER,
    QUICK_KINDS,
    QUICK_SAMPLE,
    SAMPLED,
    SPREAD,
    STANDARD,
    STANDARD_KINDS,
    THOROUGH,
)
from naflex_export.accuracy.sampling import Sizes, drawn_freely, sample
from naflex_export.grid import Bucket, Grid

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
"""The kinds of which there is one batch for one bucket and seed: what hurts."""


def _every_grid(bucket: Bucket, seed: int) -> list[Plan]:
    grids, size = naflex_grids(bucket.tokens), _usual_batch(bucket)
    chunks = [grids[start : start + size] for start in range(0, len(grids), size)]
    return [Plan((chunk * size)[: max(len(chunk), bucket.batch[0])], bucket.tokens) for chunk in chunks]


def _sampled(bucket: Bucket, seed: int, effort: str = THOROUGH) -> list[Plan]:
    """Return the sample of an effort; that of the most thorough one begins with that of the standard one."""
    return [Plan(*sizes) for sizes in sample(bucket, seed, EFFORTS[effort].sampled, sizes_of_cases(bucket, seed))]


def _fresh(bucket: Bucket, seed: int) -> list[Plan]:
    """Return the fresh batches of the most thorough effort, which begin with those of the standard one."""
    return [Plan(*sizes) for sizes in drawn_freely(bucket, seed, EFFORTS[THOROUGH].fresh)]


def _spread(bucket: Bucket, seed: int) -> list[Plan]:
    """Return batches that cover as many sizes beside the other cases of the quick effort as a little work allows."""
    return [Plan(*sizes) for sizes in sample(bucket, seed, (QUICK_SAMPLE,), _sizes_of(QUICK_KINDS, bucket, seed))]


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


def plans_of(kind: str, bucket: Bucket, seed: int) -> list[Plan]:
    """Return the batches of a kind: one, or several where it is of `SEVERAL`.

    Args:
        kind: of `PLANS` or `SEVERAL`.
        bucket: what the candidate serves.
        seed: that grids are drawn by.
    """
    if kind in SEVERAL:
        return SEVERAL[kind](bucket, seed)
    return [PLANS[kind](bucket, random.Random(f"{kind} {bucket} {seed}"))]


def plan_of(kind: str, number: int, bucket: Bucket, seed: int) -> Plan:
    """Return one batch of a kind; one that the standard sample has is found without a thorough one.

    Args:
        kind: of `PLANS` or `SEVERAL`.
        number: its place among those of its kind.
        bucket: what the candidate serves.
        seed: that grids are drawn by.
    """
    if kind == SAMPLED and number < len(found := _sampled(bucket, seed, STANDARD)):
        return found[number]
    return plans_of(kind, bucket, seed)[number]


def sizes_of_cases(bucket: Bucket, seed: int) -> tuple[Sizes, ...]:
    """Return the sizes of the generated cases of the standard effort."""
    return _sizes_of((*STANDARD_KINDS, LARGER), bucket, seed)


def _sizes_of(kinds: Sequence[str], bucket: Bucket, seed: int) -> tuple[Sizes, ...]:
    plans = (plan for kind in kinds for plan in plans_of(kind, bucket, seed))
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
