"""Rows of results in CSV files: added to, never changed, and read back with the newest of each kind."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path

from naflex_export.errors import RequestError


def append(path: Path, fields: Sequence[str], rows: Sequence[Mapping[str, object]]) -> None:
    """Add rows to a CSV file, which is begun with its header where there is none.

    Args:
        path: of the file.
        fields: its columns, in order.
        rows: to add, each by column.

    Raises:
        RequestError: the file has other columns, or cannot be written.
        ValueError: a row has a column too many.
    """
    found = check_columns(path, fields)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, fields, lineterminator="\n")
            if not found:
                writer.writeheader()
            writer.writerows(rows)
    except OSError as error:
        raise RequestError(f"cannot write to {str(path)!r}: {error.strerror}") from error


def check_columns(path: Path, fields: Sequence[str]) -> bool:
    """Return whether a CSV file is there, with these columns.

    Raises:
        RequestError: it has others, or cannot be read.
    """
    if not path.exists():
        return False
    try:
        with path.open(newline="", encoding="utf-8") as file:
            found = next(csv.reader(file), [])
    except (OSError, UnicodeDecodeError) as error:
        raise RequestError(f"{str(path)!r} cannot be read as a CSV file ({error}): give another") from error
    if found != list(fields):
        raise RequestError(
            f"{str(path)!r} has the columns {', '.join(found) or 'of no header'}: expected {', '.join(fields)}; "
            "give another file, or move it away"
        )
    return True


def read(path: Path) -> list[dict[str, str]]:
    """Return the rows of a CSV file, none where there is no file."""
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def newest(rows: Sequence[Mapping[str, str]], key: Sequence[str]) -> list[dict[str, str]]:
    """Return the last row of each kind, in the order the kinds first came; a kind is what the columns of `key` say."""
    found: dict[tuple[str, ...], dict[str, str]] = {}
    for row in rows:
        found[tuple(row[name] for name in key)] = dict(row)
    return list(found.values())


def text(value: float | None, digits: int, factor: float = 1.0) -> str:
    """Return a figure with so many digits after the point, and nothing for one that could not be measured.

    Args:
        value: the figure, or None.
        digits: after the point.
        factor: to multiply the figure by, such as 1000 for ms.
    """
    return "" if value is None else f"{value * factor:.{digits}f}"


def mib(num_bytes: float | None) -> str:
    """Return bytes in MiB, and nothing for what could not be measured."""
    return text(num_bytes, 1, 1 / 2**20)
