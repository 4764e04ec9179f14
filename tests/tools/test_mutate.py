"""Faults of the code: each can be made, has been tried, and is told as it was found."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import mutate
import pytest
from code_mutants import CODE_MUTANTS, CodeMutant
from record import newest, read

ROWS = {row["mutant"]: row for row in newest(read(mutate.CSV), ["mutant"])}
EXAMPLE = CodeMutant("less", "sums.py", "a + b", "a - b", ("tests/test_sums.py",))


@pytest.mark.parametrize("mutant", CODE_MUTANTS, ids=lambda mutant: mutant.name)
def test_each_can_be_made_and_was_tried(mutant: CodeMutant) -> None:
    """A line that has changed since takes its fault along, and the fault is to be tried again."""
    text = (mutate.ROOT / mutate.PACKAGE / mutant.file).read_text(encoding="utf-8")
    compile(mutate.changed(text, mutant), mutant.file, "exec")
    assert all((mutate.ROOT / test.partition("::")[0]).is_file() for test in mutant.tests)
    assert mutant.name in ROWS, f'run python tools/mutate.py --only "{mutant.name}"'
    outcome = ROWS[mutant.name]["outcome"]
    assert outcome == (mutate.SURVIVED if mutant.survives else mutate.KILLED)


def test_names_are_each_ones_own() -> None:
    assert len({mutant.name for mutant in CODE_MUTANTS}) == len(CODE_MUTANTS)


def test_the_page_is_of_the_rows() -> None:
    assert mutate.PAGE.read_text(encoding="utf-8") == mutate.page(read(mutate.CSV)), "run tools/mutate.py --page"


@pytest.fixture(scope="module")
def run_tests() -> Iterator[mutate.Tests]:
    with mutate.Tests() as made:
        yield made


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A tree of one function and one test, which notices the fault of some of its cases."""
    (tmp_path / "naflex_export").mkdir()
    (tmp_path / "naflex_export" / "__init__.py").touch()
    (tmp_path / "naflex_export" / "sums.py").write_text("def total(a, b):\n    return a + b\n")
    (tmp_path / "tests").mkdir()
    test = "from naflex_export.sums import total\n\n\ndef test_total():\n    assert total(2, SECOND) == 2 + SECOND\n"
    (tmp_path / "tests" / "test_sums.py").write_text(f"SECOND = 3\n{test}")
    (tmp_path / "tests" / "test_of_nothing.py").write_text(f"SECOND = 0\n{test}")
    return tmp_path


def test_a_fault_is_killed_by_the_test_that_fails(run_tests: mutate.Tests, tree: Path) -> None:
    assert run_tests.failing(tree, EXAMPLE.tests)[0] == ""
    assert mutate.tried(run_tests, tree, EXAMPLE)[0] == "tests/test_sums.py::test_total"
    assert (tree / "naflex_export" / "sums.py").read_text() == "def total(a, b):\n    return a + b\n"


def test_a_fault_that_no_test_notices_survives(run_tests: mutate.Tests, tree: Path) -> None:
    unnoticed = CodeMutant("less", "sums.py", "a + b", "a - b", ("tests/test_of_nothing.py",))
    assert mutate.tried(run_tests, tree, unnoticed)[0] == ""


def test_tests_that_do_not_end_count_as_failed(run_tests: mutate.Tests, tree: Path) -> None:
    (tree / "tests" / "test_sleep.py").write_text("import time\n\n\ndef test_sleep():\n    time.sleep(60)\n")
    assert run_tests.failing(tree, ["tests/test_sleep.py"], timeout=2) == ("no end after 2 s", "")
    assert run_tests.failing(tree, EXAMPLE.tests)[0] == ""


def test_a_fault_that_cannot_be_made_is_an_error(run_tests: mutate.Tests, tree: Path) -> None:
    for old, count in (("a * b", 0), ("a", 3)):
        with pytest.raises(ValueError, match=f"'less': sums.py holds '{old[0]}.*' {count} times: expected once"):
            mutate.tried(run_tests, tree, CodeMutant("less", "sums.py", old, "b", ()))


def test_a_survivor_is_told_with_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    known = CodeMutant("known", "a.py", "x", "y", (), survives="it changes no result")
    monkeypatch.setattr(mutate, "CODE_MUTANTS", (EXAMPLE, known, CodeMutant("odd", "b.py", "x", "y", ())))
    base = {"date": "2026-11-26", "commit": "abc", "seconds": "1"}
    said = [("less", "sums.py", "killed", "tests/a/test_sums.py::test_total"), ("known", "a.py", "survived", "")]
    rows = [
        base | dict(zip(("mutant", "file", "outcome", "by"), row, strict=True))
        for row in [*said, ("odd", "b.py", "survived", ""), ("gone", "c.py", "killed", "tests/test_c.py")]
    ]
    page = mutate.page(rows)
    assert "3 faults of the code" in page and "**1 are killed**" in page and "2 survive" in page
    assert "| less | `sums.py` | `test_sums.py::test_total` |" in page and "gone" not in page
    assert "- known (`a.py`): it changes no result." in page and "- odd (`b.py`): no reason is known." in page
