"""Break the code on purpose, a line at a time, and see that its tests notice; the faults are in code_mutants/.

python tools/mutate.py                  # every fault; adds rows to results/mutants.csv, writes docs/code_mutants.md
python tools/mutate.py --only tensorrt  # those whose name, file or tests have a match of this regular expression
python tools/mutate.py --new            # those without a row
python tools/mutate.py --page           # the page alone

The tree is copied, as it lies, and each fault is made in the copy; a fault is killed if one of its tests fails there.
Before that the same tests must pass without a fault.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from code_mutants import CODE_MUTANTS, CodeMutant
from markdown_text import table
from record import RESULTS, ROOT, append, commit, newest, read

CSV = RESULTS / "mutants.csv"
PAGE = ROOT / "docs" / "code_mutants.md"
PACKAGE = "naflex_export"
COPIED = (PACKAGE, "tests", "tools", "docs", "graphs", "pyproject.toml", "README.md")
FIELDS = ("date", "commit", "mutant", "file", "outcome", "by", "seconds")
KILLED, SURVIVED = "killed", "survived"
LIBRARIES = ("torch.onnx", "timm", "transformers", "onnxscript", "onnxruntime")
"""What the tests import by and by."""

TIMEOUT = 600.0
"""Seconds after which tests that do not end count as failed."""

Row = Mapping[str, str]


def main() -> None:
    """Run the faults asked for, add a row for each and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="what a fault's name, file or tests must match")
    parser.add_argument("--new", action="store_true", help="leave out faults that have a row")
    parser.add_argument("--page", action="store_true", help="run nothing")
    given = parser.parse_args()
    if not given.page:
        known = {row["mutant"] for row in read(CSV)} if given.new else set()
        asked = [mutant for mutant in CODE_MUTANTS if re.search(given.only, _told(mutant), re.IGNORECASE)]
        run([mutant for mutant in asked if mutant.name not in known])
    PAGE.write_text(page(read(CSV)), encoding="utf-8")


def run(mutants: Sequence[CodeMutant]) -> None:
    """Make each fault in a copy of the tree, run its tests, and add a row.

    Raises:
        SystemExit: the tests fail without a fault.
    """
    at = commit()
    with tempfile.TemporaryDirectory() as folder, Tests(LIBRARIES) as run_tests:
        tree = Path(folder)
        for name in COPIED:
            _copy(ROOT / name, tree / name)
        failed, said = run_tests.failing(tree, list(dict.fromkeys(test for mutant in mutants for test in mutant.tests)))
        if failed:
            raise SystemExit(f"{said[-2000:]}\n{failed} in the code as it is: mend that first")
        for mutant in mutants:
            started = time.monotonic()
            by, said = tried(run_tests, tree, mutant)
            row = {
                "date": time.strftime("%Y-%m-%d", time.gmtime()),
                "commit": at,
                "mutant": mutant.name,
                "file": mutant.file,
                "outcome": KILLED if by else SURVIVED,
                "by": by,
                "seconds": f"{time.monotonic() - started:.0f}",
            }
            append(CSV, FIELDS, [row])
            print(f"{row['outcome']:9} {mutant.name}: {by or said[-300:]}", flush=True)


def tried(run_tests: Tests, tree: Path, mutant: CodeMutant) -> tuple[str, str]:
    """Return the test that fails with a fault, empty for none, and what the tests said.

    Args:
        run_tests: what runs them.
        tree: the copy, which is as it was afterwards.
        mutant: the fault.
    """
    path = tree / PACKAGE / mutant.file
    before = path.read_text(encoding="utf-8")
    path.write_text(changed(before, mutant), encoding="utf-8")
    try:
        return run_tests.failing(tree, mutant.tests)
    finally:
        path.write_text(before, encoding="utf-8")


def changed(text: str, mutant: CodeMutant) -> str:
    """Return a file's text with the fault in it.

    Raises:
        ValueError: what the fault changes is not there once.
    """
    if text.count(mutant.old) != 1:
        raise ValueError(
            f"fault {mutant.name!r}: {mutant.file} holds {mutant.old!r} {text.count(mutant.old)} times: expected once"
        )
    return text.replace(mutant.old, mutant.new)


class Tests:
    """Runs tests in a tree, in a process of its own for each run; libraries are imported once for all of them."""

    def __init__(self, libraries: Sequence[str] = ()) -> None:
        self.libraries = libraries

    def __enter__(self) -> Tests:
        command = [sys.executable, str(ROOT / "tools" / "warm_pytest.py"), *self.libraries]
        clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | {"OMP_NUM_THREADS": "1"}
        self._process = subprocess.Popen(
            command, cwd="/", env=clean, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        return self

    def __exit__(self, *error: object) -> None:
        self._process.communicate()  # the end of its input is the end of it

    def failing(self, tree: Path, tests: Sequence[str], timeout: float = TIMEOUT) -> tuple[str, str]:
        """Return the first test that fails, empty for none, and what pytest said.

        Args:
            tree: a copy of this one.
            tests: files, or tests in them.
            timeout: seconds after which they count as failed.
        """
        request = {"tree": str(tree), "tests": list(tests), "timeout": timeout}
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        answer = json.loads(self._process.stdout.readline())
        code, said = answer["code"], answer["said"]
        if code == 0:
            return "", said
        found = re.search(r"^(?:FAILED|ERROR) (\S+?)(?:\[.*)?(?: - .*)?$", said, re.MULTILINE)
        if found:
            return found[1], said
        return f"no end after {timeout:.0f} s" if code == -1 else f"pytest's exit code {code}", said


def page(rows: Sequence[Row]) -> str:
    """Return the page for the docs: what each fault is noticed by, and why some are not.

    Args:
        rows: of the CSV.
    """
    known = {row["mutant"]: row for row in newest(rows, ["mutant"])}
    listed = [(mutant, known[mutant.name]) for mutant in CODE_MUTANTS if mutant.name in known]
    killed = [row for _, row in listed if row["outcome"] == KILLED]
    survived = [(mutant, row) for mutant, row in listed if row["outcome"] != KILLED]
    lines = [
        "# What the tests catch",
        "",
        "Written by `python tools/mutate.py` from its rows in `tools/results/mutants.csv`; do not edit.",
        "",
        f"{len(listed)} faults of the code itself, each made by changing a line of it (`tools/code_mutants/`) in a "
        f"copy of the tree: **{len(killed)} are killed**, that is, a test fails; {len(survived)} survive. They are "
        "faults that once no test noticed, their like, and breaches of rules of which a library reports no error. What "
        "the gate catches in models and artifacts is another matter: [mutants.md](mutants.md).",
        "",
        table(
            ("fault", "in", "killed by"),
            [(row["mutant"], f"`{row['file']}`", f"`{_short(row['by'])}`") for row in killed],
        ),
    ]
    if survived:
        lines += ["", "## Surviving", ""]
        lines += [
            f"- {mutant.name} (`{mutant.file}`): {mutant.survives or 'no reason is known'}." for mutant, _ in survived
        ]
    return "\n".join(lines) + "\n"


def _short(test: str) -> str:
    """Return the name of a test without its folder."""
    return test.rpartition("/")[2]


def _told(mutant: CodeMutant) -> str:
    return " ".join([mutant.name, mutant.file, *mutant.tests])


def _copy(source: Path, target: Path) -> None:
    if source.is_dir():
        shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__", ".*"))
    else:
        shutil.copy2(source, target)


if __name__ == "__main__":
    main()
