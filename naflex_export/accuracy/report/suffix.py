"""A report's path: which format its suffix says, looked at ahead of all work and so without torch, and its file."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

from naflex_export.errors import RequestError

Report = TypeVar("Report")

SUFFIXES = (".html", ".json", ".md", ".xml")
"""Of reports, by which their format is told."""


def check_report(path: Path) -> None:
    """Check that a report's path says a format.

    Raises:
        RequestError: its suffix is that of none.
    """
    if path.suffix not in SUFFIXES:
        raise RequestError(f"report {str(path)!r} ends in {path.suffix!r}: expected one of {', '.join(SUFFIXES)}")


def write_report(report: Report, path: Path, formats: Mapping[str, Callable[[Report], str]]) -> None:
    """Write a report in the format that its path's suffix says, in a folder that is made if it is not there.

    Args:
        report: to write.
        path: of the file.
        formats: what makes text of it, for each of `SUFFIXES`.

    Raises:
        RequestError: the suffix is another, or the file cannot be written.
    """
    check_report(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(formats[path.suffix](report), encoding="utf-8")
    except OSError as error:
        raise RequestError(f"report {str(path)!r} cannot be written: {error.strerror}") from error
