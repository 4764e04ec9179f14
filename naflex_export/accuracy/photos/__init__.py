"""The photos that a model is judged on, and batches of them."""

from __future__ import annotations

import contextlib
import errno
import itertools
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

from naflex_export.errors import RequestError
from naflex_export.grid import Bucket

if TYPE_CHECKING:
    from torch import Tensor

    from naflex_export.batch import Batch

FEWEST = 8
"""Photos that neighbours are searched among: of fewer, one neighbour that changes is too large a part."""

LEAST = 2 * FEWEST
"""Photos to calibrate on, half of which are searched among instead."""


@dataclass(frozen=True)
class Photos:
    """The photos of a folder.

    Attributes:
        images: RGB images by file name, with the folders that it lies in; decoded when they are looked up.
        skipped: for each file left out, its name and why.
        left_out: why there are none at all; empty where there are.
    """

    images: Mapping[str, Image.Image]
    skipped: dict[str, str]
    left_out: str = ""


def photos_for(why_none: str, folder: Path | None = None) -> Photos:
    """Return the photos to judge a model on, none for one that takes no photos, with a warning.

    Args:
        why_none: why the model takes none; empty where it does.
        folder: of photos; None for those that ship with the package.

    Raises:
        RequestError: a folder was given for a model that takes none, or as `load_photos`.
    """
    if not why_none:
        return load_photos(folder)
    if folder is not None:
        raise RequestError(
            f"photos of {str(folder)!r} cannot be judged on: {why_none}. Leave the images (--images) out, and the "
            "model is judged on generated batches alone"
        )
    warnings.warn(f"{why_none}: it is judged on generated batches alone", stacklevel=3)
    return Photos({}, {}, why_none)


def load_photos(folder: Path | None = None) -> Photos:
    """Return the photos of a folder and of the folders in it, by default the three that ship with the package.

    A file that is no image is skipped, and counted in `skipped`.

    Raises:
        RequestError: the folder is missing, cannot be read, or holds no image.
    """
    pattern = "*.jpg" if folder is None else "**/*"
    folder = folder or Path(str(resources.files(__name__)))
    paths = _files_of(folder, pattern)
    images: dict[str, Path] = {}
    skipped: dict[str, str] = {}
    for name, path in paths.items():
        try:
            _decoded(path)
            images[name] = path
        except Exception as error:  # decoders raise errors of any class on damaged files
            truncated = isinstance(error, OSError) and "truncated" in str(error)
            skipped[name] = "truncated image" if truncated else "not an image"
    if not images:
        raise RequestError(_no_image(folder, paths))
    return Photos(DecodedOnce(images), skipped)


def check_folder(folder: Path) -> None:
    """Check that a folder holds a photo, by a look at its files until there is one.

    Raises:
        RequestError: the folder is missing, cannot be read, or holds no image.
    """
    paths = _files_of(folder)
    for path in paths.values():
        with contextlib.suppress(Exception):  # decoders raise errors of any class on damaged files
            _decoded(path)
            return
    raise RequestError(_no_image(folder, paths))


def _files_of(folder: Path, pattern: str = "**/*") -> dict[str, Path]:
    """Return the files of a folder and of those in it, but for hidden ones, by name."""
    try:
        if not folder.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, "not a folder" if folder.exists() else "it does not exist")
        found = {path.relative_to(folder).as_posix(): path for path in sorted(folder.glob(pattern)) if path.is_file()}
    except OSError as error:
        raise RequestError(
            f"image folder {str(folder)!r} cannot be read ({error.strerror}): expected a folder of photos"
        ) from error
    return {name: path for name, path in found.items() if not re.search(r"(^|/)\.", name)}


def _no_image(folder: Path, paths: Mapping[str, Path]) -> str:
    return f"image folder {str(folder)!r} holds no image among its {len(paths)} files: expected at least one photo"


class DecodedOnce(Mapping[str, Image.Image]):
    """Photos by name, each decoded when it is looked up and kept by nobody: of a folder all would be gigabytes.

    Args:
        paths: of photos that can be decoded, by name.
    """

    def __init__(self, paths: Mapping[str, Path]) -> None:
        self._paths = dict(paths)

    def __getitem__(self, name: str) -> Image.Image:
        path = self._paths[name]
        try:
            return _decoded(path)
        except Exception as error:  # it could be decoded a moment ago
            raise RequestError(f"photo {str(path)!r} cannot be read any more: {error}") from error

    def __iter__(self) -> Iterator[str]:
        return iter(self._paths)

    def __len__(self) -> int:
        return len(self._paths)


class _Some(Mapping[str, Image.Image]):
    """Some of other photos, by name, each looked up there."""

    def __init__(self, images: Mapping[str, Image.Image], names: Sequence[str]) -> None:
        self._images, self._names = images, dict.fromkeys(names)

    def __getitem__(self, name: str) -> Image.Image:
        if name not in self._names:
            raise KeyError(name)
        return self._images[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def every_other(photos: Photos, first: int) -> Photos:
    """Return every other photo: from 0 on those that layers are calibrated on, from 1 on those that are held out.

    Args:
        photos: of a folder.
        first: 0 or 1, the place of the first.
    """
    return replace(photos, images=_Some(photos.images, list(photos.images)[first::2]))


def _decoded(path: Path) -> Image.Image:
    with Image.open(path) as image:
        return image.convert("RGB")


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
    from naflex_export.batch import collate

    names = list(photos.images)
    smallest, size, _ = bucket.batch
    for start in range(0, len(names), size):
        patched = [transform(photos.images[name]) for name in names[start : start + size]]
        repeated = itertools.islice(itertools.cycle(patched), max(smallest, len(patched)))
        yield collate(photos_name(bucket, start // size), list(repeated), bucket.tokens)


def photos_name(bucket: Bucket, number: int) -> str:
    return f"photos-{bucket.tokens}-{number}"
