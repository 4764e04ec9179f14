"""Where photos come from, in an order that is the same each time: folders, lists, WebDataset tars, parquet files.

Each photo has a name and a place in that order, so that a run that was cut off can go on.
"""

from __future__ import annotations

import copy
import hashlib
import itertools
import os
import tarfile
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from naflex_export.embed.decode import Photo
from naflex_export.embed.parquet import require_pyarrow
from naflex_export.errors import RequestError

RUN = "_run.json"
"""With a name that readers of a folder of parquet files leave out."""

SUFFIXES = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm", ".pgm"),
    *(".avif", ".heic", ".heif", ".jp2", ".jxl"),
)
"""Of files in folders and tars that are taken for photos; a list may name others. What cannot be read is an error."""

LIST, TAR, PARQUET = ".txt", ".tar", ".parquet"

BYTES = ("image", "bytes", "jpg", "jpeg", "png", "webp", "content", "data")
"""Columns that hold photos, the first that is there; of a structure, its field `bytes`."""


class Source(ABC):
    """Photos in a fixed order.

    Attributes:
        names: of them all.
    """

    names: Sequence[str]

    @abstractmethod
    def read(self, start: int, stop: int) -> Iterator[Photo]:
        """Yield the photos from one place to another, as paths or bytes.

        Args:
            start: place of the first.
            stop: place after the last.
        """

    @abstractmethod
    def part(self, start: int, stop: int) -> Source:
        """Return the photos from one place to another as a source by itself, to be handed to another process.

        Args:
            start: place of the first.
            stop: place after the last.
        """


class Files(Source):
    """Files by their paths, which are their names."""

    def __init__(self, paths: Sequence[str]) -> None:
        self.names = paths

    def read(self, start: int, stop: int) -> Iterator[Photo]:
        yield from self.names[start:stop]

    def part(self, start: int, stop: int) -> Files:
        return Files(self.names[start:stop])


class Tar(Source):
    """The photos in an uncompressed tar, as WebDataset has them, by where they lie in it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with tarfile.open(path, "r:") as archive:
                found = [
                    (member.name, member.offset_data, member.size)
                    for member in archive
                    if member.isreg() and _is_photo(Path(member.name).name)
                ]
        except tarfile.TarError as error:
            raise RequestError(
                f"{str(path)!r} cannot be read as a tar ({error}): expected one that is whole and not compressed"
            ) from error
        self.names = [f"{path}/{name}" for name, _, _ in found]
        self._places = [(offset, size) for _, offset, size in found]

    def read(self, start: int, stop: int) -> Iterator[Photo]:
        with self.path.open("rb") as file:
            for offset, size in self._places[start:stop]:
                file.seek(offset)
                yield file.read(size)

    def part(self, start: int, stop: int) -> Tar:
        made = copy.copy(self)
        made.names, made._places = self.names[start:stop], self._places[start:stop]
        return made


class Parquet(Source):
    """The rows of a parquet file with a column of image files' bytes; a row's name ends in its number."""

    def __init__(self, path: Path) -> None:
        self.path = path
        pq = require_pyarrow("parquet")
        try:
            with pq.ParquetFile(path) as file:
                self._column = _column_of_bytes(file.schema_arrow, path)
                groups = [file.metadata.row_group(index).num_rows for index in range(file.num_row_groups)]
        except (OSError, ValueError) as error:  # pyarrow's own are of the latter
            raise RequestError(f"{str(path)!r} cannot be read as parquet ({_first_line(error)})") from error
        self._starts = [0, *itertools.accumulate(groups)]
        self._first = 0
        self.names = [f"{path}#{row}" for row in range(self._starts[-1])]

    def read(self, start: int, stop: int) -> Iterator[Photo]:
        start, stop = start + self._first, stop + self._first
        groups = [
            index
            for index, (first, end) in enumerate(itertools.pairwise(self._starts))
            if first < stop and start < end and first < end
        ]
        with require_pyarrow("parquet").ParquetFile(self.path) as file:
            row = self._starts[groups[0]] if groups else stop
            for batch in file.iter_batches(batch_size=16, row_groups=groups, columns=[self._column]):
                column = batch.column(0)
                for index in range(len(column)):
                    if start <= row < stop:
                        value = column[index].as_py()
                        value = value.get("bytes") if isinstance(value, dict) else value
                        yield b"" if value is None else value
                    row += 1

    def part(self, start: int, stop: int) -> Parquet:
        made = copy.copy(self)
        made.names, made._first = self.names[start:stop], self._first + start
        return made


class Several(Source):
    """Sources one after the other."""

    def __init__(self, parts: Sequence[Source]) -> None:
        self.parts = parts
        self.names = [name for part in parts for name in part.names]
        self._starts = [0, *itertools.accumulate(len(part.names) for part in parts)]

    def read(self, start: int, stop: int) -> Iterator[Photo]:
        for part, inside in self._between(start, stop):
            yield from part.read(inside.start, inside.stop)

    def part(self, start: int, stop: int) -> Several:
        return Several([part.part(inside.start, inside.stop) for part, inside in self._between(start, stop)])

    def _between(self, start: int, stop: int) -> Iterator[tuple[Source, range]]:
        """Yield the sources that photos from one place to another are of, and their places there."""
        for part, first in zip(self.parts, self._starts, strict=False):
            inside = range(max(start - first, 0), min(stop - first, len(part.names)))
            if inside:
                yield part, inside


def source_of(given: Sequence[Path]) -> Source:
    """Return the photos that paths stand for.

    Args:
        given: folders of photos, of tars or of parquet files, to whatever depth, hidden ones left out; tars and parquet
            files; `.txt` files with a path a line, relative to the list; or photos themselves.

    Raises:
        RequestError: one does not exist, cannot be read, or there is no photo.
    """
    parts: list[Source] = []
    for path in given:
        try:
            parts += _parts_of(path)
        except OSError as error:
            raise RequestError(
                f"{str(path)!r} cannot be read ({error.strerror or error}): expected a folder of photos, a list, a tar "
                "or a parquet file"
            ) from error
    found = Several(parts)
    if not found.names:
        shown = ", ".join(repr(str(path)) for path in given)
        raise RequestError(f"there is no photo in {shown}: expected files that end in {', '.join(SUFFIXES[:5])} or so")
    return found


def fingerprint(source: Source) -> str:
    """Return a hash of the names of all photos in their order."""
    digest = hashlib.sha256()
    for name in source.names:
        digest.update(name.encode("utf-8", "surrogateescape") + b"\0")
    return digest.hexdigest()


def _parts_of(path: Path) -> list[Source]:
    if path.is_dir():
        files = list(in_folder(path))
        if tars := [file for file in files if file.lower().endswith(TAR)]:
            return [Tar(Path(file)) for file in tars]
        if tables := [file for file in files if file.lower().endswith(PARQUET)]:
            return [Parquet(Path(file)) for file in tables]
        return [Files([file for file in files if _is_photo(Path(file).name)])]
    if not path.exists():
        raise FileNotFoundError(2, "it does not exist")
    kinds: dict[str, Any] = {TAR: Tar, PARQUET: Parquet, LIST: lambda path: Files(listed(path))}
    of_suffix = kinds.get(path.suffix.lower())
    return [of_suffix(path) if of_suffix else Files([os.fspath(path)])]


def in_folder(folder: Path) -> Iterator[str]:
    """Yield the paths of the files in a folder, to whatever depth, in order.

    Left out are hidden ones, linked folders, and folders of vectors, which `naflex-embed` may have written there.

    Raises:
        OSError: a folder cannot be read.
    """

    def refuse(error: OSError) -> None:
        raise error

    for where, folders, names in os.walk(folder, onerror=refuse):
        if RUN in names and Path(where) != folder:
            folders.clear()
            continue
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (str(Path(where) / name) for name in sorted(names) if not name.startswith("."))


def listed(path: Path) -> list[str]:
    """Return the paths that a list has, one a line and relative to it.

    Raises:
        RequestError: it is no text.
        OSError: it cannot be read.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise RequestError(f"{str(path)!r} is no text in UTF-8: expected a list of photos, a path a line") from error
    return [str(path.parent / line.strip()) for line in lines if line.strip()]


def _is_photo(name: str) -> bool:
    return name.lower().endswith(SUFFIXES) and not name.startswith(".")


def _column_of_bytes(schema: Any, path: Path) -> str:
    pa = require_pyarrow()

    def is_bytes(kind: Any) -> bool:
        return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))

    fields = {field.name: field.type for field in schema}
    for name in (*(name for name in BYTES if name in fields), *fields):
        kind = fields[name]
        if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0 and is_bytes(kind.field("bytes").type):
            return f"{name}.bytes"
        if is_bytes(kind):
            return name
    raise RequestError(
        f"{str(path)!r} has no column of bytes among {', '.join(fields)}: expected one of image files, such as 'image'"
    )


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]
