"""`compare`: one artifact searching the photos that another has embedded, and what is found otherwise."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from naflex_export.embed.embedder import Embedder
from naflex_export.embed.sources import Source, source_of
from naflex_export.errors import RequestError
from naflex_export.progress import Observer, shown_progress
from naflex_export.reindex.compare_report import Compared, CompareReport, Found, Moved
from naflex_export.reindex.neighbours import searched, unit
from naflex_export.serving.manifest import Manifest

WORST = 12
"""Photos that a report shows, those of which least is found again."""

K, MIN_RECALL = 10, 0.95
"""The defaults: a page shows ten results, and of an index people accept that one in twenty is missed."""


@dataclass(frozen=True)
class CompareRequest:
    """How two artifacts are to be compared.

    Attributes:
        k: how many nearest photos are looked at.
        min_recall: the mean recall that passes, above 0 and at most 1.
        tokens: the most patches of a photo, for both; by default the largest bucket's of each.
        device: where to run; as for `load`.
        trusted: as for `load`.
        announce: called with what is being done.
    """

    k: int = K
    min_recall: float = MIN_RECALL
    tokens: int | None = None
    device: str | None = None
    trusted: bool = True
    announce: Callable[[str], None] = field(default=lambda step: None, compare=False)

    def __post_init__(self) -> None:
        if type(self.k) is not int or self.k < 1:
            raise RequestError(f"k={self.k!r}: expected an integer of at least 1")
        if isinstance(self.min_recall, bool) or not 0 < self.min_recall <= 1:
            raise RequestError(f"min_recall={self.min_recall!r}: expected a share above 0 and up to 1, such as 0.95")


def compare(
    old: Path | str,
    new: Path | str,
    photos: Path | str | Sequence[Path | str],
    *,
    k: int = K,
    min_recall: float = MIN_RECALL,
    tokens: int | None = None,
    device: str | None = None,
    trusted: bool = True,
    progress: bool = False,
) -> CompareReport:
    """Return whether an index that was built with one artifact may be searched with another.

    The photos are embedded by both. Recall is the share of each photo's k nearest, as the old artifact alone finds
    them, that the new one's vector finds among the old one's vectors; the photo itself is never counted.

    Args:
        old: folder of the artifact that the index was built with.
        new: folder of the artifact that is to search it.
        photos: a folder, a list, a tar or a parquet file, or several, as for `naflex-embed`.
        k: how many nearest photos are looked at.
        min_recall: the mean recall that passes, above 0 and at most 1.
        tokens: the most patches of a photo, for both; by default the largest bucket's of each.
        device: where to run; as for `load`.
        trusted: as for `load`: with False an artifact that holds code is refused.
        progress: show on standard error how far it is, as `export` does.

    Raises:
        RequestError: the vectors have different widths, there are too few photos that can be read, or an argument is
            not possible.
        ArtifactError, BackendError: as `load`.
    """
    given = [photos] if isinstance(photos, str | os.PathLike) else list(photos)
    observer = shown_progress() if progress else Observer()
    request = CompareRequest(k, min_recall, tokens, device, trusted, observer.announce)
    with observer.stage("compare"):
        return compare_artifacts(Path(old), Path(new), [Path(one) for one in given], request)


def compare_artifacts(old: Path, new: Path, photos: Sequence[Path], request: CompareRequest) -> CompareReport:
    """Return the report of `compare`.

    Args:
        old: folder of the artifact that the index was built with.
        new: folder of the artifact that is to search it.
        photos: as for `compare`.
        request: how to compare.

    Raises:
        RequestError, ArtifactError, BackendError: as `compare`.
    """
    sides = {"old": _opened(old, request), "new": _opened(new, request)}
    widths = {name: embedder.width for name, embedder in sides.items()}
    if widths["old"] != widths["new"]:
        raise RequestError(
            f"{str(old)!r} gives vectors of {widths['old']} values and {str(new)!r} of {widths['new']}: expected the "
            "same width, else no index holds both; build the index anew"
        )
    source = source_of(photos)
    vectors, bad = {}, dict[str, str]()
    for name, embedder in sides.items():
        vectors[name], failed = _embedded(embedder, source, name, request.announce)
        bad |= {photo: why for photo, why in failed.items() if photo not in bad}
    kept = [place for place, photo in enumerate(source.names) if photo not in bad]
    _check_enough(len(kept), len(bad), request.k)
    request.announce("searching")
    return CompareReport(
        k=request.k,
        min_recall=request.min_recall,
        photos=len(kept),
        bad_photos=bad,
        old=_compared(old, sides["old"].manifest),
        new=_compared(new, sides["new"].manifest),
        differences=_differences(sides["old"].manifest, sides["new"].manifest),
        source=source,
        **_found(source, kept, vectors["old"][kept], vectors["new"][kept], request.k),
    )


def _opened(path: Path, request: CompareRequest) -> Embedder:
    return Embedder(path, device=request.device, tokens=request.tokens, trusted=request.trusted)


def _embedded(
    embedder: Embedder, source: Source, name: str, announce: Callable[[str], None]
) -> tuple[NDArray[np.float32], dict[str, str]]:
    """Return the vectors [N, C] of all photos, zeros of a bad one, and what is wrong with each of those."""
    count = len(source.names)
    vectors, bad = np.zeros((count, embedder.width), np.float32), dict[str, str]()
    for place, found in enumerate(embedder.results(source.read(0, count))):
        if place % 16 == 0:
            announce(f"{name}: photo {place + 1} of {count}")
        if found.vector is not None:
            vectors[place] = found.vector
        else:
            bad[source.names[place]] = str(found.error)
    return vectors, bad


def _check_enough(good: int, bad: int, k: int) -> None:
    """Check that the k nearest of so many photos say something: that they are at most half of all others.

    Raises:
        RequestError: they do not.
    """
    if good <= 2 * k:
        besides = f", and {bad} that cannot be" if bad else ""
        raise RequestError(
            f"there are {good} photos that can be read{besides}: expected more than {2 * k}, for with fewer the {k} "
            "nearest are found by chance; give more photos, or a smaller k"
        )


def _found(
    source: Source, kept: Sequence[int], old_NC: NDArray[np.float32], new_NC: NDArray[np.float32], k: int
) -> dict[str, Any]:
    """Return what a report says of the vectors of the photos at some places of a source."""
    units = {"old": unit(old_NC), "new": unit(new_NC)}
    found = searched(units["old"], units["new"], k)
    cosines = (units["old"] * units["new"]).sum(axis=1)
    names = [source.names[place] for place in kept]

    def one(row: int, cosine: float) -> Found:
        return Found(names[row], kept[row], float(cosine))

    def nearest(rows: NDArray[np.intp], likeness: NDArray[np.float64]) -> tuple[Found, ...]:
        return tuple(one(row, cosine) for row, cosine in zip(rows.tolist(), likeness.tolist(), strict=True))

    return {
        "recall": float(found.recall.mean()),
        "overlap": float(found.overlap.mean()),
        "finds_itself": float(found.finds_itself.mean()),
        "cosines": tuple(cosines.tolist()),
        "nowhere": {
            side: [names[row] for row in np.flatnonzero(~values.any(axis=1)).tolist()] for side, values in units.items()
        },
        "worst": tuple(
            Moved(
                photo=one(row, cosines[row]),
                recall=float(found.recall[row]),
                old=nearest(found.old[row], found.old_cosines[row]),
                new=nearest(found.new[row], found.new_cosines[row]),
            )
            for row in np.lexsort((cosines, found.recall))[:WORST].tolist()
        ),
    }


def _compared(path: Path, manifest: Manifest) -> Compared:
    source = manifest.model.get("source", {})
    name = source.get("model") or manifest.model.get("architecture") or manifest.model.get("family", "")
    return Compared(
        str(path), str(name), str(manifest.model.get("weights_sha256", "")), manifest.target, manifest.dtype
    )


def _differences(old: Manifest, new: Manifest) -> tuple[str, ...]:
    """Return what the two manifests say otherwise that may move vectors, a line each."""
    sides = [
        {
            "model": one.model.get("architecture"),
            "weights": str(one.model.get("weights_sha256", ""))[:12],
            "target": one.target,
            "dtype": one.dtype,
            "kept in float32": ", ".join(one.precision.keep_float32),
            "tokens": max(bucket.tokens for bucket in one.buckets),
            **{f"preprocessing {name}": value for name, value in _preprocessing(one).items()},
        }
        for one in (old, new)
    ]
    names = list(dict.fromkeys([*sides[0], *sides[1]]))
    return tuple(
        f"{name}: {_said(sides[0].get(name))} in the old, {_said(sides[1].get(name))} in the new"
        for name in names
        if sides[0].get(name) != sides[1].get(name)
    )


def _preprocessing(manifest: Manifest) -> dict[str, Any]:
    from naflex_export.embed.preprocessing import Preprocessing

    return Preprocessing.of(manifest.preprocessing).fields()


def _said(value: object) -> str:
    return "nothing" if value in (None, "") else str(value)
