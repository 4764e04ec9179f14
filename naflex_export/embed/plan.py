"""Which buckets cost least for images of given sizes: a histogram of token counts, and dynamic programming over it.

An image goes to the smallest bucket that holds its tokens and is padded to that bucket's. So K buckets cut the sorted
token counts into K runs, and each image of a run costs what the run's last count costs. The best cut of the first n
counts into k runs is the cheapest of a best cut of fewer counts into k - 1 runs and one run of the rest.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from naflex_export.embed.size_rule import grid_of
from naflex_export.errors import RequestError
from naflex_export.grid import MOST_TOKENS, Bucket

MOST_BUCKETS = 4
"""That pay by default: with more, batches fill more slowly."""

WORTH = 0.05
"""Share of the cost of one bucket that several must save to be worth their smaller batches."""

NEAR = 0.02
"""Share of the cost of one bucket that a further bucket must save to be worth having."""

Cost = Callable[[int], float]


@dataclass(frozen=True)
class BucketPlan:
    """Buckets for a histogram of token counts, and what they cost.

    Attributes:
        buckets: smallest first; the last has the whole budget, so that every image of the size rule is taken.
        images: how many of the histogram's images each takes.
        valid: tokens of all images together.
        padded: the same with padding.
        cost: of all images together, as the cost function has it.
    """

    buckets: tuple[Bucket, ...]
    images: tuple[int, ...]
    valid: int
    padded: int
    cost: float

    @property
    def waste(self) -> float:
        """The share of the padded tokens that is padding."""
        return 1 - self.valid / self.padded if self.padded else 0.0


def plan_buckets(
    sizes: Iterable[tuple[int, int]],
    k: int = MOST_BUCKETS,
    tokens: int = 256,
    upscale: bool = True,
    cost: Cost | None = None,
    *,
    patch_size: int = 16,
    batch: tuple[int, int, int] = (1, 8, 32),
) -> tuple[Bucket, ...]:
    """Return the at most `k` buckets that cost least for images of these sizes, for `nx.export` and `nx.Batcher`.

    The largest bucket has the whole budget, so that images which the sizes do not show are taken too. There are fewer
    than `k` where more would save nothing; `naflex-plan` shows what each further one saves.

    Args:
        sizes: (height, width) in pixels of images like those to come.
        k: the most buckets. Many make small batches.
        tokens: the budget that images are resized to.
        upscale: enlarge small images until their tokens fill the budget, as timm and transformers do. One bucket then
            wastes a few percent; without it, a small image has few tokens and buckets pay.
        cost: of one image padded to a number of tokens, which must not fall as they grow; by default the tokens
            themselves. Attention over many tokens costs more than that: `lambda tokens: tokens + tokens**2 / 4608`, for
            a width of 768.
        patch_size: in pixels.
        batch: smallest, most usual and largest batch of each bucket.

    Raises:
        RequestError: there is no size, one is no pair of positive integers, or an argument is not possible.
    """
    return plan(token_counts(sizes, tokens, upscale, patch_size), k, tokens, cost, batch).buckets


def token_counts(
    sizes: Iterable[tuple[int, int]], tokens: int, upscale: bool = True, patch_size: int = 16
) -> dict[int, int]:
    """Return how many images have each number of tokens, fewest tokens first; arguments as of `plan_buckets`."""
    if not _is_count(patch_size) or not _is_count(tokens) or tokens > MOST_TOKENS:
        raise RequestError(
            f"tokens={tokens!r}, patch_size={patch_size!r}: expected integers of at least 1, tokens of at most "
            f"{MOST_TOKENS}"
        )
    found: Counter[int] = Counter()
    for size, images in Counter(map(_checked, sizes)).items():
        found[grid_of(*size, (patch_size, patch_size), tokens, upscale).tokens] += images
    return dict(sorted(found.items()))


def plan(
    counts: dict[int, int],
    k: int,
    tokens: int,
    cost: Cost | None = None,
    batch: tuple[int, int, int] = (1, 8, 32),
) -> BucketPlan:
    """Return the cheapest plan of at most `k` buckets, of equally cheap ones that with the fewest.

    Args:
        counts: how many images have each number of tokens.
        k: the most buckets.
        tokens: of the largest bucket, at least the largest number of the histogram.
        cost: of one image padded to a number of tokens; by default the tokens.
        batch: smallest, most usual and largest batch of each bucket.

    Raises:
        RequestError: there is no image, one has more tokens than the budget, or an argument is not possible.
    """
    if not _is_count(k):
        raise RequestError(f"k={k!r}: expected an integer of at least 1, the most buckets to plan")
    if not counts:
        raise RequestError("no size was given: expected the sizes of images like those to come, at least one")
    if max(counts) > tokens:
        raise RequestError(f"an image has {max(counts)} tokens and the budget is {tokens}: expected a larger budget")
    ends = np.array(sorted({*counts, tokens}), dtype=np.int64)
    images = np.array([counts.get(int(end), 0) for end in ends], dtype=np.int64)
    price = _prices(cost, ends)
    chosen = _cheapest(np.concatenate([[0], np.cumsum(images)]), price, k)
    return _as_plan(ends, images, price, chosen, batch)


def plans_up_to(
    counts: dict[int, int],
    most: int,
    tokens: int,
    cost: Cost | None = None,
    batch: tuple[int, int, int] = (1, 8, 32),
) -> list[BucketPlan]:
    """Return the cheapest plan of at most 1, 2 and so on up to `most` buckets, ended where more save nothing.

    Args:
        counts: how many images have each number of tokens.
        most: the most buckets.
        tokens: of the largest bucket.
        cost: of one image padded to a number of tokens; by default the tokens.
        batch: smallest, most usual and largest batch of each bucket.
    """
    plans = [plan(counts, k, tokens, cost, batch) for k in range(1, most + 1)]
    return [found for k, found in enumerate(plans, start=1) if len(found.buckets) == k]


def worthwhile(plans: Sequence[BucketPlan], k: int = MOST_BUCKETS) -> BucketPlan:
    """Return the plan to take: of those up to `k` buckets the one of fewest that costs little more than the cheapest.

    That is one bucket where all others save less than `WORTH` of its cost; little is `NEAR` of it.
    """
    one, best = plans[0].cost, min(found.cost for found in plans if len(found.buckets) <= k)
    if best > (1 - WORTH) * one:
        return plans[0]
    return next(found for found in plans if found.cost <= best + NEAR * one)


def _checked(size: object) -> tuple[int, int]:
    pair: tuple[Any, ...] = tuple(size) if isinstance(size, Iterable) else ()
    if len(pair) != 2 or not all(map(_is_count, pair)):
        raise RequestError(f"size {size!r}: expected the (height, width) of an image in pixels, integers of at least 1")
    return int(pair[0]), int(pair[1])


def _is_count(value: object) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool) and bool(value >= 1)


def _prices(cost: Cost | None, ends: NDArray[np.int64]) -> NDArray[np.float64]:
    given: list[Any] = [end if cost is None else cost(end) for end in ends.tolist()]
    try:
        price = np.array(given, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise RequestError(f"cost({ends[0]}) is {given[0]!r}: expected a number") from error
    wrong = np.flatnonzero(~np.isfinite(price) | (price < 0))
    if len(wrong):
        raise RequestError(f"cost({ends[wrong[0]]}) is {price[wrong[0]]}: expected a number of at least 0")
    falls = np.flatnonzero(np.diff(price) < 0)
    if len(falls):
        one, other = falls[0], falls[0] + 1
        raise RequestError(
            f"cost({ends[one]}) is {price[one]} and cost({ends[other]}) is {price[other]}: expected a cost that does "
            "not fall as tokens grow"
        )
    return price


def _cheapest(before: NDArray[np.int64], price: NDArray[np.float64], k: int) -> list[int]:
    """Return where each run of the cheapest cut into at most `k` runs ends, as indices of `price`.

    `best[n]` is the cost of the first n counts, `before[n]` their images; the last run ends with the last count.
    """
    best = np.concatenate([[0.0], np.full(len(price), np.inf)])
    starts: list[NDArray[np.int64]] = []
    totals = []
    for _ in range(min(k, len(price))):
        longer, start = np.full_like(best, np.inf), np.zeros(len(best), dtype=np.int64)
        for end in range(1, len(best)):
            found = best[:end] + (before[end] - before[:end]) * price[end - 1]
            start[end] = np.argmin(found)
            longer[end] = found[start[end]]
        best = longer
        starts.append(start)
        totals.append(float(best[-1]))
    runs = int(np.argmin(totals)) + 1
    ends, position = [], len(price)
    for start in reversed(starts[:runs]):
        ends.append(position - 1)
        position = int(start[position])
    return ends[::-1]


def _as_plan(
    ends: NDArray[np.int64],
    images: NDArray[np.int64],
    price: NDArray[np.float64],
    chosen: list[int],
    batch: tuple[int, int, int],
) -> BucketPlan:
    first = [0, *(end + 1 for end in chosen[:-1])]
    each = [int(images[start : end + 1].sum()) for start, end in zip(first, chosen, strict=True)]
    return BucketPlan(
        buckets=tuple(Bucket(int(ends[end]), batch) for end in chosen),
        images=tuple(each),
        valid=int((ends * images).sum()),
        padded=sum(int(ends[end]) * count for end, count in zip(chosen, each, strict=True)),
        cost=float(sum(price[end] * count for end, count in zip(chosen, each, strict=True))),
    )
