"""One image that is given as arrays: its patches with a grid, or with coordinates and masks, checked as it comes.

Whoever puts images of several clients into one batch has to know beforehand that each is right by itself: what a runner
refuses, it refuses for the whole batch.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from naflex_export.errors import InputError
from naflex_export.grid import MOST_TOKENS, Grid

PATCHES, VALID, GRID = (
    ("patches", "pixel_values"),
    ("patch_valid", "pixel_attention_mask"),
    ("grid", "spatial_shapes"),
)
"""What each is called by timm, or by itself, and by transformers."""

COORDINATES = "patch_coord"


def image_of(given: Mapping[str, Any], width: int, name: str = "the image") -> tuple[NDArray[np.float32], Grid]:
    """Return the patches [n, width] of an image, row by row, and its grid.

    Args:
        given: `patches` [n, width] of numbers, with `grid` (height, width) or `patch_coord` [n, 2] as (y, x); where
            there is padding, `patch_valid` [tokens], valid tokens first. transformers' names do too.
        width: values of a patch.
        name: the image's, for messages.

    Raises:
        InputError: an array is missing, of another kind or shape, or they describe no grid.
    """
    patches_of, valid_of, grid_of = (_named(given, names) for names in (PATCHES, VALID, GRID))
    if patches_of is None or (grid_of is None) == (COORDINATES not in given):
        said = ", ".join(map(repr, given)) or "nothing"
        raise InputError(f"{name} has {said[:200]}: expected patches, and grid or {COORDINATES}")
    patches = _array(given[patches_of], f"{name}: {patches_of}", "fiu", 2).astype(np.float32)
    if patches.shape[1] != width:
        raise InputError(f"{name} has {patches.shape[1]} values a patch: expected {width}")
    if valid_of is not None:
        count = _count(_array(given[valid_of], f"{name}: {valid_of}", "biu", 1), f"{name}: {valid_of}", len(patches))
        patches = patches[:count]
    if grid_of is not None:
        grid = _sides(_array(given[grid_of], f"{name}: {grid_of}", "iu", 1), f"{name}: {grid_of}")
    else:
        coordinates = _array(given[COORDINATES], f"{name}: {COORDINATES}", "iu", 2)
        grid = _through(coordinates[: len(patches)], f"{name}: {COORDINATES}")
    if len(patches) != grid.tokens:
        raise InputError(f"{name} has {len(patches)} patches: expected {grid.tokens}, the grid being {grid}")
    if not np.isfinite(patches).all():
        raise InputError(f"{name}: {patches_of} hold values that are not finite")
    return patches, grid


def _named(given: Mapping[str, Any], names: tuple[str, ...]) -> str | None:
    return next((name for name in names if name in given), None)


def _count(valid: NDArray[Any], name: str, tokens: int) -> int:
    """Return how many tokens are valid."""
    count = int(np.count_nonzero(valid))
    if len(valid) != tokens or not count or not valid[:count].all() or valid.max() > 1:
        raise InputError(
            f"{name} has {len(valid)} tokens, {count} of them valid: expected {tokens}, the valid ones first"
        )
    return count


def _sides(sides: NDArray[Any], name: str) -> Grid:
    if len(sides) != 2 or sides.min() < 1 or sides.max() > MOST_TOKENS:
        raise InputError(f"{name} is {sides.tolist()[:4]}: expected [height, width] in patches, of at least 1")
    return Grid(*sides.tolist())


def _through(coordinates: NDArray[Any], name: str) -> Grid:
    """Return the grid that coordinates go through row by row."""
    if coordinates.shape[1] != 2 or not len(coordinates):
        raise InputError(f"{name} has the shape {list(coordinates.shape)}: expected [patches, 2] as (y, x)")
    low, high = coordinates.min(axis=0).tolist(), coordinates.max(axis=0).tolist()
    grid = Grid(high[0] + 1, high[1] + 1)
    if min(low) < 0 or grid.tokens != len(coordinates):
        raise InputError(
            f"{name} of {len(coordinates)} patches go from {low} to {high}: expected a grid, row by row from (0, 0)"
        )
    if not np.array_equal(coordinates, np.indices(grid).reshape(2, -1).T):
        raise InputError(f"{name} are in another order: expected those of a grid, row by row from (0, 0)")
    return grid


def _array(value: object, name: str, kinds: str, rank: int) -> NDArray[Any]:
    try:
        found = np.asarray(value)
    except ValueError as error:
        raise InputError(f"{name} has rows of different lengths: expected {rank} dimensions") from error
    if found.ndim != rank or found.dtype.kind not in kinds:
        what = "numbers" if "f" in kinds else "booleans" if "b" in kinds else "integers"
        raise InputError(f"{name} is {found.dtype} {list(found.shape)}: expected {what} in {rank} dimensions")
    return found
