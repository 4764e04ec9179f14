"""Resolves the package's requirements for other systems and releases of Python, and says what an install takes.

Nothing is installed: `uv` finds the wheels that pip would take there, and their sizes.

    pip install uv && python tools/check_install.py
    python tools/check_install.py --page            # docs/install.md from the rows
"""

from __future__ import annotations

import argparse
import datetime
import os
import subprocess
import tempfile
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path

import record
from markdown_text import section, table

PAGE = record.ROOT / "docs" / "install.md"
RESULTS = record.RESULTS / "install.csv"
MARKS = ("<!-- install: written by tools/check_install.py -->", "<!-- /install -->")

SYSTEMS = {
    "Linux, x86-64": "x86_64-manylinux_2_28",
    "Linux, ARM": "aarch64-manylinux_2_28",
    "macOS 14, ARM": "aarch64-apple-darwin",
    "Windows, x86-64": "x86_64-pc-windows-msvc",
}
"""Systems as people call them, and as uv does."""

PYTHONS = ("3.11", "3.12", "3.13", "3.14")
EXTRAS = ("", "rtx", "hf", "embed", "ray", "serve", "quant", "bench")
"""Each alone beside the core. `trt` is not among them: its package is not on PyPI."""

RUNTIME = "runtime"
"""An ONNX artifact's photos to vectors: the group of requirements of that name, beside the package alone."""

EXCLUDED = ("triton", "nvidia-cusolver", "nvidia-nvtx", "cuda-bindings")
"""What torch's wheel of Linux asks for and opens only where a GPU computes."""

NO_GPU = "excludes"
"""The core without those, as docs/install.md has uv install it."""

COLUMNS = ("date", "commit", "system", "python", "extra", "packages", "download_mb", "onnxruntime", "why_not")

Row = dict[str, str]


def requirements(extra: str) -> list[str]:
    """Return the lines that an install with an extra asks for."""
    project = tomllib.loads((record.ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    if extra == RUNTIME:
        return list(project["dependency-groups"][RUNTIME])
    return [*project["project"]["dependencies"], *project["project"]["optional-dependencies"].get(extra, [])]


def resolved(system: str, python: str, extra: str) -> Row:
    """Return the row of one install.

    Args:
        system: a key of `SYSTEMS`.
        python: the release, such as "3.12".
        extra: one of `EXTRAS`, `RUNTIME` or `NO_GPU`.
    """
    row = dict.fromkeys(COLUMNS, "") | {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "commit": record.commit(),
        "system": system,
        "python": python,
        "extra": extra,
    }
    with tempfile.TemporaryDirectory() as folder:
        asked, lock = Path(folder, "requirements.in"), Path(folder, "pylock.toml")
        asked.write_text("\n".join(requirements(extra)), encoding="utf-8")
        command = ["uv", "pip", "compile", "--quiet", "--no-header", "--format", "pylock.toml"]
        command += ["--python-version", python, "--python-platform", SYSTEMS[system], "-o", str(lock), str(asked)]
        if extra == NO_GPU:
            excluded = Path(folder, "excludes.txt")
            excluded.write_text("\n".join(EXCLUDED), encoding="utf-8")
            command += ["--excludes", str(excluded)]
        environment = {**os.environ, "MACOSX_DEPLOYMENT_TARGET": "14.0"}
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
        if done.returncode:
            return row | {"why_not": " ".join(done.stderr.split())}
        packages = tomllib.loads(lock.read_text(encoding="utf-8"))["packages"]
    files = [package.get("wheels") or [package["sdist"]] for package in packages]
    size = sum(min(file["size"] for file in one) for one in files)
    runtimes = [f"{package['name']} {package['version']}" for package in packages if "onnxruntime" in package["name"]]
    return row | {
        "packages": str(len(packages)),
        "download_mb": str(round(size / 1e6)),
        "onnxruntime": ", ".join(runtimes),
    }


def tables(rows: Sequence[Mapping[str, str]]) -> str:
    """Return what an install takes on each system, and what each extra adds, from the newest rows."""
    newest = {(row["system"], row["python"], row["extra"]): row for row in rows}
    core = []
    for system in SYSTEMS:
        found = [newest[system, python, ""] for python in PYTHONS if (system, python, "") in newest]
        passed = [row["python"] for row in found if not row["why_not"]]
        small = newest.get((system, PYTHONS[1], RUNTIME))
        last = next((row for row in found if row["python"] == PYTHONS[1]), None)
        if last and small:
            size, least = last["download_mb"], small["download_mb"]
            core.append([system, ", ".join(passed) or "none", last["onnxruntime"] or "-", size or "-", least or "-"])
    head = ["system", "resolves with Python", "ONNX Runtime", "download, MB", "without torch, MB"]
    system = next(iter(SYSTEMS))
    base = newest.get((system, PYTHONS[1], ""))
    added = []
    for extra in EXTRAS[1:]:
        row = newest.get((system, PYTHONS[1], extra))
        if base and row:
            more = int(row["download_mb"]) - int(base["download_mb"])
            added.append([f"`{extra}`", str(int(row["packages"]) - int(base["packages"])), str(more)])
    extras = table(["extra", "packages more", f"download more, MB ({system})"], added)
    lean = newest.get((system, PYTHONS[1], NO_GPU))
    said = (
        f"\n\nWithout what only a GPU needs (below): {lean['download_mb']} MB of download on {system}." if lean else ""
    )
    return f"{table(head, core)}\n\n{extras}{said}"


def page(text: str) -> str:
    """Return the page with its tables written anew."""
    return section(text, *MARKS, tables(record.read(RESULTS)))


def main() -> None:
    """Resolve all and add rows, or write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--page", action="store_true", help="write docs/install.md from the rows")
    if parser.parse_args().page:
        PAGE.write_text(page(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
        return
    for system in SYSTEMS:
        for python in PYTHONS:
            lean = [NO_GPU] if (system, python) == (next(iter(SYSTEMS)), PYTHONS[1]) else []
            for extra in [*(EXTRAS if python == PYTHONS[1] else EXTRAS[:1]), RUNTIME, *lean]:
                row = resolved(system, python, extra)
                record.append(RESULTS, COLUMNS, [row])
                print(system, python, extra or "core", row["why_not"] or f"{row['download_mb']} MB", flush=True)


if __name__ == "__main__":
    main()
