"""`nx.ray`: the photos of a Ray dataset to vectors, in the dataset or in the shards of `naflex-embed`.

Ray is imported by whoever has the dataset; nothing here imports it before it is used.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from naflex_export.embed.embed_files import embed_source
from naflex_export.embed.embed_request import EmbedRequest
from naflex_export.embed.embedder import Embedder
from naflex_export.embed.parquet import require_pyarrow
from naflex_export.embed.preprocess import Preprocessor
from naflex_export.embed.ray_cluster import AUTO, require_ray
from naflex_export.embed.shards import columns_of, shard_paths
from naflex_export.embed.sources import BYTES, Files
from naflex_export.errors import RequestError

if TYPE_CHECKING:
    from ray.data import Dataset

PATHS = ("path", "item")
"""Columns that hold photos' paths, where there are no photos themselves."""

ADDED = ("grid", "vector", "error")


class Vectors:
    """The callable of `map_batches`: a table of photos to the same table with `grid`, `vector` and `error`.

    A photo that cannot be read fails nothing but itself: it has an error, and neither grid nor vector.

    Args:
        artifact: its folder, as a machine of the cluster sees it.
        column: that holds the photos; found by its name where it is empty.
        options: for the `Embedder`.
    """

    def __init__(self, artifact: str, column: str, options: dict[str, Any]) -> None:
        self._embedder, self._column = Embedder(artifact, **options), column

    def __call__(self, table: Any) -> Any:
        """Return an arrow table with what became of each photo.

        Args:
            table: an arrow table of photos.
        """
        column = table.column(_column_of(table.column_names, self._column, (*BYTES, *PATHS)))
        found = list(self._embedder.results(_photo_of(photo) for photo in column.to_pylist()))
        for name, values in columns_of(found, self._embedder.width).items():
            table = table.append_column(name, values)
        return table


def embed(
    dataset: Dataset,
    artifact: Path | str,
    *,
    out: Path | str | None = None,
    column: str = "",
    workers: int | None = None,
    rows: int = 256,
    shard: int = 1024,
    **options: Any,
) -> Dataset:
    """Return a Ray dataset with the columns `grid`, `vector` and `error` of each photo.

    Without `out` it is a lazy dataset of the same rows: photos are embedded as Ray executes it, by a pool of actors,
    and how much of a run that was killed is kept is up to what it is written with. With `out` the photos are those that
    the dataset names by their paths, in the order of these; they are embedded now into the shards of `naflex-embed`,
    which goes on where it was killed, and the dataset of those shards is returned.

    Actors hold their processors: a cluster has to have some left for what reads the dataset.

    Args:
        dataset: with a column of image files' bytes, arrays [height, width, channels] of uint8, or paths.
        artifact: its folder, which all machines see.
        out: a folder for shards, which all machines see.
        column: that holds the photos. By default the first there is of image, bytes, jpg, jpeg, png, webp, content and
            data, then path and item; with `out` of path and item.
        workers: actors. None for one, or with `out` for as many as the cluster has room for.
        rows: of a call of an actor, without `out`.
        shard: photos of a shard, with `out`.
        options: tokens, batch, threads, device, patch_size, trusted, verify and policies of photos, as for `Embedder`.

    Raises:
        ArtifactError, BackendError, RequestError: as `Embedder`; ray or pyarrow is missing; or the dataset has no such
            column.
    """
    require_pyarrow()
    data = require_ray("data")
    folder = Path(artifact).resolve()
    known = ("tokens", "batch", "threads", "device", "patch_size", "trusted", "verify")
    policy = {name: value for name, value in options.items() if name not in known}
    Preprocessor.of(folder, patch_size=options.get("patch_size"), **policy)  # refused ahead of all the work
    if out is None:
        there = dataset.columns(fetch_if_missing=False)
        if there is not None:
            _column_of(there, column, (*BYTES, *PATHS))
        return dataset.map_batches(
            Vectors,
            fn_constructor_args=(str(folder), column, options),
            batch_format="pyarrow",
            batch_size=rows,
            compute=data.ActorPoolStrategy(size=workers or 1),
            num_cpus=1,
            num_gpus=int(str(options.get("device") or "").startswith("cuda")),
        )
    settings = {name: value for name, value in options.items() if name in known}
    request = EmbedRequest(
        folder, (), Path(out).resolve(), workers=workers, ray=AUTO, shard=shard, policy=policy, **settings
    )
    named = _column_of(dataset.columns(), column, PATHS)
    names = sorted(str(row[named]) for row in dataset.select_columns([named]).iter_rows())
    if not names:
        raise RequestError("the dataset has no rows: expected a photo a row")
    found = embed_source(request, Files(names), lambda photos, failed: None)
    return data.read_parquet([str(path) for path in shard_paths(request.out, found.run)])


def _column_of(there: Sequence[str] | None, asked: str, usual: Sequence[str]) -> str:
    """Return which column holds the photos, where none stands in the way of those that are added."""
    names = list(there or ())
    found = next((name for name in ([asked] if asked else usual) if name in names), None)
    if found is None:
        expected = repr(asked) if asked else ", ".join(usual)
        raise RequestError(f"the dataset has the columns {', '.join(names) or 'none'}: expected {expected}, of photos")
    if taken := [name for name in ADDED if name in names and usual is not PATHS]:
        raise RequestError(f"the dataset has a column {taken[0]!r} already: rename it, or leave it out")
    return found


def _photo_of(value: Any) -> Any:
    """Return what a row holds as a photo; bytes are often in a structure."""
    photo = value.get("bytes") if isinstance(value, dict) else value
    return b"" if photo is None else photo
