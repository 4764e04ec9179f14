"""When, from what and on what a row of results was measured; the rows are in the CSV files under `results/`.

A tool adds rows and never changes one; the tables in the docs are written from the newest of each kind.
"""

from __future__ import annotations

import datetime
import os
import subprocess
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

import torch

from naflex_export.bench.results_csv import append, mib, newest, read, text
from naflex_export.bench.timing import device_name

__all__ = [
    "ABOUT",
    "PACKAGES",
    "RESULTS",
    "ROOT",
    "about",
    "append",
    "commit",
    "commit_of",
    "mib",
    "newest",
    "read",
    "text",
]

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "tools" / "results"

ABOUT = ("date", "commit", "device", "threads")
"""The columns that every row begins with; those of versions follow."""

PACKAGES = ("torch", "timm", "transformers", "onnxruntime-gpu", "tensorrt", "tensorrt-rtx")
"""What an encoder may run on, of which rows can hold the versions."""


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
    """Return the commit the code is at; NAFLEX_COMMIT says it of a copy of the tree without its history."""
    return os.environ.get("NAFLEX_COMMIT") or commit_of(ROOT)


def commit_of(tree: Path) -> str:
    """Return the commit a checkout is at, with a plus where files have changed since, but for what was measured."""
    asked = ["git", "-C", str(tree), "rev-parse", "--short=10", "HEAD"]
    found = subprocess.run(asked, capture_output=True, text=True, check=False).stdout.strip()
    changes = ["git", "-C", str(tree), "status", "--porcelain", "--untracked-files=no", "--", ".", ":!tools/results"]
    changed = subprocess.run(changes, capture_output=True, text=True, check=False).stdout.strip()
    return f"{found}{'+' if changed else ''}" or "unknown"


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""
