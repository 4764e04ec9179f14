"""Which grid a photo gets: NaFlex's size rule, as timm and transformers both have it, in integers and floats alone."""

from __future__ import annotations

import functools
import math

from naflex_export.grid import Grid

PRECISION = 1e-5
"""At which the search for the ratio ends. The libraries' own: another one gives other grids at a few sizes."""

LARGEST_RATIO = 100.0
"""By which a photo is enlarged at most."""


@functools.lru_cache(maxsize=4096)
def grid_of(height: int, width: int, patch_size: tuple[int, int], tokens: int, upscale: bool = True) -> Grid:
    """Return the grid of a photo: the largest that keeps its shape within a number of tokens, each side rounded up.

    The ratio is found by bisection from 1e-6 to 100, which the libraries do (`get_image_size_for_seq` of timm,
    `get_image_size_for_max_num_patches` of transformers).

    Args:
        height: of the photo, in pixels.
        width: of the photo, in pixels.
        patch_size: height and width of a patch, in pixels.
        tokens: the most patches.
        upscale: enlarge a photo of fewer patches; without it one keeps its size, rounded up to whole patches.
    """

    def scaled(ratio: float) -> Grid:
        rows, columns = math.ceil(height * ratio / patch_size[0]), math.ceil(width * ratio / patch_size[1])
        return Grid(max(rows, 1), max(columns, 1))

    low, high = PRECISION / 10, LARGEST_RATIO
    while high - low >= PRECISION:
        middle = (low + high) / 2
        low, high = (middle, high) if scaled(middle).tokens <= tokens else (low, middle)
    return scaled(low if upscale else min(low, 1.0))
