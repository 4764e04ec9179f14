"""`embed_files`: photos on a disk to vectors in parquet shards, by one process or several; it goes on where it was cut.

A run is cut into shards of so many photos. A process that is killed leaves the shards that it finished; so does the
whole run, which goes on with the others when it is begun again.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from naflex_export.embed import shards
from naflex_export.embed.embed_request import EmbedRequest, Tell, make_shard
from naflex_export.embed.embed_workers import make_by_processes
from naflex_export.embed.parquet import require_pyarrow
from naflex_export.embed.preprocess import Preprocessor
from naflex_export.embed.ray_cluster import cluster
from naflex_export.embed.ray_workers import make_by_actors
from naflex_export.embed.shards import Run
from naflex_export.embed.sources import Source, fingerprint, source_of
from naflex_export.serving.device_name import check_device_name
from naflex_export.serving.manifest import MANIFEST, Manifest, sha256_of
from naflex_export.serving.text import tokenizer_sha256


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
    if request.device is not None:
        check_device_name(request.device)
    Preprocessor.of(request.artifact, patch_size=request.patch_size, **request.policy)  # refused ahead of all the work
    return embed_source(request, source_of(request.photos), tell, began)


def embed_source(request: EmbedRequest, source: Source, tell: Tell, began: Any = None) -> EmbedResult:
    """Do what `embed_files` does, with photos of any source.

    Args:
        request: what to do.
        source: of the photos.
        tell: is told of progress.
        began: as for `embed_files`.
    """
    run = Run(
        artifact=sha256_of(request.artifact / MANIFEST),
        photos=fingerprint(source),
        count=len(source.names),
        shard=request.shard,
        settings={"tokens": request.tokens, "patch_size": request.patch_size, **request.policy},
    )
    with ExitStack() as held:
        if request.ray is not None:
            held.enter_context(cluster(request.ray))
        left = held.enter_context(shards.claimed(request.out, run))
        shards.note_origin(request.out, _origin_of(request))
        photos_left = sum(stop - start for start, stop in map(run.places, left))
        if began is not None:
            began(run.count, run.count - photos_left)
        if left and request.ray is not None:
            make_by_actors(request, source, run, left, tell)
        elif left and request.workers in (None, 1):
            embedder = request.embedder()
            for number in left:
                make_shard(embedder, source.part(*run.places(number)), request.out, number, tell)
        elif left:
            make_by_processes(request, source, run, left, tell)
        return EmbedResult(run, source, run.count - photos_left, tuple(shards.failures(request.out, run)))


def _origin_of(request: EmbedRequest) -> shards.Origin:
    """Return what a search by words has to know, by the text tower of this artifact or of one of the same weights."""
    manifest = Manifest.read(request.artifact)
    return shards.Origin(
        artifact=str(request.artifact.resolve()),
        weights=manifest.model["weights_sha256"],
        photos=tuple(str(path) for path in request.photos),
        base=str(Path.cwd()),
        tokenizer=tokenizer_sha256(manifest),
    )
