"""An image given as arrays: both libraries' names, padding, and every fault by name."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import naflex_export as nx
from naflex_export.embed.arrays import image_of

PATCHES = np.arange(6 * 5, dtype=np.float32).reshape(6, 5)
COORDINATES = np.indices((2, 3)).reshape(2, -1).T
PADDED = {
    "patches": np.concatenate([PATCHES, np.full((2, 5), np.nan, np.float32)]),
    "patch_coord": np.concatenate([COORDINATES, np.zeros((2, 2), int)]),
    "patch_valid": np.arange(8) < 6,
}


@pytest.mark.parametrize(
    "given",
    [
        {"patches": PATCHES, "grid": [2, 3]},
        {"patches": PATCHES.tolist(), "grid": np.array([2, 3])},
        {"patches": PATCHES.astype(np.float16), "patch_coord": COORDINATES},
        PADDED,
        {
            "pixel_values": PADDED["patches"],
            "pixel_attention_mask": PADDED["patch_valid"].astype(np.int32),
            "spatial_shapes": np.array([2, 3]),
        },
    ],
    ids=["grid", "lists", "coordinates", "padded", "transformers"],
)
def test_an_image_is_its_patches_and_its_grid(given: dict[str, Any]) -> None:
    patches, grid = image_of(given, 5)
    assert np.array_equal(patches, PATCHES) and patches.dtype == np.float32 and grid == (2, 3)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"patches": None}, "x has 'patch_coord', 'patch_valid': expected patches, and grid or patch_coord"),
        ({"grid": [2, 3]}, "expected patches, and grid or patch_coord"),
        ({"patches": PADDED["patches"][:, :4]}, "x has 4 values a patch: expected 5"),
        ({"patches": PADDED["patches"][0]}, "x: patches is float32 [5]: expected numbers in 2 dimensions"),
        ({"patches": [["a"]]}, "x: patches is <U1 [1, 1]: expected numbers"),
        ({"patches": [[1], [1, 2]]}, "x: patches has rows of different lengths"),
        ({"patches": np.where(np.arange(8)[:, None] == 2, np.inf, PADDED["patches"])}, "values that are not finite"),
        ({"patch_valid": np.arange(8) > 2}, "x: patch_valid has 8 tokens, 5 of them valid: expected 8, the valid ones"),
        ({"patch_valid": np.zeros(8, bool)}, "8 tokens, 0 of them valid"),
        ({"patch_valid": np.ones(7, bool)}, "7 tokens, 7 of them valid: expected 8"),
        ({"patch_valid": np.full(8, 2)}, "8 tokens, 8 of them valid"),
        ({"patch_valid": np.ones(8)}, "x: patch_valid is float64 [8]: expected booleans in 1 dimensions"),
        ({"patch_coord": PADDED["patch_coord"] - 1}, "x: patch_coord of 6 patches go from [-1, -1] to [0, 1]"),
        ({"patch_coord": 2 * PADDED["patch_coord"]}, "go from [0, 0] to [2, 4]: expected a grid, row by row"),
        ({"patch_coord": PADDED["patch_coord"][[1, 0, 2, 3, 4, 5, 6, 7]]}, "are in another order"),
        ({"patch_coord": PADDED["patch_coord"][:, :1]}, "has the shape [6, 1]: expected [patches, 2]"),
        ({"patch_coord": PADDED["patch_coord"] * 1.0}, "x: patch_coord is float64 [8, 2]: expected integers"),
        ({"patch_coord": None, "grid": [2, 4]}, "x has 6 patches: expected 8, the grid being 2x4"),
        ({"patch_coord": None, "grid": [-2, -3]}, "x: grid is [-2, -3]: expected [height, width] in patches"),
        ({"patch_coord": None, "grid": [2**40, 2**40]}, "expected [height, width] in patches"),
        ({"patch_coord": None, "grid": [2, 3, 1]}, "x: grid is [2, 3, 1]: expected [height, width]"),
    ],
)
def test_every_fault_is_named(changed: dict[str, Any], message: str) -> None:
    given = {name: value for name, value in {**PADDED, **changed}.items() if value is not None}
    with pytest.raises(nx.InputError) as caught:
        image_of(given, 5, "x")
    assert message in str(caught.value)
