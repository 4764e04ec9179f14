"""What the patches of generated batches hold, where it is more than noise: extreme values, and holes in masks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from naflex_export.batch import Batch

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
"""Mean and spread of the values of each image of `extreme` batches: constant, dark, bright, faint and glaring ones.

One image more has them patch by patch, so that some of its patches are zero and others constant.
"""

BLACK = 1
"""The place in `CONTENTS` of what the last of those batches has, images that are larger and have no padding."""


def with_contents(batch: Batch, numbers: Sequence[int]) -> Batch:
    """Return the batch with its images' values moved to those of `CONTENTS`.

    Args:
        batch: of noise.
        numbers: the place in `CONTENTS` of what each image gets; the number after the last for all, patch by patch.
    """
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


def with_holes(batch: Batch) -> Batch:
    """Return the batch with tokens of each image masked, and large values in them."""
    valid, patches = batch.patch_valid.clone(), batch.patches.clone()
    for row, grid in enumerate(batch.grids):
        if grid.tokens > 2:
            holes = HOLES_IN[row % len(HOLES_IN)](torch.arange(grid.tokens)).nonzero().flatten()
            valid[row, holes] = False
            patches[row, holes] *= 30
    return replace(batch, patches=patches, patch_valid=valid)
