"""What `embed_files` is asked for, and how one shard of it is made, by whichever process."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from naflex_export.embed import shards
from naflex_export.embed.embedder import Embedded, Embedder
from naflex_export.embed.photo_digest import Digests
from naflex_export.embed.sources import Source
from naflex_export.errors import RequestError

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
        workers: processes, or actors of Ray; a single process is this one. None for one process, or for as many actors
            as the cluster has room for.
        ray: address of a Ray cluster whose actors make the shards, as for `ray_cluster.cluster`; None for none.
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
    workers: int | None = None
    ray: str | None = None
    shard: int = 1024
    policy: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("workers", "shard"):
            value = getattr(self, name)
            if (type(value) is not int or value < 1) and not (name == "workers" and value is None):
                raise RequestError(f"{name}={value!r}: expected an integer of at least 1")

    def embedder(self) -> Embedder:
        """Return what embeds its photos."""
        names = ("tokens", "batch", "threads", "device", "patch_size", "trusted", "verify")
        return Embedder(self.artifact, **{name: getattr(self, name) for name in names}, **self.policy)


def make_shard(embedder: Embedder, photos: Source, out: Path, number: int, tell: Tell) -> None:
    """Embed the photos of a shard and write it.

    Args:
        embedder: with what.
        photos: of the shard.
        out: the folder of the shards.
        number: of the shard.
        tell: is told of each photo.
    """
    found: list[Embedded] = []
    with Digests() as digests:
        for one in embedder.results(digests.of(photos.read(0, len(photos.names)))):
            found.append(one)
            tell(1, int(one.error is not None))
        shards.write(out, number, photos.names, found, embedder.width, digests=digests.all())
