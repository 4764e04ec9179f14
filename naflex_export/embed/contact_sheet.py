"""A page of photos: a sample beside their nearest neighbours, what people want to see first; or what a search found."""

from __future__ import annotations

import html
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from naflex_export.embed.decode import Photo
from naflex_export.embed.found_photos import Found, FoundPhotos
from naflex_export.embed.parquet import require_pyarrow
from naflex_export.embed.photo_digest import proved
from naflex_export.embed.shards import Run, shard_paths
from naflex_export.embed.sources import Source
from naflex_export.embed.thumbnail import thumbnail
from naflex_export.errors import PhotoError, RequestError
from naflex_export.serving.publish import check_outside_artifacts

ROWS, NEIGHBOURS = 12, 6

MOST_COMPARED = 20_000
"""Photos among which neighbours are looked for, evenly spread: enough to look at, and little memory."""

_STYLE = """
body { font: 14px/1.4 system-ui, sans-serif; margin: 2rem; background: #fff; color: #222; }
h1 { font-size: 1.4rem; } h2 { font-size: 1.1rem; overflow-wrap: anywhere; }
.found { display: flex; gap: 1rem; flex-wrap: wrap; margin-bottom: 2rem; }
.found figure { border: 0; margin: 0; }
@media (max-width: 480px) { body { margin: 1rem; } .found figure { width: calc(50% - .5rem); } }
.row { display: flex; gap: .5rem; align-items: flex-start; margin-bottom: 1rem; overflow-x: auto; }
figure { margin: 0; width: 168px; flex: none; }
.row figure:first-child { border-right: 3px solid #888; margin-right: .5rem; }
.gap { border: 1px dashed #888; padding: .5rem; min-height: 80px; font-size: 12px; overflow-wrap: anywhere; }
img { max-width: min(160px, 100%); max-height: 160px; display: block; }
figcaption { font-size: 11px; color: #666; overflow-wrap: anywhere; }
@media (prefers-color-scheme: dark) { body { background: #181818; color: #ddd; } figcaption { color: #999; } }
"""


def check_sheet(path: Path, out: Path) -> None:
    """Check that a page may be written to a path.

    Args:
        path: of the page.
        out: the folder of the shards, which holds nothing else.

    Raises:
        RequestError: it may not.
    """
    if path.suffix.lower() not in (".html", ".htm"):
        raise RequestError(f"--contact-sheet {str(path)!r} ends in {path.suffix!r}: expected .html")
    if path.resolve().parent == out.resolve():
        raise RequestError(f"--contact-sheet {str(path)!r} lies among the shards: give a place outside of {str(out)!r}")
    check_outside_artifacts(path)


def write_sheet(path: Path, out: Path, run: Run, source: Source) -> list[tuple[str, str]]:
    """Write a page with a sample of photos beside their nearest neighbours, and return which are not shown and why.

    A photo that is gone or another by now, which vectors of a run that went on may tell of, is a gap with its name.

    Args:
        path: of the page.
        out: the folder of the shards, all of them there.
        run: what they are of.
        source: of the photos.

    Raises:
        RequestError: no photo has a vector, or the page cannot be written.
    """
    places, vectors, digests = _sampled(out, run)
    if not len(places):
        raise RequestError("no photo has a vector: there is nothing to show on a contact sheet")
    missing: dict[str, str] = {}

    def read(place: int, sha256: str | None) -> Photo:
        try:
            return proved(_read(source, place), sha256)
        except PhotoError as error:
            missing[source.names[place]] = str(error)
            raise

    rows = []
    for index in np.linspace(0, len(places) - 1, min(ROWS, len(places))).round().astype(int):
        likeness = vectors @ vectors[index]
        likeness[index] = np.inf  # itself first
        nearest = np.argsort(-likeness, kind="stable")[: 1 + NEIGHBOURS]
        captions = ["" if np.isinf(likeness[one]) else f"{likeness[one]:.3f}" for one in nearest]
        figures = (
            _figure(source.names[places[one]], partial(read, int(places[one]), digests[one]), caption)
            for one, caption in zip(nearest, captions, strict=True)
        )
        rows.append("".join(figures))
    body = "\n".join(f'<div class="row">{row}</div>' for row in rows)
    title = f"{len(rows)} of {run.count} photos beside their nearest neighbours"
    among = f"Cosine of their vectors, among {len(places)} photos; the artifact's manifest is {run.artifact[:12]}."
    _write_page(path, title, among, body)
    return list(missing.items())


def write_found(path: Path, run: Run, photos: FoundPhotos, found: Mapping[str, Sequence[Found]]) -> None:
    """Write a page with what a search found; in the place of a photo that is another by now, its name and why.

    Args:
        path: of the page.
        run: what the searched vectors are of.
        photos: reads what was found.
        found: for each query the photos, the best first.

    Raises:
        RequestError: the page cannot be written.
    """
    parts = []
    for query, nearest in found.items():
        figures = "".join(
            _figure(one.name, partial(photos.read, one), f"{one.likeness:.3f}, {one.probability:.0%}")
            for one in nearest
        )
        parts.append(f'<h2>{html.escape(query)}</h2>\n<div class="found">{figures}</div>')
    said = (
        f"The nearest of {run.count} photos: cosine of the photo's vector with the text's, and the probability that "
        f"the model gives the pair; the artifact's manifest is {run.artifact[:12]}."
    )
    title = html.escape(", ".join(found))
    _write_page(path, f"Photos by words: {title}", said, "\n".join(parts))


def _write_page(path: Path, title: str, said: str, body: str) -> None:
    page = (
        f'<!doctype html>\n<html lang="en"><meta charset="utf-8">'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><title>{title}</title>'
        f"<style>{_STYLE}</style>\n<h1>{title}</h1>\n<p>{said}</p>\n{body}\n</html>\n"
    )
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(page, encoding="utf-8")
    except OSError as error:
        raise RequestError(f"--contact-sheet {str(path)!r} cannot be written: {error.strerror}") from error


def _sampled(out: Path, run: Run) -> tuple[NDArray[np.int64], NDArray[np.float32], list[str | None]]:
    """Return the places of photos that have a vector, evenly spread, their vectors at length 1, and their digests."""
    pq = require_pyarrow("parquet")
    step = -(-run.count // MOST_COMPARED)
    places: list[int] = []
    vectors: list[NDArray[np.float32]] = []
    digests: list[str | None] = []
    for number, path in zip(run.shards, shard_paths(out, run), strict=True):
        start, _ = run.places(number)
        with pq.ParquetFile(path) as file:  # of an earlier release without digests, which it leaves out
            table = file.read(columns=["vector", "sha256"])
        there = table["sha256"].to_pylist() if "sha256" in table.column_names else [None] * len(table)
        for index, vector in enumerate(table["vector"]):
            if (start + index) % step == 0 and vector.is_valid:
                places.append(start + index)
                vectors.append(np.asarray(vector.values, np.float32))
                digests.append(there[index])
    if not places:
        return np.empty(0, np.int64), np.empty((0, 0), np.float32), []
    stacked = np.stack(vectors)
    return np.array(places), stacked / np.maximum(np.linalg.norm(stacked, axis=1, keepdims=True), 1e-12), digests


def _read(source: Source, place: int) -> Photo:
    (photo,) = source.read(place, place + 1)
    return photo


def _figure(name: str, read: Callable[[], Photo], said: str) -> str:
    caption = html.escape(name.rsplit("/", 1)[-1]) + (f"<br>{said}" if said else "")
    try:
        picture = thumbnail(read())
    except PhotoError as error:
        why = html.escape(str(error))
        return (
            f'<figure title="{html.escape(name)}"><div class="gap">{why}</div>'
            f"<figcaption>{caption}</figcaption></figure>"
        )
    return (
        f'<figure title="{html.escape(name)}"><img src="{picture}" alt="{html.escape(name)}">'
        f"<figcaption>{caption}</figcaption></figure>"
    )
