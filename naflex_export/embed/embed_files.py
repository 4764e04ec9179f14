"""`embed_files`: photos on a disk to vectors in parquet shards, by one process or several; it goes on where it was cut.

A run is cut into shards of so many photos. A process that is killed leaves the shards that it finished; so does the
whole run, which goes on with the others when it is begun again.
"""

from __future__ import annotations

import dataclasses
import multiprocessing
import os
import signal
import sys
from collections import Counter, deque
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from naflex_export.embed import shards
from naflex_export.embed.embedder import Embedded, Embedder
from naflex_export.embed.parquet import require_pyarrow
from naflex_export.embed.preprocess import Preprocessor
from naflex_export.embed.shards import Run
from naflex_export.embed.sources import Source, fingerprint, source_of
from naflex_export.errors import BackendError, NaflexExportError, RequestError
from naflex_export.serving.manifest import MANIFEST, sha256_of

MOST_ENDS = 3
"""How often a worker may end over one shard before the run is given up."""

Tell = Callable[[int, int], None]
"""Is told of photos that were embedded, and how many of them failed."""


@dataclass(frozen=True)
class EmbedRequest:
    """What is to be embedded, by what, and where to.

    Attributes:
        artifact: its folder.
        photos: folders, lists, tars, parquet files or photos, as for `source_of`.
        out: the folder of the shards.
        tokens, batch, threads, device, patch_size, trusted, verify: as for `Embedder`.
        workers: processes; one does it all by itself.
        shard: photos of a shard: what is lost at most when a process is killed.
        policy: for photos that are no plain RGB images, as for `Preprocessor.of`.
    """

    artifact: Path
    photos: tuple[Path, ...]
    out: Path
    tokens: int | None = None
    batch: int | None = None
    threads: int = 2
    device: str | None = None
    patch_size: int | None = None
    trusted: bool = True
    verify: str = "full"
    workers: int = 1
    shard: int = 1024
    policy: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("workers", "shard"):
            value = getattr(self, name)
            if type(value) is not int or value < 1:
                raise RequestError(f"{name}={value!r}: expected an integer of at least 1")

    def embedder(self) -> Embedder:
        """Return what embeds its photos."""
        names = ("tokens", "batch", "threads", "device", "patch_size", "trusted", "verify")
        return Embedder(self.artifact, **{name: getattr(self, name) for name in names}, **self.policy)


@dataclass(frozen=True)
class EmbedResult:
    """What a run came to.

    Attributes:
        run: what its shards are of.
        source: the photos.
        before: how many of them were done when it began.
        failures: name and fault of each bad photo.
    """

    run: Run
    source: Source
    before: int
    failures: tuple[tuple[str, str], ...]


def embed_files(request: EmbedRequest, tell: Tell = lambda photos, failed: None, began: Any = None) -> EmbedResult:
    """Embed photos into shards and return what became of them.

    Args:
        request: what to do.
        tell: is told of progress.
        began: is called with the number of all photos and of those that are done already.

    Raises:
        RequestError: there is no photo, the folder is another's or cannot be written to, or an argument is impossible.
        ArtifactError, BackendError: as `Embedder`; or pyarrow is missing, or workers end over and over.
    """
    require_pyarrow("parquet")
    Preprocessor.of(request.artifact, patch_size=request.patch_size, **request.policy)  # refused ahead of all the work
    source = source_of(request.photos)
    run = Run(
        artifact=sha256_of(request.artifact / MANIFEST),
        photos=fingerprint(source),
        count=len(source.names),
        shard=request.shard,
        settings={"tokens": request.tokens, "patch_size": request.patch_size, **request.policy},
    )
    with shards.claimed(request.out, run) as left:
        photos_left = sum(stop - start for start, stop in map(run.places, left))
        if began is not None:
            began(run.count, run.count - photos_left)
        if left and request.workers == 1:
            embedder = request.embedder()
            for number in left:
                make_shard(embedder, source, request.out, run, number, tell)
        elif left:
            _with_workers(request, source, run, left, tell)
        return EmbedResult(run, source, run.count - photos_left, tuple(shards.failures(request.out, run)))


def make_shard(embedder: Embedder, source: Source, out: Path, run: Run, number: int, tell: Tell) -> None:  # noqa: PLR0917
    """Embed the photos of a shard and write it.

    Args:
        embedder: with what.
        source: of the photos.
        out: the folder of the shards.
        run: what they are of.
        number: of the shard.
        tell: is told of each photo.
    """
    start, stop = run.places(number)
    found: list[Embedded] = []
    for one in embedder.results(source.read(start, stop)):
        found.append(one)
        tell(1, int(one.error is not None))
    shards.write(out, number, source.names[start:stop], found, embedder.width)


@dataclass
class _Worker:
    process: Any
    pipe: Connection
    number: int | None = None
    told: tuple[int, int] = (0, 0)


def _with_workers(request: EmbedRequest, source: Source, run: Run, left: list[int], tell: Tell) -> None:
    """Have worker processes make shards; a shard whose worker ends is made by another."""
    waiting, ends = deque(left), Counter[int]()
    working: dict[Connection, _Worker] = {}
    with ExitStack() as started:
        while waiting or any(worker.number is not None for worker in working.values()):
            while waiting and len(working) < min(request.workers, len(left)):
                worker = _started(request, source, run)
                started.callback(_end, worker.process)
                working[worker.pipe] = worker
            for worker in working.values():
                if worker.number is None and waiting:
                    worker.number, worker.told = waiting.popleft(), (0, 0)
                    _send(worker.pipe, worker.number)
            for pipe in wait([worker.pipe for worker in working.values() if worker.number is not None]):
                assert isinstance(pipe, Connection)
                worker = working[pipe]
                try:
                    said, value = pipe.recv()
                except (EOFError, OSError):
                    del working[pipe]
                    worker.process.join()
                    _give_back(worker, run, source, ends, tell)
                    waiting.appendleft(worker.number)  # type: ignore[arg-type]
                    continue
                if said == "error":
                    raise value
                if said == "done":
                    worker.number = None
                else:
                    worker.told = (worker.told[0] + value[0], worker.told[1] + value[1])
                    tell(*value)


def _give_back(worker: _Worker, run: Run, source: Source, ends: Counter[int], tell: Tell) -> None:
    """Take back what a worker that ended has told of the shard that it did not finish."""
    number = worker.number
    assert number is not None
    tell(-worker.told[0], -worker.told[1])
    ends[number] += 1
    if ends[number] >= MOST_ENDS:
        start, stop = run.places(number)
        raise BackendError(
            f"a worker ended {MOST_ENDS} times over photos {source.names[start]!r} to {source.names[stop - 1]!r}, at "
            f"last with exit code {worker.process.exitcode}: is there too little memory? Try fewer --workers, or a "
            "smaller --batch"
        )


def _started(request: EmbedRequest, source: Source, run: Run) -> _Worker:
    """Return a new worker process, which takes its share of the machine's cores."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with _environment("OMP_NUM_THREADS", str(max(1, cores // request.workers))):
        process = context.Process(target=_work, args=(theirs, request, source, run, os.getpid()), daemon=True)
        process.start()
    theirs.close()
    return _Worker(process, ours)


@contextmanager
def _environment(name: str, value: str) -> Iterator[None]:
    """Set a variable for as long as the block runs, unless the user has."""
    if name in os.environ:
        yield
        return
    os.environ[name] = value
    try:
        yield
    finally:
        del os.environ[name]


def _work(pipe: Connection, request: EmbedRequest, source: Source, run: Run, parent: int) -> None:
    """Make the shards that a pipe asks for, until it closes. This is a worker process's whole life."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends it

    def tell(photos: int, failed: int) -> None:
        if os.getppid() != parent:
            sys.exit(1)
        pipe.send(("photos", (photos, failed)))

    try:
        embedder: Embedder | None = None
        while True:
            number = pipe.recv()
            if embedder is None:
                embedder = dataclasses.replace(request, workers=1).embedder()
            make_shard(embedder, source, request.out, run, number, tell)
            pipe.send(("done", number))
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return
    except NaflexExportError as error:
        pipe.send(("error", error))


def _send(pipe: Connection, number: int) -> None:
    try:
        pipe.send(number)
    except OSError:  # it has ended, which the next receipt finds
        return


def _end(process: Any) -> None:
    process.terminate()
    process.join()
