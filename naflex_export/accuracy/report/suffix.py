"""A report's path: which format its suffix says, looked at ahead of all work and so without torch, and its file."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from naflex_export.errors import RequestError

Report = TypeVar("Report")

SUFFIXES = (".html", ".json", ".md", ".xml")
"""Of reports, by which their format is told."""

SUFFIXES_OF_VERDICTS = (".html", ".json")
"""Of verdicts on ports, likewise."""


def check_report(path: Path, suffixes: Sequence[str] = SUFFIXES) -> None:
    """Check that a report's path says a format, and that its file can be written, in a folder that is made if need be.

    Args:
        path: of the file.
        suffixes: of the formats that there are.

    Raises:
        RequestError: its suffix is that of none, or no file can be there.
    """
    if path.suffix not in suffixes:
        raise RequestError(f"report {str(path)!r} ends in {path.suffix!r}: expected one of {', '.join(suffixes)}")
    check_can_be_written(path)


def check_can_be_written(path: Path) -> None:
    """Check that a file can be written, in a folder that is there or can be made.

    Raises:
        RequestError: it cannot.
    """
    there = next(folder for folder in (path, *path.absolute().parents) if folder.exists())
    if path.is_dir():
        raise RequestError(f"{str(path)!r} cannot be written: it is a folder, expected a file")
    if there != path and not there.is_dir():
        raise RequestError(f"{str(path)!r} cannot be written: {str(there)!r} is no folder, give another place")
    if not os.access(there, os.W_OK):
        raise RequestError(f"{str(path)!r} cannot be written: {str(there)!r} is not yours to write to")


def write_report(report: Report, path: Path, formats: Mapping[str, Callable[[Report], str]]) -> None:
    """Write a report in the format that its path's suffix says, in a folder that is made if it is not there.

    Args:
        report: to write.
        path: of the file.
        formats: what makes text of it, by suffix.

    Raises:
        RequestError: the suffix is another, or the file cannot be written.
    """
    check_report(path, tuple(formats))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(formats[path.suffix](report), encoding="utf-8")
    except OSError as error:
        raise RequestError(f"report {str(path)!r} cannot be written: {error.strerror}") from error
