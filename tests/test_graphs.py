"""The goldens in graphs/, and what must hold of every graph under any version."""

from __future__ import annotations

import re

import pytest
from bless_graphs import GRAPHS, MODELS, compare, golden_texts

from naflex_export.graph_checks import FORBIDDEN_OPS

TEXTS = dict(golden_texts())


def head(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.startswith("#")]


@pytest.mark.parametrize("name", TEXTS)
def test_a_graph_is_its_golden(name: str) -> None:
    """Under the golden's own versions; the message is the difference and how to accept it."""
    golden = (GRAPHS / name).read_text()
    if head(golden) != head(TEXTS[name]):
        pytest.skip(f"written with {head(golden)[0]}")
    difference = compare(name, TEXTS[name])
    assert not difference, f"{difference}\n\nif this is what you meant: python tools/bless_graphs.py --write"


def test_there_is_a_golden_for_each_model_and_stage_and_no_other() -> None:
    expected = {f"{model}.{stage}.txt" for model in MODELS for stage in ("program", "onnx")}
    assert {path.name for path in GRAPHS.glob("*.txt")} == expected == set(TEXTS)


@pytest.mark.parametrize("name", TEXTS)
def test_no_graph_loops_branches_or_resizes(name: str) -> None:
    """Under any version."""
    operators = set(re.findall(r"= ([A-Za-z0-9_.]+)\(", TEXTS[name]))
    assert len(operators) > 10
    assert not operators & set(FORBIDDEN_OPS)
    assert not [name for name in operators if re.search(r"upsample|grid_sampler|nonzero|\.item\b|while|cond", name)]
    assert "[batch, tokens, 12]" in TEXTS[name]


def test_a_changed_graph_is_a_readable_difference() -> None:
    name = "learned.onnx.txt"
    changed = TEXTS[name].replace("= ReduceMax(", "= ReduceMin(")
    difference = compare(name, changed)
    assert [line for line in difference.splitlines() if line.startswith("+") and "ReduceMin" in line]
    assert len(difference.splitlines()) < 12
