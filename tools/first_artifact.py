"""Measures the way from nothing to a first judged ONNX artifact: README's two commands in a fresh environment.

A revision is cloned, its package installed by pip or uv into a new environment, and a model exported; of each step
the processor seconds of all its processes are kept, which other work on the machine changes less than a clock.

    python tools/first_artifact.py
    python tools/first_artifact.py --revision 2aecad6 --export "naflex-export --target onnx --weights random"
    python tools/first_artifact.py --installer uv   # needs uv on the path
    python tools/first_artifact.py --wheels FOLDER  # with torch and torchvision from there
    python tools/first_artifact.py --page           # docs/install.md from the rows

`--wheels` stands for PyTorch's own index of wheels without CUDA, for where that cannot be reached: the folder holds one
of torch and one of torchvision that go together, and all else is installed as without it.

Each run takes about 6 GB of disk, which are given back. Rows go to tools/results/first_artifact.csv.
"""

from __future__ import annotations

import argparse
import os
import re
import resource
import shlex
import subprocess
import sys
import tempfile
import time
import venv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from markdown_text import section, table
from record import ABOUT, RESULTS, ROOT, about, append, commit_of, newest, read

ROWS = RESULTS / "first_artifact.csv"
PAGE = ROOT / "docs" / "install.md"
MARKS = ("<!-- first artifact: written by tools/first_artifact.py -->", "<!-- /first artifact -->")
FIELDS = (*ABOUT, "python", "installer", "install_cpu_s", "install_s", "disk_mb", "export", "export_cpu_s", "export_s")
KIND = ("commit", "installer", "export")

INSTALLERS = {"pip": "pip install", "pip --no-compile": "pip install --no-compile", "uv": "uv pip install"}
"""Commands that install, by name. uv compiles nothing either: what is imported is compiled by the first who does."""

FROM_WHEELS = ("torch", "torchvision")
"""What PyTorch's own indexes have other wheels of than PyPI."""

PINNED = "-c constraints.txt"
"""In README's command: where the versions come from."""


class Cost(NamedTuple):
    """What a command took: processor seconds of it and its children, and seconds of a clock."""

    processor: float
    clock: float


def readme_commands(text: str) -> tuple[str, str]:
    """Return the two commands that README begins with: the install, and the export.

    Raises:
        ValueError: its first block of shell commands does not hold two.
    """
    block = re.search(r"```sh\n(.*?)```", text, re.DOTALL)
    commands = block.group(1).strip().splitlines() if block else []
    if len(commands) != 2:
        raise ValueError(f"README's first block of shell commands holds {len(commands)} lines: expected 2")
    return commands[0], commands[1]


def cost_of(command: str, folder: Path, environment: Mapping[str, str]) -> Cost:
    """Return what a command of the shell took that was run in a folder.

    Raises:
        SystemExit: it failed; what it said last is the message.
    """
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = subprocess.run(
        command, shell=True, cwd=folder, env=dict(environment), capture_output=True, text=True, check=False
    )
    clock, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        last = (done.stderr or done.stdout).strip().splitlines()[-3:]
        sys.exit(f"{command!r} ended with {done.returncode}: {' '.join(last)}")
    return Cost(after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime, clock)


def disk_mb(folder: Path) -> float:
    """Return what the files of a folder take on the disk, in MB."""
    return sum(path.lstat().st_blocks * 512 for path in folder.rglob("*")) / 1e6


def versions_of(wheels: Path) -> dict[str, str]:
    """Return the versions of the wheels in a folder, by package.

    Raises:
        SystemExit: it does not hold one wheel of each of `FROM_WHEELS`, and no other.
    """
    named = sorted(path.name.split("-")[:2] for path in wheels.glob("*.whl"))
    if [name for name, _ in named] != [*FROM_WHEELS]:
        held = ", ".join("-".join(pair) for pair in named) or "none"
        sys.exit(f"--wheels {wheels} holds {held}: expected a wheel of torch, one of torchvision, and no other")
    return {name: version for name, version in named}


def pinned(constraints: str, versions: Mapping[str, str]) -> str:
    """Return constraints with some packages at other versions.

    Args:
        constraints: the text of a file of constraints, a package a line.
        versions: by package.
    """
    kept = [line for line in constraints.splitlines() if line.partition("==")[0] not in versions]
    return "".join(f"{line}\n" for line in [*kept, *(f"{name}=={version}" for name, version in versions.items())])


def from_wheels(install: str, wheels: Path, constraints: Path) -> str:
    """Return the command that installs with wheels of a folder.

    Args:
        install: the command as README has it.
        wheels: the folder.
        constraints: a file that pins their versions.

    Raises:
        ValueError: the command has no constraints to put others in the place of.
    """
    if PINNED not in install:
        raise ValueError(f"README's install is {install!r}: expected {PINNED!r} in it")
    return install.replace(PINNED, f"-c {shlex.quote(str(constraints))} --find-links {shlex.quote(str(wheels))}")


def measured(revision: str, installer: str, install: str, export: str, wheels: Path | None = None) -> dict[str, str]:
    """Return the row of one run.

    Args:
        revision: of this repository, as git names it.
        installer: one of `INSTALLERS`.
        install: the command as README has it, by pip.
        export: the command that exports.
        wheels: a folder that torch and torchvision are taken from, in place of PyPI.
    """
    versions = {} if wheels is None else versions_of(wheels)
    with tempfile.TemporaryDirectory() as folder:
        clone, fresh = Path(folder, "clone"), Path(folder, "environment")
        subprocess.run(["git", "clone", "--quiet", str(ROOT), str(clone)], check=True)
        subprocess.run(["git", "-C", str(clone), "checkout", "--quiet", revision], check=True)
        if wheels is not None:
            constraints = Path(folder, "constraints.txt")
            constraints.write_text(pinned((clone / "constraints.txt").read_text(encoding="utf-8"), versions), "utf-8")
            install = from_wheels(install, wheels.resolve(), constraints)
        venv.create(fresh, with_pip=True)
        without = ("PYTHONPATH", "PYTHONHOME")
        environment = {name: value for name, value in os.environ.items() if name not in without}
        environment |= {"UV_NO_CACHE": "1", "PIP_NO_CACHE_DIR": "1"}  # what came before must not show
        environment |= {"VIRTUAL_ENV": str(fresh), "PATH": f"{fresh / 'bin'}{os.pathsep}{environment['PATH']}"}
        install_cost = cost_of(install.replace("pip install", INSTALLERS[installer], 1), clone, environment)
        size = disk_mb(fresh)
        export_cost = cost_of(export, clone, environment)
        return {
            **about("cpu", ()),
            "commit": commit_of(clone),
            "python": ".".join(map(str, sys.version_info[:2])),
            "installer": f"{installer}, torch {versions['torch']}" if versions else installer,
            "install_cpu_s": f"{install_cost.processor:.1f}",
            "install_s": f"{install_cost.clock:.1f}",
            "disk_mb": f"{size:.0f}",
            "export": export,
            "export_cpu_s": f"{export_cost.processor:.1f}",
            "export_s": f"{export_cost.clock:.1f}",
        }


def tables(rows: Sequence[Mapping[str, str]]) -> str:
    """Return what each revision takes, from the newest rows, and what share that is of the first.

    Of a command that exports, only what it has beside the shortest is named.
    """
    head = [
        "commit",
        "installed by",
        "with",
        "install, CPU s",
        "export, CPU s",
        "both",
        "of the first",
        "GB",
        "of the first",
    ]
    lines, found = [], newest(rows, KIND)
    common = min((row["export"] for row in found), key=len)
    for row in found:
        besides = row["export"].removeprefix(common).strip()
        lines.append(
            [
                *(row["commit"], row["installer"], f"`{besides}`" if besides else ""),
                *(row["install_cpu_s"], row["export_cpu_s"], f"{cpu_seconds(row):.1f}"),
                f"{cpu_seconds(row) / cpu_seconds(found[0]):.2f}",
                f"{float(row['disk_mb']) / 1000:.1f}",
                f"{float(row['disk_mb']) / float(found[0]['disk_mb']):.2f}",
            ]
        )
    return table(head, lines)


def cpu_seconds(row: Mapping[str, str]) -> float:
    """Return what both commands of a row took."""
    return float(row["install_cpu_s"]) + float(row["export_cpu_s"])


def page(text: str) -> str:
    """Return the page with its table written anew."""
    return section(text, *MARKS, tables(read(ROWS)))


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure a revision and add its row, or write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--revision", default="HEAD", help="of this repository")
    parser.add_argument("--installer", default="pip", choices=INSTALLERS)
    parser.add_argument("--wheels", type=Path, metavar="FOLDER", help="of torch and torchvision, in place of PyPI's")
    parser.add_argument("--export", help="the command that exports, in place of README's second")
    parser.add_argument("--page", action="store_true", help="write docs/install.md from the rows")
    options = parser.parse_args(arguments)
    if options.page:
        PAGE.write_text(page(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
        return
    install, export = readme_commands((ROOT / "README.md").read_text(encoding="utf-8"))
    row = measured(options.revision, options.installer, install, options.export or export, options.wheels)
    append(ROWS, FIELDS, [row])
    print(*(f"{name}: {row[name]}" for name in FIELDS), sep="\n")


if __name__ == "__main__":
    main()
