"""The sizes of photos, from their headers: no pixel is decoded."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from naflex_export.embed.sources import LIST, in_folder, listed
from naflex_export.errors import RequestError


def photo_paths(given: Sequence[Path]) -> Iterator[Path]:
    """Yield the files that folders, lists and paths of photos stand for, each folder's in order of their names.

    Hidden files and folders are left out, and those that a folder links to.

    Args:
        given: folders, to whatever depth; `.txt` files with a path a line, relative to the list; or photos.

    Raises:
        RequestError: one does not exist or cannot be read.
    """
    for path in given:
        try:
            if not path.exists():
                raise RequestError(f"{str(path)!r} does not exist: expected a folder of photos, a list or a photo")
            if path.is_dir():
                yield from (file for file in map(Path, in_folder(path)) if file.is_file())
            elif path.suffix.lower() == LIST:
                yield from map(Path, listed(path))
            else:
                yield path
        except OSError as error:
            raise RequestError(
                f"{str(path)!r} cannot be read ({error.strerror}): expected a folder of photos, a list or a photo"
            ) from error


def sizes_in_headers(paths: Iterable[Path], unreadable: dict[Path, str]) -> Iterator[tuple[int, int]]:
    """Yield the (height, width) in pixels of each photo, as it is stored.

    Turned by its EXIF orientation a photo has as many tokens: the size rule is the same for height and width.

    Args:
        paths: of the photos.
        unreadable: is told of each other file and why it is none.
    """
    for path in paths:
        try:
            with Image.open(path) as image:
                width, height = image.size
        except Exception as error:  # decoders raise errors of any class on damaged files
            unreadable[path] = _why(error)
            continue
        yield height, width


def _why(error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):
        return "not an image"
    if isinstance(error, Image.DecompressionBombError):
        return "more pixels than PIL reads"
    with contextlib.suppress(AttributeError):
        if error.strerror:  # type: ignore[attr-defined]
            return str(error.strerror)  # type: ignore[attr-defined]
    return str(error).strip().splitlines()[0][:100] if str(error).strip() else type(error).__name__
