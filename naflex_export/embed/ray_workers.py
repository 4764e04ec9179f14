"""Shards made by actors of a Ray cluster: on as many machines as it has, which share the disk of photos and shards.

An actor takes a shard at a time, and commits it as every worker does. So what was killed, an actor, a machine or the
run itself, has lost the shards that were in work, and no more. An actor gets its first shard once it is there: one that
the cluster has no room for keeps nothing from the others.
"""

from __future__ import annotations

import os
import platform
from collections import Counter, deque
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from naflex_export.embed import shards
from naflex_export.embed.embed_request import MOST_ENDS, EmbedRequest, Tell, make_shard
from naflex_export.embed.embedder import Embedder
from naflex_export.embed.ray_cluster import require_ray
from naflex_export.embed.shards import Run
from naflex_export.embed.sources import Source
from naflex_export.errors import BackendError, NaflexExportError, RequestError, first_line
from naflex_export.version import __version__

START_SECONDS = 600
"""How long the first actor may take to be there."""


class ShardActor:
    """What runs in an actor's process. Its methods return the package's errors: Ray would wrap what they raise.

    Args:
        request: what to do.
        run: what the shards are of.
        folder: where paths start that are not absolute.
    """

    def __init__(self, request: EmbedRequest, run: Run, folder: str) -> None:
        self._request, self._run, self._folder = request, run, folder
        self._embedder: Embedder | None = None

    def start(self, version: str) -> NaflexExportError | None:
        """Look whether this machine has what the run needs, and open the artifact.

        Args:
            version: of the package where the run was begun.
        """
        return _returned(partial(self._start, version))

    def _start(self, version: str) -> None:
        node, request = platform.node(), self._request
        if version != __version__:
            raise BackendError(f"naflex_export on {node} is {__version__}: expected {version}, as where the run began")
        if Path(self._folder).is_dir():
            os.chdir(self._folder)
        for path in request.photos:
            if not path.exists():
                raise RequestError(f"{node} does not see {str(path)!r}: expected a folder that all machines share")
        if shards.run_in(request.out) != self._run:
            raise RequestError(f"{node} does not see this run in {str(request.out)!r}: expected a shared folder")
        self._embedder = request.embedder()

    def make(self, number: int, photos: Source) -> tuple[int, int] | NaflexExportError | None:
        """Make a shard and return how many photos it has, and how many of them failed.

        Args:
            number: of the shard.
            photos: of the shard.
        """
        return _returned(partial(self._make, number, photos))

    def _make(self, number: int, photos: Source) -> tuple[int, int]:
        assert self._embedder is not None
        failures: list[int] = []
        make_shard(self._embedder, photos, self._request.out, number, lambda _, failed: failures.append(failed))
        return len(failures), sum(failures)


def _returned(function: Callable[[], Any]) -> Any:
    try:
        return function()
    except NaflexExportError as error:
        return error


def make_by_actors(request: EmbedRequest, source: Source, run: Run, left: list[int], tell: Tell) -> None:
    """Have actors of the cluster that ray is connected to make shards; a shard whose actor ends is made by another.

    Args:
        request: what to do. Without `workers` there are as many actors as the cluster has processors, or GPUs where its
            `device` is one.
        source: all photos.
        run: what the shards are of.
        left: the numbers of those to make.
        tell: is told of photos once their shard is there.

    Raises:
        BackendError: actors end over and over, or none is started.
        NaflexExportError: what an actor met.
    """
    ray = require_ray()
    needs = {"num_cpus": 1, "num_gpus": int((request.device or "").startswith("cuda"))}
    there = int(ray.cluster_resources().get("GPU" if needs["num_gpus"] else "CPU", 0))
    actors = ray.remote(ShardActor).options(**needs)
    waiting, ends = deque(left), Counter[int | None]()
    working: dict[Any, tuple[Any, int | None]] = {}

    def begin() -> None:
        actor = actors.remote(request, run, str(Path.cwd()))
        working[actor.start.remote(__version__)] = (actor, None)

    for _ in range(min(request.workers or max(1, there), len(left))):
        begin()
    has_begun = False
    while waiting or any(number is not None for _, number in working.values()):
        done, _ = ray.wait(list(working), num_returns=1, timeout=None if has_begun else START_SECONDS)
        if not done:
            raise BackendError(
                f"Ray started no actor within {START_SECONDS} s: expected {needs['num_cpus']} free processor"
                f"{' and a GPU' if needs['num_gpus'] else ''} in the cluster, which has {there}"
            )
        has_begun = True
        actor, number = working.pop(done[0])
        try:
            found = ray.get(done[0])
        except ray.exceptions.RayActorError as error:  # the actor or its machine is gone
            ends[number] += 1
            _check_ends(ends, number, run, source, error)
            if number is not None:
                waiting.appendleft(number)
            begin()
            continue
        if isinstance(found, NaflexExportError):
            raise found
        if found is not None:
            tell(*found)
        if waiting:
            following = waiting.popleft()
            photos = source.part(*run.places(following))
            working[actor.make.remote(following, photos)] = (actor, following)


def _check_ends(ends: Counter[int | None], number: int | None, run: Run, source: Source, error: Exception) -> None:
    if ends[number] < MOST_ENDS:
        return
    said = first_line(error)
    if number is None:
        raise BackendError(
            f"{MOST_ENDS} actors ended before their first shard ({said}): is naflex_export installed on all machines?"
        ) from error
    start, stop = run.places(number)
    raise BackendError(
        f"an actor ended {MOST_ENDS} times over photos {source.names[start]!r} to {source.names[stop - 1]!r} ({said}): "
        "is there too little memory? Try fewer --workers, or a smaller --batch"
    ) from error
