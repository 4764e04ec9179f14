"""Which format a report's path says, by its suffix: looked at ahead of all work, and so without torch."""

from __future__ import annotations

from pathlib import Path

from naflex_export.errors import RequestError

SUFFIXES = (".html", ".json", ".md", ".xml")
"""Of reports, by which their format is told."""


def check_report(path: Path) -> None:
    """Check that a report's path says a format.

    Raises:
        RequestError: its suffix is that of none.
    """
    if path.suffix not in SUFFIXES:
        raise RequestError(f"report {str(path)!r} ends in {path.suffix!r}: expected one of {', '.join(SUFFIXES)}")
