"""Markdown and the words in it: tables, and figures with as many digits as they are good for."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

NOTHING = "-"
"""In a table's cell: not measured."""


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table, with the columns that hold figures only to the right."""
    cells = [list(row) for row in rows]
    columns = list(zip(*cells, strict=True)) if cells else [()] * len(head)
    rule = ["--:" if column and all(map(_is_figure, column)) else "---" for column in columns]
    return "\n".join(f"| {' | '.join(line)} |" for line in [head, rule, *cells])


def section(text: str, begin: str, end: str, new: str) -> str:
    """Return a document with what is between two marks replaced.

    Raises:
        ValueError: the marks are not there, once each and in order.
    """
    pattern = re.compile(re.escape(begin) + r"\n.*?" + re.escape(end), re.DOTALL)
    if len(pattern.findall(text)) != 1:
        raise ValueError(f"expected one section from {begin} to {end}")
    return pattern.sub(lambda match: f"{begin}\n{new}\n{end}", text)


def plural(count: int, noun: str) -> str:
    """Return a number and its noun."""
    return f"{count} {noun}{'' if count == 1 else 's'}"


def listed(noun: str, values: Sequence[str]) -> str:
    """Return values after their noun."""
    return f"{noun}{'s' if len(values) > 1 else ''} {', '.join(values)}"


def span(dates: Sequence[str]) -> str:
    """Return a day, or the first and the last of several."""
    return dates[0] if len(dates) == 1 else f"{min(dates)} to {max(dates)}"


def figure(value: str) -> str:
    """Return a figure without digits after the point from 100 on, and with one below."""
    return f"{float(value):.{0 if float(value) >= 100 else 1}f}" if value else ""


def ratio(value: str) -> str:
    """Return a ratio with two digits after the point."""
    return f"{float(value):.2f}x" if value else ""


def percent(value: str) -> str:
    """Return a share of 1 as a percentage."""
    return f"{float(value):.1%}" if value else ""


def _is_figure(cell: str) -> bool:
    return bool(re.fullmatch(r"|-|[\d.]+(e[-+]\d+)?[x%]?( \(.*\))?", cell))
