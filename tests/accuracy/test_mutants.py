"""Every fault made on purpose is caught, by the check that docs/mutants.md says, and no check is idle."""

from __future__ import annotations

import difflib
from pathlib import Path

import judge_mutants as judge
import pytest
import tiny
from artifact_mutants import ARTIFACT_MUTANTS
from graph_mutants import GRAPH_MUTANTS
from mutants import DTYPES, MUTANTS, WRONG_REFERENCES

from naflex_export.graph.program import Program
from naflex_export.graph.trace import trace
from naflex_export.models import adapter_of

COMMITTED = judge.committed(judge.PAGE.read_text())


@pytest.fixture(scope="module")
def program() -> Program:
    return trace(adapter_of(tiny.classifier()), [judge.BUCKET])


@pytest.fixture(scope="module")
def graphs(program: Program) -> dict[str, list[str]]:
    return judge.judge_graphs(judge.true_graph(program), program)


@pytest.mark.parametrize(
    ("name", "dtype"), [(name, dtype) for name, mutant in MUTANTS.items() for dtype in mutant.dtypes]
)
def test_a_wrong_candidate_is_caught_by_what_the_page_says(name: str, dtype: str) -> None:
    found = judge.judge(name, dtype)
    assert found.caught
    said, depends = COMMITTED[name][dtype], set(MUTANTS[name].depends)
    assert found.clearly - depends <= said
    assert said - depends <= found.possibly


@pytest.mark.parametrize("name", GRAPH_MUTANTS)
def test_a_wrong_graph_is_caught(name: str, graphs: dict[str, list[str]]) -> None:
    assert graphs[name]
    assert not graphs[""]


@pytest.mark.parametrize("name", ARTIFACT_MUTANTS)
def test_a_wrong_artifact_is_refused(name: str, shallow_artifact: Path) -> None:
    assert ARTIFACT_MUTANTS[name].says in judge.judge_folder(name, shallow_artifact)


@pytest.mark.parametrize("name", WRONG_REFERENCES)
def test_a_wrong_reference_is_refused(name: str) -> None:
    assert WRONG_REFERENCES[name].says in judge.judge_reference(name)


def test_every_check_catches_something(program: Program, graphs: dict[str, list[str]]) -> None:
    caught = {
        check
        for name, mutant in MUTANTS.items()
        for dtype in mutant.dtypes
        for check in judge.judge(name, dtype).caught
    }
    assert caught == set(judge.CHECKS)
    there = set(judge.graph_checks_of(judge.true_graph(program), program))
    assert {check for caught in graphs.values() for check in caught} == there and len(there) > 5
    assert [name for name in ("baseline", "padding", "mask", "name", "shape", "raised") if not judge.alone(name)] == []


def test_the_page_is_what_a_run_writes(graphs: dict[str, list[str]]) -> None:
    """But for marks that depend on a margin, which are compared one by one."""
    assert set(COMMITTED) == set(MUTANTS)
    committed, now = (judge.without_margins(text).splitlines() for text in (judge.PAGE.read_text(), judge.page(graphs)))
    difference = "\n".join(difflib.unified_diff(committed, now, "docs/mutants.md", "now", lineterm="", n=1))
    assert not difference, f"{difference}\n\nif this is what you meant: python tools/judge_mutants.py --write"


def test_there_are_enough_and_a_reason_for_each_dtype_left_out() -> None:
    assert len(MUTANTS) >= 50 and len(GRAPH_MUTANTS) >= 15
    for mutant in MUTANTS.values():
        assert set(mutant.dtypes) <= set(DTYPES) and mutant.dtypes
        assert bool(mutant.why) == (mutant.dtypes != DTYPES)
