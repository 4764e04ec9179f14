"""Faults that strike only at some sizes: each says of a batch which of its images are wrong.

`NAMED` are those that a gate of hard cases alone let pass. `VARIANTS` are of the same kind and were written down before
the sample was first held against them; its budget and weights were then chosen with an eye on both.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from naflex_export.accuracy.cases import generated_batch
from naflex_export.batch import Batch
from naflex_export.grid import Bucket, Grid

BUCKET = Bucket(256, (1, 8, 32))
"""Whose batches the faults are looked for in."""

Fault = Callable[[int, int, Grid], bool]
"""Takes images in the batch, the tokens that they are padded to and an image's grid; returns whether it is struck."""


def _is_prime(number: int) -> bool:
    return number > 1 and all(number % divisor for divisor in range(2, math.isqrt(number) + 1))


NAMED: dict[str, Fault] = {
    "batch of 2": lambda images, tokens, grid: images == 2,
    "batch of 16": lambda images, tokens, grid: images == 16,
    "batch of 9 to 31": lambda images, tokens, grid: 9 <= images <= 31,
    "128 tokens": lambda images, tokens, grid: tokens == 128,
    "2 to 8 tokens": lambda images, tokens, grid: 2 <= tokens <= 8,
    "10 to 120 tokens": lambda images, tokens, grid: 10 <= tokens <= 120,
    "122 to 254 tokens": lambda images, tokens, grid: 122 <= tokens <= 254,
    "even tokens below 256": lambda images, tokens, grid: tokens < 256 and tokens % 2 == 0,
    "grids of 10 to 200 patches": lambda images, tokens, grid: 10 <= grid.tokens <= 200,
    "14x14": lambda images, tokens, grid: grid == Grid(14, 14),
    "squares below 16": lambda images, tokens, grid: 1 < grid.height == grid.width < 16,
    "two rows": lambda images, tokens, grid: grid.height == 2 and grid.width > 2,
    "short rows": lambda images, tokens, grid: grid.height == 1 and 3 < grid.width < 100,
    "short columns": lambda images, tokens, grid: grid.width == 1 and 3 < grid.height < 100,
    "aspects over 8 that are no strips": lambda images, tokens, grid: min(grid) > 1 and max(grid) > 8 * min(grid),
}

VARIANTS: dict[str, Fault] = {
    "batch of 4": lambda images, tokens, grid: images == 4 and tokens < 200,
    "batch of 7": lambda images, tokens, grid: images == 7,
    "batch of 31": lambda images, tokens, grid: images == 31,
    "odd batches above 2": lambda images, tokens, grid: images > 3 and images % 2 == 1,
    "batch of 5 to 7": lambda images, tokens, grid: 5 <= images <= 7,
    "64 tokens": lambda images, tokens, grid: tokens == 64,
    "32 to 48 tokens": lambda images, tokens, grid: 32 <= tokens <= 48,
    "odd tokens from 129 to 253": lambda images, tokens, grid: 129 <= tokens <= 253 and tokens % 2 == 1,
    "multiples of 8 below 256": lambda images, tokens, grid: tokens % 8 == 0 and tokens < 256,
    "one below a multiple of 16": lambda images, tokens, grid: tokens % 16 == 15 and tokens < 255,
    "a prime of tokens": lambda images, tokens, grid: _is_prime(tokens),
    "13x13": lambda images, tokens, grid: grid == Grid(13, 13),
    "7x7": lambda images, tokens, grid: grid == Grid(7, 7),
    "two columns": lambda images, tokens, grid: grid.width == 2 and grid.height > 2,
    "three rows": lambda images, tokens, grid: grid.height == 3 and grid.width > 4,
    "portraits of 2:1 to 3:1, small": lambda images, tokens, grid: (
        2 < grid.height / grid.width < 3 and grid.tokens < 100
    ),
    "a tenth of the tokens, above 20": lambda images, tokens, grid: 20 < tokens < 256 and grid.tokens < 0.1 * tokens,
    "no padding, wide": lambda images, tokens, grid: grid.tokens == tokens and 1 < grid.height < grid.width,
    "batch from 3 and 17 to 200 tokens": lambda images, tokens, grid: images >= 3 and 17 <= tokens <= 200,
    "two images of over 64 tokens, below 256": lambda images, tokens, grid: images == 2 and 64 < tokens < 256,
    "even batch, odd tokens": lambda images, tokens, grid: images % 2 == 0 and tokens % 2 == 1 and tokens > 9,
}


LATER: dict[str, Fault] = {
    "batch of 3": lambda images, tokens, grid: images == 3,
    "tokens of 7 modulo 16": lambda images, tokens, grid: tokens % 16 == 7,
    "height over three widths": lambda images, tokens, grid: grid.height > 3 * grid.width,
    "batch of 10 to 15": lambda images, tokens, grid: 10 <= images <= 15,
    "multiples of 32 below 256": lambda images, tokens, grid: tokens % 32 == 0 and tokens < 256,
    "16 wide and not 16 high": lambda images, tokens, grid: grid.width == 16 and grid.height != 16,
    "rows over 128, padded": lambda images, tokens, grid: grid.height == 1 and 128 < grid.width < tokens,
    "columns over 128, padded": lambda images, tokens, grid: grid.width == 1 and 128 < grid.height < tokens,
    "a twentieth of the tokens": lambda images, tokens, grid: grid.tokens < 0.05 * tokens,
    "over 512 tokens in all, below 256 each": lambda images, tokens, grid: images * tokens > 512 and tokens < 256,
    "twice as high as wide": lambda images, tokens, grid: grid.height == 2 * grid.width > 2,
    "200 to 250 tokens": lambda images, tokens, grid: 200 <= tokens <= 250,
    "one token of padding": lambda images, tokens, grid: grid.tokens == tokens - 1,
    "odd height, even width": lambda images, tokens, grid: grid.height % 2 == 1 < grid.height and grid.width % 2 == 0,
    "squares from 12, padded": lambda images, tokens, grid: 12 <= grid.height == grid.width and grid.tokens < tokens,
    "batch of 17 to 31": lambda images, tokens, grid: 17 <= images <= 31,
    "portraits in batches from 8": lambda images, tokens, grid: images >= 8 and grid.height > grid.width > 1,
    "33 to 63 tokens": lambda images, tokens, grid: 33 <= tokens <= 63,
    "alone, below 64 tokens": lambda images, tokens, grid: images == 1 and tokens < 64,
    "over 200 patches, padded": lambda images, tokens, grid: 200 < grid.tokens < tokens,
    "batch from 5, 65 to 255 tokens": lambda images, tokens, grid: images >= 5 and 64 < tokens < 256,
    "two or three of 100 to 255 tokens": lambda images, tokens, grid: images in (2, 3) and 100 <= tokens < 256,
    "both sides even, no square": lambda images, tokens, grid: (
        grid.height % 2 == 0 == grid.width % 2 and grid.height != grid.width
    ),
    "batch of 8, below 200 tokens": lambda images, tokens, grid: images == 8 and tokens < 200,
    "tokens of 13 modulo 16, from 29": lambda images, tokens, grid: tokens % 16 == 13 and tokens >= 29,
}
"""Written down later, against cases and sample together: 8 of them passed, and the larger batches came of that."""


TILED: dict[str, Fault] = {
    "batch of 6": lambda images, tokens, grid: images == 6,
    "batch of 24 to 31": lambda images, tokens, grid: 24 <= images <= 31,
    "two to four of 120 to 200 tokens": lambda images, tokens, grid: 2 <= images <= 4 and 120 <= tokens <= 200,
    "tokens of 4 modulo 8, above 32": lambda images, tokens, grid: tokens > 32 and tokens % 8 == 4,
    "multiples of 16 that are no powers of two": lambda images, tokens, grid: (
        tokens % 16 == 0 and tokens & (tokens - 1) > 0
    ),
    "tokens of 2 modulo 4, above 100": lambda images, tokens, grid: tokens > 100 and tokens % 4 == 2,
    "140 to 170 tokens": lambda images, tokens, grid: 140 <= tokens <= 170,
    "18 to 31 tokens": lambda images, tokens, grid: 18 <= tokens <= 31,
    "192 tokens": lambda images, tokens, grid: tokens == 192,
    "241 to 255 tokens": lambda images, tokens, grid: 241 <= tokens < 256,
    "four times as long as wide": lambda images, tokens, grid: max(grid) == 4 * min(grid) > 4,
    "over 24 high, and no column": lambda images, tokens, grid: grid.height > 24 and grid.width > 1,
    "rows of 17 to 63": lambda images, tokens, grid: grid.height == 1 and 17 <= grid.width <= 63,
    "16 high and narrower": lambda images, tokens, grid: grid.height == 16 > grid.width,
    "a quarter of 100 tokens or more, in company": lambda images, tokens, grid: (
        images >= 2 and tokens >= 100 and 4 * grid.tokens < tokens
    ),
}
"""Written down after those, of tiles and spans: 5 of them passed, and the sizes of cases were then chosen anew."""


def strikes(fault: Fault, batch: Batch) -> list[bool]:
    """Return for each image of a batch whether a fault strikes it."""
    images, tokens = batch.patch_valid.shape
    return [fault(images, tokens, grid) for grid in batch.grids]


def found_by(fault: Fault, names: list[str]) -> list[str]:
    """Return the batches of `BUCKET`, by name, that have an image which a fault strikes."""
    return [name for name in names if any(strikes(fault, generated_batch(name, BUCKET, 1)))]
