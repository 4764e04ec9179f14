"""Rows of results: when, from what and on what they were measured, and the CSV files under `results/` that hold them.

A tool adds rows and never changes one; the tables in the docs are written from the newest of each kind.
"""

from __future__ import annotations

import csv
import datetime
import subprocess
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path

import torch

from naflex_export.bench import device_name

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "tools" / "results"

ABOUT = ("date", "commit", "device", "threads")
"""The columns that every row begins with; those of versions follow."""


def about(device: torch.device | str, packages: Sequence[str] = ("torch", "timm")) -> dict[str, str]:
    """Return the columns `ABOUT`, and a column with the version of each package; empty for one that is missing."""
    return {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "commit": commit(),
        "device": device_name(device),
        "threads": str(torch.get_num_threads()),
        **{package: _version(package) for package in packages},
    }


def commit() -> str:
    """Return the commit the code is at, with a plus where files have changed since; what was measured is no change."""
    asked = ["git", "-C", str(ROOT), "rev-parse", "--short=10", "HEAD"]
    found = subprocess.run(asked, capture_output=True, text=True, check=False).stdout.strip()
    changes = ["git", "-C", str(ROOT), "status", "--porcelain", "--untracked-files=no", "--", ".", ":!tools/results"]
    changed = subprocess.run(changes, capture_output=True, text=True, check=False).stdout.strip()
    return f"{found}{'+' if changed else ''}" or "unknown"


def append(path: Path, fields: Sequence[str], rows: Sequence[Mapping[str, object]]) -> None:
    """Add rows to a CSV file, which is begun with its header where there is none.

    Raises:
        ValueError: the file has other columns, or a row has one too many.
    """
    new = not path.exists()
    if not new:
        with path.open(newline="", encoding="utf-8") as file:
            found = next(csv.reader(file), [])
        if found != list(fields):
            raise ValueError(f"{path} has the columns {', '.join(found)}: expected {', '.join(fields)}; move it away")
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fields, lineterminator="\n")
        if new:
            writer.writeheader()
        writer.writerows(rows)


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
    """Return a figure with so many digits after the point, and nothing for one that could not be measured."""
    return "" if value is None else f"{value * factor:.{digits}f}"


def mib(num_bytes: float | None) -> str:
    """Return bytes in MiB, and nothing for what could not be measured."""
    return text(num_bytes, 1, 1 / 2**20)


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""
