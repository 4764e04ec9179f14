"""Batches spread over all sizes that a bucket serves: batch x tokens x shape of the grid x share that is padding.

Backends choose kernels by sizes, so a candidate can be wrong at some and right at all others. Each axis is cut into
strata, and a cell is a pair of strata of two axes: a batch covers the cells of its own sizes and those of its images.
Beside the cells there are single values that kernels turn on: powers of two and their neighbours, remainders by 16,
squares, the ends of a profile. Batches are chosen one after the other, the most new ones for the least work.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

from naflex_export.grid import Bucket, Grid

CALL_COST = 55
"""What a call costs beside its tokens, in tokens: the time a base model takes on a CPU to read its weights."""

DRAWS = 56
"""Batches that are drawn for each that is chosen."""

SHAPES_TOKENS = 40
"""Tokens of a batch that has a grid of every shape: few, and enough for 2 x 18 and 18 x 2."""

LEAST_WORTH = 3.0
"""A batch that covers less that is new, by the weights of `_features`, ends a sample."""

LEAST_AREA = {
    "one patch": 1,
    "one row": 2,
    "one column": 2,
    "square": 4,
    "nearly square": 6,
    "wide": 10,
    "tall": 10,
    "very wide": 34,
    "very tall": 34,
}
"""The shapes of grids, and of how many patches the smallest of each is. Wide is above 2:1, very wide above 8:1."""

FILLS = {"all": 1.0, "half": 0.5, "some": 0.125, "little": 0.0}
"""Which share of an image's tokens is valid, at least: "all" is no padding, "half" all from there up to it."""

Grids = tuple[Grid, ...]


def _turned(grids: Grids, upright: bool) -> Grids:
    return tuple(Grid(*sorted(grid, reverse=upright)) for grid in grids)


ARRANGEMENTS: dict[str, Callable[[Grids], Grids]] = {
    "alike": lambda grids: (max(grids, key=lambda grid: (grid.height != grid.width, grid.tokens)),) * len(grids),
    "upright": lambda grids: _turned(grids, upright=True),
    "lying": lambda grids: _turned(grids, upright=False),
    "growing": lambda grids: tuple(sorted(grids, key=lambda grid: grid.tokens)),
    "shrinking": lambda grids: tuple(sorted(grids, key=lambda grid: -grid.tokens)),
}
"""What the images of a batch may have in common beside their sizes, and how grids are made to have it."""

AXES = ("batch", "tokens", "shape", "fill")
PAIRS = (
    ("batch", "tokens"),
    ("tokens", "shape"),
    ("tokens", "fill"),
    ("batch", "shape"),
    ("shape", "fill"),
    ("batch", "fill"),
)


class Cell(NamedTuple):
    """A pair of strata of two axes, such as batches of 9 to 16 at 65 to 128 tokens."""

    axes: tuple[str, str]
    strata: tuple[str, str]


class Sizes(NamedTuple):
    """The sizes of a batch: the grids of its images, and the tokens that they are padded to."""

    grids: tuple[Grid, ...]
    tokens: int

    @property
    def cost(self) -> int:
        """What a call costs, in tokens."""
        return CALL_COST + len(self.grids) * self.tokens


@dataclass(frozen=True)
class Budget:
    """How much a sample may cost, in tokens, and how many tokens one batch of it may have."""

    total: int
    most: int


def strata(smallest: int, largest: int) -> list[str]:
    """Return the strata of a range of sizes: up to each power of two and above the one before, cut to the range."""
    found, start = [], smallest
    while start <= largest:
        end = min(1 << (start - 1).bit_length(), largest)
        found.append(_named(start, end))
        start = end + 1
    return found


def stratum_of(size: int, smallest: int, largest: int) -> str:
    """Return the stratum that a size lies in.

    Args:
        size: to be found.
        smallest: of the range that `strata` cuts.
        largest: of the range.
    """
    end = 1 << (size - 1).bit_length()
    return _named(max(end // 2 + 1, smallest), min(end, largest))


def shape_of(grid: Grid) -> str:
    """Return the shape of a grid, of `LEAST_AREA`."""
    height, width = grid
    if min(grid) == 1:
        return "one patch" if max(grid) == 1 else "one row" if height == 1 else "one column"
    if height == width:
        return "square"
    ratio = max(grid) / min(grid)
    side = "wide" if width > height else "tall"
    return "nearly square" if ratio <= 2 else side if ratio <= 8 else f"very {side}"


def arrangements_of(grids: Grids) -> list[str]:
    """Return which of `ARRANGEMENTS` a batch has: a pair has none, and where grids are alike squares have none."""
    if len(grids) < 3:
        return []
    if len(set(grids)) == 1:
        return ["alike"] if grids[0].height != grids[0].width else []
    return [name for name, arrange in ARRANGEMENTS.items() if name != "alike" and arrange(grids) == grids]


def fill_of(grid: Grid, tokens: int) -> str:
    """Return which share of an image's tokens is valid, of `FILLS`."""
    return next(name for name, least in FILLS.items() if grid.tokens / tokens >= least)


@lru_cache
def cells_of(bucket: Bucket) -> tuple[Cell, ...]:
    """Return the cells that a bucket has, those of each pair of axes together."""
    smallest, _, largest = bucket.batch
    batches, tokens = strata(smallest, largest), strata(1, bucket.tokens)
    names = {"batch": batches, "tokens": tokens, "shape": list(LEAST_AREA), "fill": list(FILLS)}
    all_cells = (Cell(pair, (one, other)) for pair in PAIRS for one in names[pair[0]] for other in names[pair[1]])
    return tuple(cell for cell in all_cells if _exists(cell, bucket))


def covered_by(bucket: Bucket, sizes: Iterable[Sizes]) -> frozenset[Cell]:
    """Return the cells of a bucket that batches of some sizes cover."""
    there = frozenset(cells_of(bucket))
    return frozenset(cell for one in sizes for cell in _cells(bucket, one)) & there


@lru_cache
def sample(bucket: Bucket, seed: int, budgets: tuple[Budget, ...], others: tuple[Sizes, ...] = ()) -> tuple[Sizes, ...]:
    """Return batches that cover as much of a bucket's sizes as a budget allows, the same for the same seed.

    Args:
        bucket: what is to be covered.
        seed: of the draws.
        budgets: one after the other; what a second adds comes behind what the first gives alone.
        others: batches that are judged anyway, and cover what they cover.
    """
    draw, chosen = random.Random(f"sample {bucket} {seed}"), list[Sizes]()
    seen = set[object]().union(*(_features(bucket, sizes).keys() for sizes in others))
    at_full = {("batch", len(sizes.grids)) for sizes in others if sizes.tokens == bucket.tokens}
    seen -= at_full  # a batch that was tried at the most tokens alone says little of fewer
    for number, budget in enumerate(budgets):
        spent = 0
        for one in [] if number else _every_shape(bucket, draw):
            chosen.append(one)
            seen |= _features(bucket, one).keys()
            spent += one.cost
        while spent < budget.total:
            new = _new(bucket, seen)
            drawn = [_drawn(bucket, draw, budget.most, new) for _ in range(DRAWS)]
            best = max(drawn, key=lambda sizes: _worth(bucket, sizes, seen) / sizes.cost)
            if _worth(bucket, best, seen) < LEAST_WORTH or spent + best.cost > budget.total:
                break
            best = _with_better_grids(bucket, draw, _with_better_tokens(bucket, best, seen, budget.most), seen)
            chosen.append(best)
            seen |= _features(bucket, best).keys()
            spent += best.cost
    return tuple(chosen)


@lru_cache
def drawn_freely(bucket: Bucket, seed: int, budget: Budget) -> tuple[Sizes, ...]:
    """Return batches drawn anew by their seed, whatever others cover.

    Args:
        bucket: that they are of.
        seed: of the draws.
        budget: of all of them.
    """
    draw, found, spent = random.Random(f"fresh {bucket} {seed}"), list[Sizes](), 0
    while spent < budget.total:
        found.append(_drawn(bucket, draw, budget.most))
        spent += found[-1].cost
    return tuple(found)


def _named(start: int, end: int) -> str:
    return str(start) if start == end else f"{start} to {end}"


def _exists(cell: Cell, bucket: Bucket) -> bool:
    """Whether a batch can lie in a cell: whether its grids and their padding have room in its tokens."""
    at = dict(zip(cell.axes, cell.strata, strict=True))
    tokens = int(at["tokens"].split()[-1]) if "tokens" in at else bucket.tokens
    area = LEAST_AREA[at["shape"]] if "shape" in at else 1
    share = {"all": area, "half": area + 1, "some": 2 * area + 1, "little": 8 * area + 1}
    return tokens >= (share[at["fill"]] if "fill" in at else area)


def _cells(bucket: Bucket, sizes: Sizes) -> set[Cell]:
    return {cell for grid in set(sizes.grids) for cell in _cells_of(bucket, len(sizes.grids), sizes.tokens, grid)}


@lru_cache(maxsize=16384)
def _cells_of(bucket: Bucket, images: int, tokens: int, grid: Grid) -> set[Cell]:
    """Return the cells of one image in a batch of so many images and tokens."""
    smallest, _, largest = bucket.batch
    at = {
        "batch": stratum_of(images, smallest, largest),
        "tokens": stratum_of(tokens, 1, bucket.tokens),
        "shape": shape_of(grid),
        "fill": fill_of(grid, tokens),
    }
    return {Cell(pair, (at[pair[0]], at[pair[1]])) for pair in PAIRS}


def _features(bucket: Bucket, sizes: Sizes) -> dict[object, float]:
    """Return what a batch covers, the cells and single values, each with its weight."""
    found: dict[object, float] = {cell: _weight(cell) for cell in _cells(bucket, sizes)}
    found |= _of_count(bucket, len(sizes.grids)) | _of_tokens(bucket, sizes.tokens)
    found |= {("arrangement", name): 3.0 for name in arrangements_of(sizes.grids)}
    for grid in set(sizes.grids):
        found |= _of_grid(bucket, grid, sizes.tokens)
    return found


def _weight(cell: Cell) -> float:
    """Return what a cell counts for: several images of many tokens cost most, and nothing else stands for them."""
    return 2.0 if cell.axes == ("batch", "tokens") else 1.0


@lru_cache(maxsize=4096)
def _of_count(bucket: Bucket, count: int) -> dict[object, float]:
    """Return what a batch of so many images covers, whatever they are."""
    found: dict[object, float] = {("batch by 8", count % 8): 1.0}
    if count in _turning(*bucket.batch):
        return found | {("batch", count): 12.0 + (min(count, 16) if count & (count - 1) == 0 else 0)}
    return found | {("batch between", _half_octave(count)): 8.0}


@lru_cache(maxsize=4096)
def _of_tokens(bucket: Bucket, tokens: int) -> dict[object, float]:
    """Return what a batch of so many tokens covers, whatever its images are."""
    found: dict[object, float] = {("tokens by 16", tokens % 16, tokens > 16): 12.0 if tokens > 16 else 2.0}
    if tokens > 32:
        found["tokens by 32", tokens % 32] = 1.5
    if tokens > 64:
        found["many tokens by 8", tokens % 8] = 8.0
    if tokens > 128:
        found["most tokens by 4", tokens % 4] = 8.0
    if tokens > 32 and tokens % 16 == 0 and tokens & (tokens - 1):
        found["whole tiles"] = 8.0
    if tokens in _turning(1, bucket.tokens, bucket.tokens):
        return found | {("tokens", tokens): 6.0 + tokens / (6 if tokens & (tokens - 1) == 0 else 32)}
    return found | {("tokens between", _half_octave(tokens)): 4.0 + tokens / 16}


def _half_octave(size: int) -> int:
    """Return the number of the half of an octave that a size lies in: 8 to 11 are one, 12 to 15 the next."""
    return math.floor(2 * math.log2(size))


@lru_cache(maxsize=16384)
def _of_grid(bucket: Bucket, grid: Grid, tokens: int) -> dict[object, float]:
    """Return what an image covers by itself: its kind of grid and size, and how many valid tokens have padding."""
    shape, size = shape_of(grid), stratum_of(grid.tokens, 1, bucket.tokens)
    found: dict[object, float] = {("kind", shape, grid.height > grid.width, size): 1.0 if grid.tokens > 32 else 0.5}
    if grid.height == grid.width:
        found["square", grid.height] = 4.0 + grid.tokens / 6
    elif min(grid) <= 3:
        found["narrow", min(grid), grid.height < grid.width, stratum_of(max(grid), 1, bucket.tokens)] = 1.5
    if 1 < min(grid) < max(grid) <= 4 * min(grid) and max(grid) % min(grid) == 0:
        found["times as long", max(grid) // min(grid), grid.height > grid.width] = 1.0
    if grid.tokens < tokens:
        found["valid by 8", grid.tokens % 8] = 0.5
        if grid.tokens in _turning(1, bucket.tokens, bucket.tokens):
            found["valid", grid.tokens] = 1.0
    return found


def _worth(bucket: Bucket, sizes: Sizes, seen: Collection[object]) -> float:
    return sum(weight for feature, weight in _features(bucket, sizes).items() if feature not in seen)


@lru_cache
def _turning(smallest: int, usual: int, largest: int) -> tuple[int, ...]:
    """Return the sizes where backends change kernels: the ends of a range, powers of two and their neighbours."""
    powers = [1 << exponent for exponent in range(largest.bit_length() + 1)]
    sizes = {smallest, usual, largest, largest - 1, *(power + step for power in powers for step in (-1, 0, 1))}
    return tuple(sorted(size for size in sizes if smallest <= size <= largest))


class _New(NamedTuple):
    """What sizes cover by themselves that was not seen: the weights of each, and the sides of squares."""

    counts: tuple[float, ...]
    tokens: tuple[float, ...]
    squares: tuple[int, ...]


def _new(bucket: Bucket, seen: Collection[object]) -> _New:
    """Return what sizes cover that was not seen; counts are from the fewest images on, tokens from 1."""

    def worth(covered: dict[object, float]) -> float:
        return sum(weight for one, weight in covered.items() if one not in seen)

    smallest, _, largest = bucket.batch
    return _New(
        tuple(worth(_of_count(bucket, count)) for count in range(smallest, largest + 1)),
        tuple(worth(_of_tokens(bucket, tokens)) for tokens in range(1, bucket.tokens + 1)),
        tuple(side for side in range(1, math.isqrt(bucket.tokens) + 1) if ("square", side) not in seen),
    )


def _drawn(bucket: Bucket, draw: random.Random, most: int, new: _New | None = None) -> Sizes:
    """Return sizes at random; where it is said what is new, mostly such."""
    smallest, _, largest = bucket.batch
    if draw.random() < 0.5:  # either goes first, for the one that does leaves the other less room
        count = _size(draw, smallest, max(smallest, min(largest, most)), new and new.counts)
        tokens = _size(draw, 1, min(bucket.tokens, max(1, most // count)), new and new.tokens, count)
    else:
        tokens = _size(draw, 1, min(bucket.tokens, max(1, most // smallest)), new and new.tokens, smallest)
        count = _size(draw, smallest, max(smallest, min(largest, most // tokens)), new and new.counts, tokens)
    if new and new.squares and draw.random() < 0.25:  # as many tokens as a square has that was not seen
        side = draw.choice(new.squares)
        if count * side * side <= max(most, smallest * side * side):
            others = [_grid(draw, side * side) for _ in range(count - 1)]
            return Sizes((Grid(side, side), *others), side * side)
    return Sizes(tuple(_grid(draw, tokens) for _ in range(count)), tokens)


def _every_shape(bucket: Bucket, draw: random.Random) -> list[Sizes]:
    """Return a grid of each shape, padded to few tokens, in as many batches as the bucket's largest makes of them."""
    tokens, (smallest, _, largest) = min(bucket.tokens, SHAPES_TOKENS), bucket.batch
    grids = [_grid(draw, tokens, shape) for shape, area in LEAST_AREA.items() if area <= tokens]
    chunks = [grids[start : start + largest] for start in range(0, len(grids), largest)]
    return [Sizes(tuple((chunk * smallest)[: max(smallest, len(chunk))]), tokens) for chunk in chunks]


def _with_better_tokens(bucket: Bucket, sizes: Sizes, seen: Collection[object], most: int) -> Sizes:
    """Return a batch with up to 15 tokens more of padding, where that covers more that is new for what it costs."""
    largest = min(bucket.tokens, max(sizes.tokens, most // len(sizes.grids)), sizes.tokens + 15)
    padded = [Sizes(sizes.grids, tokens) for tokens in range(sizes.tokens, largest + 1)]
    return max(padded, key=lambda one: _worth(bucket, one, seen) / one.cost)


def _with_better_grids(bucket: Bucket, draw: random.Random, sizes: Sizes, seen: Collection[object]) -> Sizes:
    """Return a batch with its grids drawn again, each the one that covers most that is new, and arranged.

    They cost nothing: a batch of so many images and tokens takes the same time whatever its grids are.
    """
    count, tokens = len(sizes.grids), sizes.tokens

    def covered(grid: Grid) -> dict[object, float]:
        cells: dict[object, float] = {cell: _weight(cell) for cell in _cells_of(bucket, count, tokens, grid)}
        return cells | _of_grid(bucket, grid, tokens)

    found, here = list[Grid](), set(seen)
    for given in sizes.grids:
        drawn = [given, *(_grid(draw, tokens) for _ in range(DRAWS // 4))]
        worth = [sum(weight for one, weight in covered(grid).items() if one not in here) for grid in drawn]
        found.append(drawn[worth.index(max(worth))])
        here |= covered(found[-1]).keys()
    plain = tuple(found)
    arranged = [plain, *(arrange(plain) for name, arrange in ARRANGEMENTS.items() if ("arrangement", name) not in seen)]
    return max((Sizes(grids, tokens) for grids in arranged), key=lambda one: _worth(bucket, one, seen))


def _size(draw: random.Random, smallest: int, largest: int, worth: Sequence[float] | None, each: int = 1) -> int:
    """Return a size of a range: mostly one that covers what is new, else any, small ones as often as large.

    Args:
        draw: what to draw by.
        smallest: of the range.
        largest: of the range.
        worth: what each size from the smallest on covers that is new, by weight; None to draw any.
        each: what one more of the size costs, in tokens.
    """
    if worth and draw.random() < 0.75:
        sizes = range(smallest, largest + 1)
        shares = [worth[at] / (CALL_COST + size * each) for at, size in enumerate(sizes)]
        if any(shares):
            return draw.choices(sizes, shares)[0]
    return min(largest, int(math.exp(draw.uniform(math.log(smallest), math.log(largest + 1)))))


def _grid(draw: random.Random, tokens: int, shape: str = "") -> Grid:
    """Return a grid of a shape and a share of the tokens that are drawn first, or one near to that."""
    shape = shape or draw.choice([name for name, area in LEAST_AREA.items() if area <= tokens])
    if draw.random() < 0.3 and (whole := _whole(tokens, shape)):
        return draw.choice(whole)
    least, most = LEAST_AREA[shape], tokens
    area = int(math.exp(draw.uniform(math.log(least), math.log(most + 1))))
    area = min(most, max(least, area))
    if shape == "one patch":
        return Grid(1, 1)
    if shape in ("one row", "one column"):
        return Grid(1, area) if shape == "one row" else Grid(area, 1)
    if shape == "square":
        return Grid(math.isqrt(area), math.isqrt(area))
    low, high = {"n": (1.0, 2.0), "w": (2.0, 8.0), "t": (2.0, 8.0), "v": (8.0, max(8.5, area / 4))}[shape[0]]
    short = max(2, round(math.sqrt(area / draw.uniform(low, high))))
    long = min(tokens // short, max(short, math.floor(low * short) + 1, area // short))
    upright = shape in ("tall", "very tall") or (shape == "nearly square" and draw.random() < 0.5)
    return Grid(long, short) if upright else Grid(short, long)


@lru_cache(maxsize=4096)
def _whole(tokens: int, shape: str) -> Sequence[Grid]:
    """Return the grids of a shape that have just as many patches as there are tokens."""
    sides = [side for side in range(1, math.isqrt(tokens) + 1) if tokens % side == 0]
    grids = [grid for side in sides for grid in (Grid(side, tokens // side), Grid(tokens // side, side))]
    return [grid for grid in grids if shape_of(grid) == shape]
