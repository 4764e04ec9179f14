"""Grids, buckets, patch coordinates and patch sizes: plain integers, no tensors."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

from naflex_export.errors import RequestError

GRID_RULES = ("naflex", "different")
"""How the grids of a batch to time on are drawn; `bench/workloads.py` says what each is."""

SEEDS = 2**31
"""How many there are, from 0: the name of a generated batch holds its seed, without a sign."""

MATRICES = ("stored", "computed")
"""Where a graph has the resampling matrices of a learned grid from: constants of its own, or arithmetic."""


MOST_TOKENS = 2**20
"""Of a bucket: 16 megapixels in patches of 4. Attention over more fits no machine."""

MOST_IMAGES = 2**20
"""Of a batch."""

MOST_IN_BATCH = 2**26
"""Tokens of the largest batch together: 192 GiB of 16-pixel patches in float32."""


class Grid(NamedTuple):
    """Height and width of an image in patches, always in that order."""

    height: int
    width: int

    @property
    def tokens(self) -> int:
        """Number of patches."""
        return self.height * self.width

    def coordinates(self) -> list[tuple[int, int]]:
        """Return the (y, x) of each patch, row by row."""
        return [(y, x) for y in range(self.height) for x in range(self.width)]

    def __str__(self) -> str:
        return f"{self.height}x{self.width}"


class Range(NamedTuple):
    """The sizes that a named dimension of a graph's inputs may have. Builders tune for the usual one."""

    smallest: int
    usual: int
    largest: int


@dataclass(frozen=True)
class Bucket:
    """A token budget and the batch sizes it serves.

    Attributes:
        tokens: the most tokens an image may be padded to, up to `MOST_TOKENS`.
        batch: smallest, most usual and largest batch size, up to `MOST_IMAGES`, and with all their tokens up to
            `MOST_IN_BATCH`. Builders tune for the middle one.
    """

    tokens: int = 256
    batch: tuple[int, int, int] = (1, 8, 32)

    def __post_init__(self) -> None:
        if not _is_count(self.tokens):
            raise RequestError(f"bucket tokens={self.tokens!r}: expected an integer of at least 1")
        batch: Sequence[object] = self.batch
        if not isinstance(batch, Sequence) or len(batch) != 3 or not all(map(_is_count, batch)):
            raise RequestError(f"bucket batch={self.batch!r}: expected three integers of at least 1, (min, opt, max)")
        smallest, usual, largest = self.batch
        if not smallest <= usual <= largest:
            raise RequestError(f"bucket batch={self.batch!r}: expected min <= opt <= max")
        object.__setattr__(self, "batch", tuple(self.batch))
        if self.tokens > MOST_TOKENS or largest > MOST_IMAGES or self.tokens * largest > MOST_IN_BATCH:
            raise RequestError(
                f"bucket {self} is larger than any machine's memory: expected at most {MOST_TOKENS} tokens, "
                f"{MOST_IMAGES} images, and {MOST_IN_BATCH} tokens in the largest batch"
            )

    @property
    def dims(self) -> dict[str, Range]:
        """The range of each open dimension of padded inputs, by its name."""
        return {"batch": Range(*self.batch), "tokens": Range(1, self.tokens, self.tokens)}

    @property
    def packed_dims(self) -> dict[str, Range]:
        """The range of each open dimension of packed inputs, by its name: `tokens` and `rows` are of all images."""
        smallest, usual, largest = self.batch
        return {
            "images": Range(*self.batch),
            "tokens": Range(smallest, self.tokens * usual, self.tokens * largest),
            "longest": Range(1, self.tokens, self.tokens),
            "rows": Range(smallest, math.isqrt(self.tokens) * usual, self.tokens * largest),
        }

    def dims_of(self, names: Container[str]) -> dict[str, Range]:
        """Return the range of each open dimension of inputs that have dimensions of these names, padded or packed."""
        return self.packed_dims if "images" in names else self.dims

    def takes(self, sizes: Mapping[str, int]) -> bool:
        """Whether inputs of these sizes, by the dimensions' names, fit; other names say nothing of a bucket."""
        return all(low <= sizes.get(name, low) <= high for name, (low, _, high) in self.dims_of(sizes).items())

    @classmethod
    def parse(cls, text: str) -> Bucket:
        """Return the bucket written as `TOKENS` or `TOKENS:MIN,OPT,MAX`, such as `256:1,8,32`.

        Raises:
            RequestError: the text has another form, or its numbers make no bucket.
        """
        found = re.fullmatch(r"(\d+)(?::(\d+),(\d+),(\d+))?", text.strip())
        if not found:
            raise RequestError(
                f"bucket {text!r} is malformed: expected TOKENS or TOKENS:MIN,OPT,MAX, such as 256:1,8,32"
            )
        tokens, *batch = found.groups()
        if batch[0] is None:
            return cls(int(tokens))
        smallest, usual, largest = map(int, batch)
        return cls(int(tokens), (smallest, usual, largest))

    def __str__(self) -> str:
        return f"{self.tokens}:{','.join(map(str, self.batch))}"


def check_buckets(buckets: Sequence[Bucket | int] | Bucket | int) -> tuple[Bucket, ...]:
    """Return the buckets, ordered by tokens.

    Args:
        buckets: one or several; a number stands for a bucket of as many tokens.

    Raises:
        RequestError: there is none, one is no bucket, or two have the same token budget.
    """
    asked: Any = buckets
    given = [asked] if isinstance(asked, Bucket | int) else asked
    if isinstance(given, str) or not isinstance(given, Iterable):
        raise RequestError(f"buckets={buckets!r}: expected a list of buckets, such as [Bucket(tokens=256)]")
    made: list[Any] = [Bucket(cast(int, bucket)) if _is_count(bucket) else bucket for bucket in given]
    if not made:
        raise RequestError("no bucket was given: expected at least one, such as Bucket(tokens=256)")
    for bucket in made:
        if not isinstance(bucket, Bucket):
            raise RequestError(
                f"bucket {bucket!r}: expected a Bucket or a number of tokens, such as Bucket(tokens=256)"
            )
    ordered: tuple[Bucket, ...] = tuple(sorted(made, key=lambda bucket: bucket.tokens))
    for one, other in itertools.pairwise(ordered):
        if one.tokens == other.tokens:
            raise RequestError(f"buckets {one} and {other} have the same tokens: give each budget once")
    return ordered


def parse_patch_sizes(text: str) -> tuple[int, ...]:
    """Return the patch sizes written as `8,16,32`.

    Raises:
        RequestError: the text has another form, or its numbers are no patch sizes.
    """
    if not re.fullmatch(r"-?\d+(,-?\d+)*", text.replace(" ", "")):
        raise RequestError(f"patch sizes {text!r} are malformed: expected numbers of pixels, such as 8,16,32")
    return check_patch_sizes([int(number) for number in text.split(",")])


def check_patch_sizes(sizes: Sequence[int] | int) -> tuple[int, ...]:
    """Return the patch sizes in increasing order; one may be given by itself.

    Raises:
        RequestError: there is none, one is no integer of at least 1, or one comes twice.
    """
    asked: Any = sizes
    several = isinstance(asked, Sequence) and not isinstance(asked, str)
    sizes = asked if several else (asked,)
    if not sizes:
        raise RequestError("no patch size was given: expected at least one, such as 16")
    for size in sizes:
        if not _is_count(size):
            raise RequestError(f"patch size {size!r}: expected an integer of at least 1, in pixels")
        if sizes.count(size) > 1:
            raise RequestError(f"patch size {size} was given {sizes.count(size)} times: give each size once")
    return tuple(sorted(sizes))


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1
