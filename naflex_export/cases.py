"""Batches to judge with: from photos, and generated to be hard."""

from __future__ import annotations

import errno
import itertools
import math
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import torch
from PIL import Image
from timm.data.naflex_dataset import NaFlexCollator
from timm.data.naflex_transforms import get_image_size_for_seq
from torch import Tensor

from naflex_export.errors import RequestError
from naflex_export.grid import Bucket, Grid

MAX_ASPECT = 8.0
"""Widest aspect ratio, either way, of the generated mixed grids; NaFlex's size rule admits any."""


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


@dataclass(frozen=True)
class Photos:
    """The photos of a folder.

    Attributes:
        images: RGB images by file name.
        skipped: for each file left out, its name and why.
    """

    images: dict[str, Image.Image]
    skipped: dict[str, str]


def load_photos(folder: Path | None = None) -> Photos:
    """Return the photos of a folder, by default the three that ship with the package.

    A file that is no image is skipped, and counted in `skipped`.

    Raises:
        RequestError: the folder is missing, cannot be read, or holds no image.
    """
    pattern = "*.jpg" if folder is None else "*"
    folder = folder or Path(str(resources.files("naflex_export") / "photos"))
    try:
        if not folder.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, "not a folder" if folder.exists() else "it does not exist")
        paths = sorted(path for path in folder.glob(pattern) if path.is_file() and not path.name.startswith("."))
    except OSError as error:
        raise RequestError(
            f"image folder {str(folder)!r} cannot be read ({error.strerror}): expected a folder of photos"
        ) from error
    images: dict[str, Image.Image] = {}
    skipped: dict[str, str] = {}
    for path in paths:
        try:
            with Image.open(path) as image:
                images[path.name] = image.convert("RGB")
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            truncated = isinstance(error, OSError) and "truncated" in str(error)
            skipped[path.name] = "truncated image" if truncated else "not an image"
    if not images:
        raise RequestError(
            f"image folder {str(folder)!r} holds no image among its {len(paths)} files: expected at least one photo"
        )
    return Photos(images, skipped)


def photo_batches(
    photos: Photos,
    transform: Callable[[Image.Image], dict[str, Tensor]],
    bucket: Bucket,
) -> Iterator[Batch]:
    """Yield the photos as batches of a bucket's usual size, padded to its token budget.

    Where too few are left for the smallest batch that the bucket takes, they are repeated.
    """
    names = list(photos.images)
    smallest, size, _ = bucket.batch
    for start in range(0, len(names), size):
        patched = [transform(photos.images[name]) for name in names[start : start + size]]
        repeated = itertools.islice(itertools.cycle(patched), max(smallest, len(patched)))
        yield _collate(f"photos-{start // size}", list(repeated), bucket.tokens)


def generated_batches(bucket: Bucket, token_width: int, seed: int) -> Iterator[Batch]:
    """Yield seeded batches made to be hard for a bucket, none of them of a shape that `program.EXAMPLE` has.

    A mixed batch of grids that NaFlex's size rule gives; one image of one row; one of one column; the most square
    grid with no padding; and small grids drowned in padding.
    """
    draw = random.Random(f"{seed} {bucket}")
    tokens, batch = bucket.tokens, max(bucket.batch[0], min(bucket.batch[1], 8))
    side = math.isqrt(tokens)
    mixed = [naflex_grid(MAX_ASPECT ** draw.uniform(-1, 1), tokens) for _ in range(batch)]
    small = [Grid(draw.randint(1, min(3, side)), draw.randint(1, min(3, side))) for _ in range(batch)]
    smallest = bucket.batch[0]
    plans = {
        "mixed": (mixed, tokens),
        "one-row": ([Grid(1, tokens)] * smallest, tokens),
        "one-column": ([Grid(max(1, tokens - 1), 1)] * smallest, max(1, tokens - 1)),
        "square": ([Grid(side, side)] * smallest, side * side),
        "padding": (small, tokens),
    }
    for name, (grids, padded) in plans.items():
        yield noise_batch(f"{name}-seed{seed}", grids, padded, token_width)


def noise_batch(name: str, grids: Sequence[Grid], tokens: int, token_width: int) -> Batch:
    """Return a batch of normal noise, drawn from its name, for the given grids."""
    draw = torch.Generator().manual_seed(random.Random(name).getrandbits(63))
    patched = [
        {
            "patches": torch.randn(grid.tokens, token_width, generator=draw),
            "patch_coord": torch.tensor(grid.coordinates()),
            "patch_valid": torch.ones(grid.tokens, dtype=torch.bool),
        }
        for grid in grids
    ]
    return _collate(name, patched, tokens)


def naflex_grid(aspect: float, tokens: int) -> Grid:
    """Return the grid that NaFlex's size rule gives an image of an aspect ratio (height over width)."""
    height, width = 4096 * math.sqrt(aspect), 4096 / math.sqrt(aspect)
    _, (pixels_h, pixels_w) = get_image_size_for_seq((round(height), round(width)), 16, tokens)
    return Grid(pixels_h // 16, pixels_w // 16)


def _collate(name: str, patched: list[dict[str, Tensor]], tokens: int) -> Batch:
    collated, _ = NaFlexCollator(max_seq_len=tokens)([(image, 0) for image in patched])
    grids = tuple(Grid(*(image["patch_coord"].amax(dim=0) + 1).tolist()) for image in patched)
    return Batch(name, collated["patches"], collated["patch_coord"], collated["patch_valid"], grids)
