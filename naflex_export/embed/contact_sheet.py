"""A page that shows a sample of photos beside their nearest neighbours: what people want to see first."""

from __future__ import annotations

import html
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from naflex_export.embed.parquet import require_pyarrow
from naflex_export.embed.shards import Run, shard_paths
from naflex_export.embed.sources import Source
from naflex_export.embed.thumbnail import thumbnail
from naflex_export.errors import PhotoError, RequestError

ROWS, NEIGHBOURS = 12, 6

MOST_COMPARED = 20_000
"""Photos among which neighbours are looked for, evenly spread: enough to look at, and little memory."""

_STYLE = """
body { font: 14px/1.4 system-ui, sans-serif; margin: 2rem; background: #fff; color: #222; }
.row { display: flex; gap: .5rem; align-items: flex-start; margin-bottom: 1rem; overflow-x: auto; }
figure { margin: 0; width: 168px; flex: none; }
figure:first-child { border-right: 3px solid #888; margin-right: .5rem; }
img { max-width: 160px; max-height: 160px; display: block; }
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


def write_sheet(path: Path, out: Path, run: Run, source: Source) -> None:
    """Write a page with a sample of photos beside their nearest neighbours.

    Args:
        path: of the page.
        out: the folder of the shards, all of them there.
        run: what they are of.
        source: of the photos.

    Raises:
        RequestError: no photo has a vector, or the page cannot be written.
    """
    places, vectors = _sampled(out, run)
    if not len(places):
        raise RequestError("no photo has a vector: there is nothing to show on a contact sheet")
    rows = []
    for index in np.linspace(0, len(places) - 1, min(ROWS, len(places))).round().astype(int):
        likeness = vectors @ vectors[index]
        likeness[index] = np.inf  # itself first
        nearest = np.argsort(-likeness, kind="stable")[: 1 + NEIGHBOURS]
        rows.append("".join(_figure(source, int(places[one]), float(likeness[one])) for one in nearest))
    body = "\n".join(f'<div class="row">{row}</div>' for row in rows)
    title = f"{len(rows)} of {run.count} photos beside their nearest neighbours"
    among = f"Cosine of their vectors, among {len(places)} photos; the artifact's manifest is {run.artifact[:12]}."
    page = (
        f'<!doctype html>\n<html lang="en"><meta charset="utf-8"><title>{title}</title><style>{_STYLE}</style>\n'
        f"<h1>{title}</h1>\n<p>{among}</p>\n{body}\n</html>\n"
    )
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(page, encoding="utf-8")
    except OSError as error:
        raise RequestError(f"--contact-sheet {str(path)!r} cannot be written: {error.strerror}") from error


def _sampled(out: Path, run: Run) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Return the places of photos that have a vector, evenly spread, and their vectors at length 1."""
    pq = require_pyarrow("parquet")
    step = -(-run.count // MOST_COMPARED)
    places: list[int] = []
    vectors: list[NDArray[np.float32]] = []
    for number, path in zip(run.shards, shard_paths(out, run), strict=True):
        start, _ = run.places(number)
        for index, vector in enumerate(pq.read_table(path, columns=["vector"])["vector"]):
            if (start + index) % step == 0 and vector.is_valid:
                places.append(start + index)
                vectors.append(np.asarray(vector.values, np.float32))
    if not places:
        return np.empty(0, np.int64), np.empty((0, 0), np.float32)
    stacked = np.stack(vectors)
    return np.array(places), stacked / np.maximum(np.linalg.norm(stacked, axis=1, keepdims=True), 1e-12)


def _figure(source: Source, place: int, likeness: float) -> str:
    name = source.names[place]
    caption = html.escape(name.rsplit("/", 1)[-1]) + ("" if np.isinf(likeness) else f"<br>{likeness:.3f}")
    try:
        (photo,) = source.read(place, place + 1)
        picture = thumbnail(photo)
    except PhotoError as error:
        return f"<figure>{html.escape(str(error))}<figcaption>{caption}</figcaption></figure>"
    return (
        f'<figure title="{html.escape(name)}"><img src="{picture}" alt="{html.escape(name)}">'
        f"<figcaption>{caption}</figcaption></figure>"
    )
