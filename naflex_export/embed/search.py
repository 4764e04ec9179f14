"""Search by words: the photos of an embedded collection whose vectors are nearest to a text's."""

from __future__ import annotations

import heapq
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from naflex_export.embed.found_photos import Found
from naflex_export.embed.parquet import require_pyarrow
from naflex_export.embed.run_arrays import open_text_run
from naflex_export.embed.shards import Origin, Run, read_run, shard_paths
from naflex_export.embed.sources import SUFFIXES
from naflex_export.errors import RequestError
from naflex_export.serving.manifest import MANIFEST, Manifest, sha256_of
from naflex_export.serving.text import tokenizer_sha256


@dataclass(frozen=True)
class SearchRequest:
    """What is to be looked for, and where.

    Attributes:
        vectors: the folder of a run of `naflex-embed`.
        queries: texts.
        artifact: its folder; None for where it was when the photos were embedded.
        top: how many photos of each query.
        device, trusted, verify: as for `load`.
    """

    vectors: Path
    queries: tuple[str, ...]
    artifact: Path | None = None
    top: int = 24
    device: str | None = None
    trusted: bool = True
    verify: str = "full"

    def __post_init__(self) -> None:
        if not self.queries or not all(query.strip() for query in self.queries):
            raise RequestError("a query is empty: expected words, such as 'a red bicycle'")
        for query in self.queries:
            if _is_photo(query):
                raise RequestError(
                    f"query {query!r} is a photo's file: expected words, such as 'a red bicycle'. examples/search.py "
                    "finds the photos that are nearest to a photo"
                )
        if type(self.top) is not int or self.top < 1:
            raise RequestError(f"top={self.top!r}: expected an integer of at least 1")


@dataclass(frozen=True)
class SearchResult:
    """What a search found.

    Attributes:
        run: what was searched.
        origin: where its photos were; None where nobody noted it.
        found: for each query the photos, the nearest first.
    """

    run: Run
    origin: Origin | None
    found: dict[str, tuple[Found, ...]]


def search(request: SearchRequest) -> SearchResult:
    """Return the photos that are nearest to each query.

    Args:
        request: what to look for.

    Raises:
        RequestError: the folder holds no vectors, or those of another model or tokenizer; or the artifact has no text
            tower.
        ArtifactError, BackendError: as `load`; or pyarrow is missing.
    """
    pq = require_pyarrow("parquet")
    run, origin = read_run(request.vectors)
    path = _artifact_of(request, run, origin)
    text = open_text_run(path, device=request.device, trusted=request.trusted, verify=request.verify)
    queries = list(dict.fromkeys(request.queries))
    texts = text.encode(queries)
    best: list[list[tuple[float, int, str, str | None]]] = [[] for _ in queries]
    for number, shard in zip(run.shards, shard_paths(request.vectors, run), strict=True):
        start, _ = run.places(number)
        with pq.ParquetFile(shard) as file:  # of an earlier release without digests, which it leaves out
            table = file.read(columns=["path", "vector", "sha256"])
        names, vectors = table["path"].to_pylist(), table["vector"]
        digests = table["sha256"].to_pylist() if "sha256" in table.column_names else [None] * len(names)
        rows = np.flatnonzero(np.array(vectors.is_valid().to_pylist(), bool))
        if not len(rows):
            continue
        flat = vectors.drop_null().combine_chunks().flatten().to_numpy(zero_copy_only=False)
        likeness = text.scoring.cosines(flat.reshape(len(rows), -1), texts)
        for column, heap in enumerate(best):
            for row in np.argsort(-likeness[:, column], kind="stable")[: request.top]:
                # negative places: of equal ones the first photo is kept
                place = int(rows[row])
                entry = (float(likeness[row, column]), -(start + place), names[place], digests[place])
                heapq.heappush(heap, entry)
                if len(heap) > request.top:
                    heapq.heappop(heap)
    if not best[0]:
        raise RequestError(
            f"no photo of {str(request.vectors)!r} has a vector: the column error of its shards says why; embed others"
        )
    found = {}
    for query, heap in zip(queries, best, strict=True):
        ordered = sorted(heap, reverse=True)
        probabilities = text.scoring.of_cosines(np.array([likeness for likeness, *_ in ordered]))
        found[query] = tuple(
            Found(-place, name, likeness, float(probability), digest)
            for (likeness, place, name, digest), probability in zip(ordered, probabilities, strict=True)
        )
    return SearchResult(run, origin, found)


def _is_photo(query: str) -> bool:
    """Whether a query names a photo that is there, which somebody may take for a search by photo."""
    try:
        return Path(query).suffix.lower() in SUFFIXES and Path(query).is_file()
    except (OSError, ValueError):  # too long for a name, or no name
        return False


def _artifact_of(request: SearchRequest, run: Run, origin: Origin | None) -> Path:
    """Return the artifact whose text tower is asked, once it is known that the vectors are of its model.

    An artifact has the tokenizer that its export was given. Of two of the same weights that have not the same one, one
    is wrong, and it is not known which.
    """
    path = request.artifact
    if path is None:
        if origin is None:
            raise RequestError(
                f"{str(request.vectors)!r} does not say where its artifact is, for an earlier release made the "
                "vectors: give --artifact DIR"
            )
        path = Path(origin.artifact)
        if not (path / MANIFEST).is_file():
            raise RequestError(
                f"the artifact that {str(request.vectors)!r} was made with is not at {origin.artifact!r} any more: "
                "give --artifact DIR"
            )
    manifest = Manifest.read(path)
    if manifest.text is None:
        raise RequestError(
            f"the artifact {str(path)!r} has no text tower: export the model again with --tower image,text, and give "
            "that artifact with --artifact; vectors of the same weights stay as they are"
        )
    if sha256_of(path / MANIFEST) == run.artifact:  # which lists the tokenizer's hash too
        return path
    if origin is None or origin.weights != manifest.model["weights_sha256"]:
        raise RequestError(
            f"{str(request.vectors)!r} holds vectors of another artifact (its manifest is {run.artifact[:12]}, that of "
            f"{str(path)!r} is {sha256_of(path / MANIFEST)[:12]}, of other weights): give the artifact that the photos "
            "were embedded with, or embed them again"
        )
    found = tokenizer_sha256(manifest)
    if origin.tokenizer not in (None, found):
        raise RequestError(
            f"{str(path)!r} has the weights that the photos of {str(request.vectors)!r} were embedded with, and "
            f"another tokenizer (its hash is {str(found)[:12]}, theirs {origin.tokenizer[:12]}): the words of a query "
            "would be other tokens. Give the artifact that the photos were embedded with, or embed them again with "
            "this one if its tokenizer is the right one"
        )
    return path
