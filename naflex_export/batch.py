"""Padded batches of images of mixed grids.

Shape legend: B images, N tokens, D values in a flattened patch.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from naflex_export.grid import Grid


@dataclass(frozen=True)
class Batch:
    """Images of mixed grids, padded to one token count.

    Attributes:
        name: what the batch is for; with the seed it says which batch it is.
        patches: [B, N, P*P*C] float32; padding holds zeros.
        patch_coord: [B, N, 2] int64 (y, x), row by row; padding holds zeros.
        patch_valid: [B, N] bool; True for the valid tokens, which come first.
        grids: each image's grid.
    """

    name: str
    patches: Tensor
    patch_coord: Tensor
    patch_valid: Tensor
    grids: tuple[Grid, ...]


def picked(batch: Batch, images: Sequence[int]) -> Batch:
    """Return a batch of these images of another, by their numbers; one may be there several times."""
    rows = list(images)
    return replace(
        batch,
        patches=batch.patches[rows],
        patch_coord=batch.patch_coord[rows],
        patch_valid=batch.patch_valid[rows],
        grids=tuple(batch.grids[row] for row in rows),
    )


def noise_batch(name: str, grids: Sequence[Grid], tokens: int, token_width: int, scale: float = 1.0) -> Batch:
    """Return a batch of normal noise of a standard deviation, drawn from its name, for the given grids.

    Args:
        name: of the batch, which the noise is drawn from.
        grids: of the images.
        tokens: that they are padded to.
        token_width: values in a flattened patch.
        scale: the noise's standard deviation.
    """
    draw = torch.Generator().manual_seed(random.Random(name).getrandbits(63))
    patched = [
        {
            "patches": scale * torch.randn(grid.tokens, token_width, generator=draw),
            "patch_coord": torch.tensor(grid.coordinates()),
            "patch_valid": torch.ones(grid.tokens, dtype=torch.bool),
        }
        for grid in grids
    ]
    return collate(name, patched, tokens)


def collate(name: str, images: Sequence[dict[str, Tensor]], tokens: int) -> Batch:
    """Return images as one batch, padded with zeros as timm's collator and transformers' processor pad.

    Args:
        name: what the batch is for.
        images: of each its `patches` [n, P*P*C], `patch_coord` [n, 2] and `patch_valid` [n].
        tokens: N that they are padded to.
    """
    patches_BND = torch.zeros(len(images), tokens, images[0]["patches"].shape[1], dtype=torch.float32)
    coord_BN2 = torch.zeros(len(images), tokens, 2, dtype=torch.int64)
    valid_BN = torch.zeros(len(images), tokens, dtype=torch.bool)
    for row, image in enumerate(images):
        count = min(len(image["patches"]), tokens)
        patches_BND[row, :count] = image["patches"][:count]
        coord_BN2[row, :count] = image["patch_coord"][:count]
        valid_BN[row, :count] = image["patch_valid"][:count]
    grids = tuple(Grid(*(image["patch_coord"].amax(dim=0) + 1).tolist()) for image in images)
    return Batch(name, patches_BND, coord_BN2, valid_BN, grids)
