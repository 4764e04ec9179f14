"""Batches to time an encoder on: padded images of mixed grids, seeded, another batch for each round."""

from __future__ import annotations

import random
from functools import lru_cache

from naflex_export.accuracy.case_grids import MAX_ASPECT, naflex_grid
from naflex_export.batch import Batch, noise_batch
from naflex_export.errors import RequestError
from naflex_export.grid import GRID_RULES, Grid


def drawn_grids(rule: str, num_images: int, tokens: int, seed: int | str = 0) -> list[Grid]:
    """Return the grids of a batch.

    Args:
        rule: "naflex": NaFlex's size rule for aspect ratios up to 8:1 either way, evenly in their logarithm, so that
            several images may share a grid. "different": no two images do, drawn from all grids up to 8:1 of a quarter
            of the token budget or more.
        num_images: how many.
        tokens: the most that a grid may have.
        seed: of the draw.

    Raises:
        RequestError: the rule is unknown, or there are not so many different grids.
    """
    draw = random.Random(f"{rule} {num_images} {tokens} {seed}")
    if rule == "naflex":
        return [naflex_grid(MAX_ASPECT ** draw.uniform(-1, 1), tokens) for _ in range(num_images)]
    if rule != "different":
        raise RequestError(f"grids {rule!r} are unknown: expected one of {', '.join(GRID_RULES)}")
    pool = _usual_grids(tokens)
    if num_images > len(pool):
        raise RequestError(
            f"{num_images} images cannot all have different grids: {tokens} tokens admit {len(pool)} grids up to "
            f"{MAX_ASPECT:.0f}:1; give a smaller batch or more tokens"
        )
    return draw.sample(pool, num_images)


def workload(rule: str, num_images: int, tokens: int, token_width: int, seed: int | str = 0) -> Batch:
    """Return a batch of noise with grids of `drawn_grids`, padded to `tokens`.

    Args:
        rule: of the grids.
        num_images: how many.
        tokens: the most that a grid may have.
        token_width: values in a flattened patch.
        seed: of grids and noise.
    """
    grids = drawn_grids(rule, num_images, tokens, seed)
    return noise_batch(f"{rule} {seed}", grids, tokens, token_width)


@lru_cache
def _usual_grids(tokens: int) -> tuple[Grid, ...]:
    return tuple(
        Grid(height, width)
        for height in range(1, tokens + 1)
        for width in range(1, tokens // height + 1)
        if 4 * height * width >= tokens and max(height, width) <= MAX_ASPECT * min(height, width)
    )
