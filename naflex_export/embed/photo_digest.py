"""What a photo was when it was embedded, by the sha256 of its bytes: whether another photo has its name by now."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType

from naflex_export.embed.decode import Photo
from naflex_export.errors import PhotoError
from naflex_export.serving.manifest import sha256_of


def bytes_of(photo: Photo) -> bytes:
    """Return the bytes of a photo that a source gave.

    Args:
        photo: a path or bytes, as a source gives them.

    Raises:
        PhotoError: its file cannot be read.
    """
    if isinstance(photo, bytes):
        return photo
    try:
        return Path(photo).read_bytes()  # type: ignore[arg-type]
    except OSError as error:
        raise PhotoError(f"{str(photo)!r} cannot be read ({error.strerror or error})") from error


CHANGED = "it has changed since it was embedded"
"""What is said of a photo of another digest."""


def proved(photo: Photo, sha256: str | None) -> Photo:
    """Return a photo once it is known to be the one that was embedded.

    Args:
        photo: a path or bytes, as a source gives them.
        sha256: of its bytes when it was embedded; None of vectors of an earlier release, which nothing proves.

    Raises:
        PhotoError: its file cannot be read, or holds another photo by now.
    """
    if sha256 is None:
        return photo
    there = bytes_of(photo)
    if digest_of(there) != sha256:
        raise PhotoError(CHANGED)
    return there


def digest_of(photo: Photo) -> str | None:
    """Return the sha256 of a photo's bytes; None of a file that cannot be read.

    Args:
        photo: a path or bytes, as a source gives them.
    """
    if isinstance(photo, bytes):
        return hashlib.sha256(photo).hexdigest()
    try:
        return sha256_of(Path(photo))  # type: ignore[arg-type]
    except OSError:
        return None


class Digests:
    """The digests of photos that go by, made by a thread beside whoever takes the photos."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="naflex-digest")
        self._made: list[Future[str | None]] = []

    def __enter__(self) -> Digests:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)

    def of(self, photos: Iterable[Photo]) -> Iterator[Photo]:
        """Yield photos as they are, and have a digest made of each.

        Args:
            photos: paths or bytes.
        """
        for photo in photos:
            self._made.append(self._pool.submit(digest_of, photo))
            yield photo

    def all(self) -> list[str | None]:
        """Return the digests of all photos that went by, in their order."""
        return [one.result() for one in self._made]
