"""Shards made by worker processes of this machine; one that is killed is replaced, and its shard made again."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
from collections import Counter, deque
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Any

from naflex_export.embed.embed_request import MOST_ENDS, EmbedRequest, Tell, make_shard
from naflex_export.embed.embedder import Embedder
from naflex_export.embed.shards import Run
from naflex_export.embed.sources import Source
from naflex_export.errors import BackendError, NaflexExportError


@dataclass
class _Worker:
    process: Any
    pipe: Connection
    number: int | None = None
    told: tuple[int, int] = (0, 0)


def make_by_processes(request: EmbedRequest, source: Source, run: Run, left: list[int], tell: Tell) -> None:
    """Have worker processes make shards; a shard whose worker ends is made by another.

    Args:
        request: what to do.
        source: all photos.
        run: what the shards are of.
        left: the numbers of those to make.
        tell: is told of photos as they are done, and of numbers below 0 where they are to be done again.

    Raises:
        BackendError: workers end over and over.
        NaflexExportError: what a worker raised.
    """
    waiting, ends = deque(left), Counter[int]()
    processes = min(request.workers or 1, len(left))
    working: dict[Connection, _Worker] = {}
    with ExitStack() as started:
        while waiting or any(worker.number is not None for worker in working.values()):
            while waiting and len(working) < processes:
                worker = _started(request, processes)
                started.callback(_end, worker.process)
                working[worker.pipe] = worker
            for worker in working.values():
                if worker.number is None and waiting:
                    worker.number, worker.told = waiting.popleft(), (0, 0)
                    _send(worker.pipe, (worker.number, source.part(*run.places(worker.number))))
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


def _started(request: EmbedRequest, processes: int) -> _Worker:
    """Return a new worker process, one of so many, which takes its share of the machine's cores."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with _environment("OMP_NUM_THREADS", str(max(1, cores // processes))):
        process = context.Process(target=_work, args=(theirs, request, os.getpid()), daemon=True)
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


def _work(pipe: Connection, request: EmbedRequest, parent: int) -> None:
    """Make the shards that a pipe asks for, until it closes. This is a worker process's whole life."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends it

    def tell(photos: int, failed: int) -> None:
        if os.getppid() != parent:
            sys.exit(1)
        pipe.send(("photos", (photos, failed)))

    try:
        embedder: Embedder | None = None
        while True:
            number, photos = pipe.recv()
            if embedder is None:
                embedder = request.embedder()
            make_shard(embedder, photos, request.out, number, tell)
            pipe.send(("done", number))
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return
    except NaflexExportError as error:
        pipe.send(("error", error))


def _send(pipe: Connection, shard: tuple[int, Source]) -> None:
    try:
        pipe.send(shard)
    except OSError:  # it has ended, which the next receipt finds
        return


def _end(process: Any) -> None:
    process.terminate()
    process.join()
