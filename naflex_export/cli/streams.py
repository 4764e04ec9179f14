"""What a command prints to: losing standard output is an error of its own, and losing standard error is none.

A print that fails looks to whoever writes a file at that time like a fault of that file. And what goes on, or what a
photo lacks, is said on standard error: where nobody can hear it, the work is as good as ever.
"""

from __future__ import annotations

import contextlib
import io
import os
import sys
from collections.abc import Iterator
from typing import Any

from naflex_export.errors import NaflexExportError

UNEXPECTED, UNREAD = 70, 141
"""Exit codes: of a fault, which must not look like a verdict; and 128 and SIGPIPE's number, where nobody reads."""


class OutputLost(NaflexExportError):
    """Standard output takes no more: its disk is full, it is closed, or whoever read it reads no further."""

    def __init__(self, error: OSError) -> None:
        super().__init__(f"standard output cannot be written ({error.strerror})")
        self.exit_code = UNREAD if isinstance(error, BrokenPipeError) else UNEXPECTED


class _Output(io.FileIO):
    def write(self, data: Any) -> int:
        try:
            return super().write(data)
        except OSError as error:
            raise OutputLost(error) from None


class _Remarks(io.FileIO):
    def write(self, data: Any) -> int:
        try:
            return super().write(data)
        except OSError:
            return len(data)


@contextlib.contextmanager
def guarded() -> Iterator[None]:
    """Guard the process's own streams for as long as the block runs; what was put in their place stays.

    Raises:
        OutputLost: standard output cannot be written, wherever the block does so.
    """
    before = sys.stdout, sys.stderr
    if os.name == "posix":
        if sys.stdout is sys.__stdout__:
            sys.stdout = _text(_Output, 1, sys.stdout)
        if sys.stderr is sys.__stderr__:
            sys.stderr = _text(_Remarks, 2, sys.stderr)
    try:
        yield
    finally:
        after = sys.stdout, sys.stderr
        sys.stdout, sys.stderr = before
        for own, old in zip(after, before, strict=True):
            if own is not old and own is not None:
                own.flush()


def drop_output() -> None:
    """Have what is still to be written to standard output go nowhere, as it does at the end of Python."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.close(nowhere)


def hold_streams() -> None:
    """Put something in the place of a stream that is closed, to which writing fails as before.

    Else the next file that is opened takes its number, and what a library prints goes into that file.
    """
    for number, way in enumerate((os.O_WRONLY, os.O_RDONLY, os.O_RDONLY)):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, way), True)  # the lowest number that is free: this one


def _text(kind: type[io.FileIO], number: int, like: Any) -> Any:
    """Return a stream of text to a file that stays open, with the encoding of another, if there is one."""
    if like is None:
        with contextlib.suppress(OSError):
            return io.TextIOWrapper(io.BufferedWriter(kind(number, "w", closefd=False)), "utf-8", line_buffering=True)
        return None
    raw = io.BufferedWriter(kind(number, "w", closefd=False))
    return io.TextIOWrapper(raw, like.encoding, like.errors, line_buffering=like.line_buffering)
