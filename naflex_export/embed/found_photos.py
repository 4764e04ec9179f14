"""The photos that a search found, to be shown: each is the one that was embedded, or it is said why it is not there.

A folder changes after it was embedded. So a photo is looked for by its path and not by its place among the others, and
shown only if it is proved to be the same: by the sha256 of its bytes. Vectors of an earlier release have no digests; of
them the path proves it, and where the photos have been moved, that there are as many, with all that were found at
their places by their names.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from naflex_export.embed.photo_digest import CHANGED, bytes_of, digest_of
from naflex_export.embed.shards import Origin, Run, text_of
from naflex_export.embed.sources import source_of
from naflex_export.errors import PhotoError, RequestError

MOST_TRIED = 64
"""Photos of one name that are compared, those whose folders agree most at first."""


@dataclass(frozen=True)
class Found:
    """A photo that a search found.

    Attributes:
        place: of the photo in its source.
        name: as its shard has it.
        likeness: cosine of its vector with the query's.
        probability: that the query is true of it, as the model's training has it.
        sha256: of its bytes when it was embedded; None of vectors of an earlier release.
    """

    place: int
    name: str
    likeness: float
    probability: float
    sha256: str | None = None


class FoundPhotos:
    """Reads photos that a search found, and refuses those that are others by now.

    Args:
        run: what was searched.
        origin: where its photos were; None where nobody noted it.
        found: in it, and to be shown.
        given: folders, lists, tars or photos, as they were given to `naflex-embed`, where they have been moved.

    Raises:
        RequestError: nobody says where they are, or nothing is there.
    """

    def __init__(self, run: Run, origin: Origin | None, found: Iterable[Found], given: Sequence[Path] = ()) -> None:
        if not given and (origin is None or not origin.photos):
            raise RequestError("the folder of vectors does not say where its photos are: give --photos")
        if given:
            self._base, where = None, list(given)
        else:
            assert origin is not None
            self._base, noted = origin.base, [Path(origin.base, photo) for photo in origin.photos]
            where = [path for path in noted if path.exists()] or noted  # what is gone is missing by its name
        self._source = source_of(where)
        self._found = {one.place: one for one in found}.values()
        self._places: dict[str, list[int]] = defaultdict(list)
        for place, name in enumerate(self._source.names):
            self._places[self._key(name)].append(place)
        self._is_whole = len(self._source.names) == run.count and all(
            one.place in self._places.get(self._key(one.name), []) for one in self._found
        )

    def read(self, found: Found) -> bytes:
        """Return the bytes of a photo that was found.

        Args:
            found: the photo.

        Raises:
            PhotoError: it is not there any more, or another photo has its name.
        """
        if found.sha256 is None and self._base is None and not self._is_whole:
            raise PhotoError("photos were added or removed since, and nothing tells it from others of its name")
        name = found.name if self._base is None else os.path.join(self._base, found.name)  # noqa: PTH118
        places = self._places.get(self._key(name), [])
        if not places:
            raise PhotoError("it is not there any more")
        if found.sha256 is None:
            return self._read(found.place if found.place in places else self._only(places))
        for place in sorted(places, key=lambda one: (-_agree(self._source.names[one], name), one))[:MOST_TRIED]:
            there = self._read(place)
            if digest_of(there) == found.sha256:
                return there
        raise PhotoError(CHANGED)

    def check(self) -> list[tuple[str, str]]:
        """Return the name of each photo that was found and cannot be shown, and why.

        Raises:
            RequestError: none of them can be shown.
        """
        missing: dict[str, str] = {}
        shown = 0
        for one in self._found:
            try:
                self.read(one)
                shown += 1
            except PhotoError as error:
                missing[one.name] = str(error)
        if missing and not shown:
            name, why = next(iter(missing.items()))
            raise RequestError(
                f"none of the {len(missing)} photos that were found can be shown; {name!r}, for one: {why}. Give the "
                "photos that were embedded with --photos, embed these, or take --no-sheet for paths alone"
            )
        return list(missing.items())

    def _key(self, name: str) -> str:
        """Return what a photo is looked up by: its path, or its file's name where all have been moved."""
        return text_of(name) if self._base is not None else text_of(name).rsplit("/", 1)[-1]

    @staticmethod
    def _only(places: list[int]) -> int:
        if len(places) > 1:
            raise PhotoError("several photos have its name")
        return places[0]

    def _read(self, place: int) -> bytes:
        for photo in self._source.read(place, place + 1):
            return bytes_of(photo)
        raise PhotoError("it is not there any more")


def _agree(one: str, other: str) -> int:
    """Return how many parts two paths have in common at their ends."""
    pairs = zip(reversed(Path(one).parts), reversed(Path(other).parts), strict=False)
    return next((count for count, (mine, theirs) in enumerate(pairs) if mine != theirs), len(Path(one).parts))
