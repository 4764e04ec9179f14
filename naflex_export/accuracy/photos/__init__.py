"""The photos that a model is judged on, and batches of them."""

from __future__ import annotations

import errno
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from PIL import Image
from torch import Tensor

from naflex_export.batch import Batch, collate
from naflex_export.errors import RequestError
from naflex_export.grid import Bucket


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
    folder = folder or Path(str(resources.files(__name__)))
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

    Args:
        photos: to make batches of.
        transform: from an RGB photo to `patches`, `patch_coord` and `patch_valid`.
        bucket: whose usual size and tokens the batches have.
    """
    names = list(photos.images)
    smallest, size, _ = bucket.batch
    for start in range(0, len(names), size):
        patched = [transform(photos.images[name]) for name in names[start : start + size]]
        repeated = itertools.islice(itertools.cycle(patched), max(smallest, len(patched)))
        yield collate(photos_name(bucket, start // size), list(repeated), bucket.tokens)


def photos_name(bucket: Bucket, number: int) -> str:
    return f"photos-{bucket.tokens}-{number}"
