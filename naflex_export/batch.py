"""Padded batches of images of mixed grids."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from timm.data.naflex_dataset import NaFlexCollator
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
    """Return a batch of normal noise of a standard deviation, drawn from its name, for the given grids."""
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


def collate(name: str, patched: list[dict[str, Tensor]], tokens: int) -> Batch:
    collated, _ = NaFlexCollator(max_seq_len=tokens)([(image, 0) for image in patched])
    grids = tuple(Grid(*(image["patch_coord"].amax(dim=0) + 1).tolist()) for image in patched)
    return Batch(name, collated["patches"], collated["patch_coord"], collated["patch_valid"], grids)
