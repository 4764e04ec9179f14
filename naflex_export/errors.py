"""Every error this package raises on purpose; each carries the exit code of the command line."""

from __future__ import annotations

import errno


class NaflexExportError(Exception):
    """Root of all errors raised on purpose. The message gives the value, what was expected and what to do."""

    exit_code = 2


class RequestError(NaflexExportError):
    """What was asked for cannot be done as asked: a wrong argument, file, folder, model or input."""


class ArtifactError(RequestError):
    """An artifact's folder is missing, damaged or not what its manifest says."""


class InputError(RequestError):
    """A Runner was called with inputs outside what its artifact accepts."""


class ClosedError(RequestError):
    """A Runner was called after it was closed."""


class PhotoError(RequestError):
    """A photo cannot be read, is larger than the limit, or is of a kind that has no plain meaning as RGB."""


class PhotosFailed(RequestError):
    """Some photos could not be read, and all were asked for."""


class UnsupportedModelError(RequestError):
    """The model, or one of its options, is not known to this release."""


class BackendError(NaflexExportError):
    """A backend package or a device that the request needs is missing."""

    exit_code = 3


class RejectedError(NaflexExportError):
    """The candidate was rejected, by a graph check, by a backend's builder or by the gate; nothing is published.

    Its exit code is that of a verdict, and no other error has it.
    """

    exit_code = 1


class BuildError(RejectedError):
    """A graph check or a backend's builder rejected the model."""


class GateFailure(RejectedError):
    """The candidate's outputs are further from the reference than its dtype allows."""


def tells_of_a_full_disk(error: BaseException) -> bool:
    """Whether what a compiler or a writer says, or what that came from, is that a disk is full, or a quota met."""
    seen: BaseException | None = error
    while seen is not None:
        is_full = isinstance(seen, OSError) and seen.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        if is_full or any(words in str(seen) for words in ("No space left on device", "File too large")):
            return True
        seen = seen.__cause__ or seen.__context__
    return False


def first_line(error: BaseException) -> str:
    """Return the first line of what an error of another library says, or its class's name where it says nothing."""
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0][:300].rstrip(".")
