"""What a run of `naflex-embed` leaves on disk: parquet shards, each there whole or not at all, and what they are of.

A shard holds the photos from one place to another in the order of their source, so that the files in the folder say
which photos are done. It is written under another name, flushed to the disk and renamed.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from naflex_export.embed.embedder import Embedded
from naflex_export.embed.parquet import require_pyarrow
from naflex_export.embed.sources import RUN
from naflex_export.errors import NaflexExportError, RequestError
from naflex_export.serving.publish import flush_folder

fcntl: Any
try:
    import fcntl
except ImportError:  # Windows has none: there two runs into one folder are not told apart
    fcntl = None


ORIGIN = "_made_from.json"
"""Where the artifact and the photos were: no part of what a run is, for they may be moved."""

PARTIAL = ".tmp"
_SHARD = re.compile(r"part-(\d{8})\.parquet", re.ASCII)


@dataclass(frozen=True)
class Run:
    """What a folder's shards are of: where any of it differs, a run is another one.

    Attributes:
        artifact: sha256 of the manifest.
        photos: hash of the photos' names in their order.
        count: how many photos there are.
        shard: photos of a shard.
        settings: what else the vectors depend on.
    """

    artifact: str
    photos: str
    count: int
    shard: int
    settings: dict[str, Any]

    @property
    def shards(self) -> range:
        """The numbers of all shards."""
        return range(-(-self.count // self.shard))

    def places(self, number: int) -> tuple[int, int]:
        """Return where a shard's photos begin and end."""
        return number * self.shard, min((number + 1) * self.shard, self.count)


@contextlib.contextmanager
def claimed(folder: Path, run: Run) -> Iterator[list[int]]:
    """Hold a folder for a run and give the numbers of the shards that are yet to be made.

    Of a run that is refused before its first shard nothing stays in the folder.

    Args:
        folder: for the shards; made where it is missing.
        run: what they are of.

    Raises:
        RequestError: the folder holds something else, or another run's shards, cannot be written to, or another process
            writes to it.
    """
    was_there = folder.exists()
    with contextlib.ExitStack() as lock:
        try:
            done = _begun(folder, run, lock)
        except OSError as error:
            raise _unwritable(folder, error) from error
        try:
            yield [number for number in run.shards if number not in done]
        except NaflexExportError:
            _forget(folder, was_there)
            raise


def _begun(folder: Path, run: Run, lock: contextlib.ExitStack) -> set[int]:
    """Return the shards that are there, once the folder is locked, of this run and free of what a killed one left."""
    folder.mkdir(parents=True, exist_ok=True)
    found = sorted(path.name for path in folder.iterdir())
    if strangers := [name for name in found if not _is_ours(name)]:
        raise RequestError(
            f"{str(folder)!r} holds {strangers[0]!r}, which is no shard: expected a new folder, or one that a run began"
        )
    has_shards = any(_SHARD.fullmatch(name) for name in found)
    if has_shards and RUN not in found:
        raise RequestError(f"{str(folder)!r} holds shards and no {RUN}: expected a new folder, or one that a run began")
    handle = os.open(folder, os.O_RDONLY)
    lock.callback(os.close, handle)
    if fcntl is not None:
        _lock(handle, folder)
    for name in found:
        if name.endswith(PARTIAL):
            (folder / name).unlink(missing_ok=True)
    if has_shards:
        _check_same(folder, run)
    else:
        _commit(folder, RUN, lambda path: path.write_text(json.dumps(asdict(run), indent=2) + "\n"))
    return {int(match[1]) for name in found if (match := _SHARD.fullmatch(name))}


def _forget(folder: Path, was_there: bool) -> None:
    """Remove what a run without a shard wrote, and the folder if the run made it."""
    with contextlib.suppress(OSError):  # what is wrong with it is being said
        if not any(_SHARD.fullmatch(path.name) for path in folder.iterdir()):
            for name in (RUN, ORIGIN):
                (folder / name).unlink(missing_ok=True)
            if not was_there:
                folder.rmdir()


def _is_ours(name: str) -> bool:
    own = name.startswith(".") and name.endswith(PARTIAL)
    return own or name in (RUN, ORIGIN) or bool(_SHARD.fullmatch(name))


@dataclass(frozen=True)
class Origin:
    """Where the artifact and the photos of a run were.

    Attributes:
        artifact: its folder, from the root of the disk.
        weights: sha256 of its model's weights, those of a text tower among them; artifacts of other targets share it.
        photos: what was given for photos.
        base: the folder that relative paths of photos, and names in shards, begin at.
        tokenizer: sha256 of the file that makes tokens of texts; None of an artifact without a text tower, and where an
            earlier release noted nothing.
    """

    artifact: str
    weights: str
    photos: tuple[str, ...]
    base: str
    tokenizer: str | None = None


def note_origin(folder: Path, origin: Origin) -> None:
    """Write where a run's artifact and photos are, in place of where they were.

    Args:
        folder: of the run, claimed.
        origin: to be noted.

    Raises:
        RequestError: it cannot be written.
    """
    try:
        _commit(folder, ORIGIN, lambda path: path.write_text(json.dumps(asdict(origin), indent=2) + "\n"))
    except OSError as error:
        raise _unwritable(folder, error) from error


def read_run(folder: Path) -> tuple[Run, Origin | None]:
    """Return what a folder's shards are of, and where that was; None for the latter where it was not noted.

    Args:
        folder: of the run.

    Raises:
        RequestError: it is no folder of a run, or one of its shards is missing.
    """
    try:
        run = Run(**json.loads((folder / RUN).read_text(encoding="utf-8")))
    except FileNotFoundError as error:
        raise RequestError(
            f"{str(folder)!r} holds no {RUN}: expected a folder of vectors, as naflex-embed --out writes it"
        ) from error
    except (OSError, ValueError, TypeError) as error:
        raise RequestError(f"{RUN} in {str(folder)!r} cannot be read ({error}): embed the photos again") from error
    for path in shard_paths(folder, run):
        if not path.is_file():
            raise RequestError(
                f"{str(folder)!r} has no {path.name}: the run did not come to its end; begin it again, and it goes on"
            )
    with contextlib.suppress(OSError, ValueError, TypeError):
        fields = json.loads((folder / ORIGIN).read_text(encoding="utf-8"))
        return run, Origin(**{**fields, "photos": tuple(map(str, fields["photos"]))})
    return run, None


def _lock(handle: int, folder: Path) -> None:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise RequestError(f"another run writes to {str(folder)!r}: wait for it, or give another folder") from error
    except OSError:  # of some disks on a network, which have no locks
        return


def run_in(folder: Path) -> Run | None:
    """Return what a folder's shards are of; None where no run was begun.

    Args:
        folder: of the shards.

    Raises:
        RequestError: it cannot be read.
    """
    try:
        return Run(**json.loads((folder / RUN).read_text(encoding="utf-8")))
    except FileNotFoundError:
        return None
    except (ValueError, TypeError) as error:
        raise RequestError(f"{RUN} in {str(folder)!r} cannot be read ({error}): give another folder") from error


def _check_same(folder: Path, run: Run) -> None:
    before = run_in(folder)
    words = {"artifact": "another artifact", "photos": "other photos", "count": "other photos", "shard": "--shard"}
    for name, value in asdict(run).items():
        if getattr(before, name) != value:
            own = f"{words.get(name, name)}: {getattr(before, name)!r} there, {value!r} now"
            raise RequestError(
                f"{str(folder)!r} holds vectors of {own}; give another folder, or what it was begun with"
            )


def write(
    folder: Path,
    number: int,
    names: Sequence[str],
    found: Sequence[Embedded],
    width: int,
    *,
    digests: Sequence[str | None],
) -> None:
    """Write a shard: `path`, `grid` as (height, width), `vector`, `error` and `sha256` of each photo.

    Args:
        folder: of the run.
        number: of the shard.
        names: of its photos.
        found: what became of them.
        width: values in a vector.
        digests: the sha256 of each photo's bytes, as `photo_digest` has them.

    Raises:
        RequestError: it cannot be written, as on a full disk; nothing is left of it.
    """
    pa, pq = require_pyarrow(), require_pyarrow("parquet")
    path = pa.array([text_of(name) for name in names], pa.string())
    table = pa.table({"path": path, **columns_of(found, width), "sha256": pa.array(digests, pa.string())})
    try:  # a dictionary of vectors, of which none is there twice, would add a fifth to a file and take most of the time
        _commit(
            folder, f"part-{number:08d}.parquet", lambda path: pq.write_table(table, path, use_dictionary=["error"])
        )
    except OSError as error:
        raise _unwritable(folder, error) from error


def columns_of(found: Sequence[Embedded], width: int) -> dict[str, Any]:
    """Return the arrow arrays `grid` as (height, width), `vector` and `error`.

    Args:
        found: what became of photos.
        width: values in a vector.
    """
    pa = require_pyarrow()
    grid_type, vector_type = pa.list_(pa.int32(), 2), pa.list_(pa.float32(), width)
    return {
        "grid": pa.array([None if one.grid is None else list(one.grid) for one in found], grid_type),
        "vector": pa.array([one.vector for one in found], vector_type),
        "error": pa.array([None if one.error is None else str(one.error) for one in found], pa.string()),
    }


def text_of(name: str) -> str:
    """Return a name as text that parquet can hold, whatever bytes a file's name has.

    Args:
        name: of a photo.
    """
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def _commit(folder: Path, name: str, write: Any) -> None:
    """Have a file be there whole: written under another name, on the disk before it has its own."""
    partial = folder / f".{name}.{uuid.uuid4().hex}{PARTIAL}"  # another machine may have a process of the same id
    try:
        write(partial)
        with partial.open("rb") as file:
            os.fsync(file.fileno())
        partial.replace(folder / name)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    flush_folder(folder)


def _unwritable(folder: Path, error: OSError) -> RequestError:
    is_full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    what = "make room and run it again: it goes on where it was" if is_full else "give another folder"
    return RequestError(f"{str(folder)!r} cannot be written to ({error.strerror or error}): {what}")


def shard_paths(folder: Path, run: Run) -> list[Path]:
    """Return the files of all shards, in order."""
    return [folder / f"part-{number:08d}.parquet" for number in run.shards]


def failures(folder: Path, run: Run) -> Iterator[tuple[str, str]]:
    """Yield the name of each photo that failed, and why."""
    pq = require_pyarrow("parquet")
    for path in shard_paths(folder, run):
        table = pq.read_table(path, columns=["path", "error"])
        for name, error in zip(table["path"].to_pylist(), table["error"].to_pylist(), strict=True):
            if error is not None:
                yield name, error
