"""Judge every wrong candidate, graph, artifact and reference of the tests, and write docs/mutants.md: what caught it.

python tools/judge_mutants.py           # show what would change
python tools/judge_mutants.py --write   # and write it
"""

from __future__ import annotations

import argparse
import difflib
import functools
import inspect
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import onnx_ir as ir
import torch

import naflex_export as nx
from naflex_export.accuracy.efforts import CaseSelection
from naflex_export.accuracy.invariances import MASKING, MOVED
from naflex_export.accuracy.judge_artifact import JudgeRequest, judge_artifact
from naflex_export.accuracy.metrics import Limits
from naflex_export.accuracy.results import BASELINE_FACTOR, GateReport
from naflex_export.graph import checks as graph_checks
from naflex_export.graph.build_settings import BuildSettings
from naflex_export.graph.onnx_translate import translate
from naflex_export.graph.program import Program
from naflex_export.graph.trace import trace
from naflex_export.models import adapter_of
from naflex_export.targets import onnx

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "mutants.md"
sys.path.append(str(ROOT / "tests"))

import tiny  # noqa: E402
from artifact_mutants import ARTIFACT_MUTANTS  # noqa: E402
from graph_mutants import GRAPH_MUTANTS, GraphMutant  # noqa: E402
from mutants import DTYPES, MUTANTS, WRONG_REFERENCES  # noqa: E402

BUCKET = nx.Bucket(24, (1, 4, 8))

SLACK = 1.5
"""How much nearer or further than found a measure may be on another machine, whose kernels round otherwise."""

MEASURES = {
    "max_share": "share",
    "relative_l2": "L2",
    "worst_cosine": "cosine",
    "top1_agreement": "top-1",
    "top5_agreement": "top-5",
}
BASELINE = "baseline"
INVARIANCES = {
    "padding's content": "padding",
    "order in the batch": "order",
    "amount of padding": "amount",
    MASKING: "mask",
}
PROBLEMS = {
    "the candidate has no such output": "name",
    "the candidate's shape is": "shape",
    "the candidate raised": "raised",
}
CHECKS = (*MEASURES.values(), BASELINE, *INVARIANCES.values(), *PROBLEMS.values())
"""Every check of a candidate, by its short name in the table."""


@dataclass(frozen=True)
class Found:
    """The checks that caught a mutant in a dtype: by any margin, by `SLACK`, and with limits tightened by `SLACK`."""

    caught: frozenset[str]
    clearly: frozenset[str]
    possibly: frozenset[str]


@functools.cache
def judge(name: str, dtype: str) -> Found:
    """Return what catches a wrong candidate in a dtype."""
    mutant = MUTANTS[name]
    candidate = mutant.make(getattr(torch, dtype))
    report = nx.gate(candidate, tiny.classifier(), buckets=[BUCKET], dtype=dtype, outputs=mutant.outputs)
    caught = checks_of(report)
    assert bool(caught) != report.passed, f"{name} in {dtype}: the gate failed for another reason than {CHECKS}"
    return Found(caught, checks_of(report, SLACK), checks_of(report, 1 / SLACK))


def checks_of(report: GateReport, slack: float = 1.0) -> frozenset[str]:
    """Return the checks that a candidate does not pass, each with its limit so many times as far away."""
    found = set()
    for result in report.results:
        limits = _loosened(report.limits.widened_by(result.baseline, BASELINE_FACTOR), slack)
        found |= {MEASURES[text.split()[0]] for text in limits.exceeded_by(result.measures)}
    if any(not result.candidate <= slack * BASELINE_FACTOR * result.baseline for result in report.baselines):
        found.add(BASELINE)
    for invariance in report.invariances:
        if invariance.name == MASKING:
            holds = invariance.moved > MOVED / slack
        else:
            holds = invariance.moved <= slack * report.limits.relative_l2
        if not holds:
            found.add(INVARIANCES[invariance.name])
    for problem in report.problems:
        found |= {name for text, name in PROBLEMS.items() if text in problem}
    return frozenset(found)


def _loosened(limits: Limits, slack: float) -> Limits:
    return Limits(
        max_share=slack * limits.max_share,
        relative_l2=slack * limits.relative_l2,
        worst_cosine=1 - slack * (1 - limits.worst_cosine),
        agreement=1 - slack * (1 - limits.agreement),
    )


def true_graph(program: Program) -> ir.Model:
    """Return the graph that is made wrong: as it is checked, with the types and shapes that its file leaves out."""
    return translate(program, BuildSettings(), onnx.OPSET)


def judge_graphs(model: ir.Model, program: Program) -> dict[str, list[str]]:
    """Return for each wrong graph the names of the checks that caught it; and under "" those that caught the true one.

    Args:
        model: the true graph.
        program: what it was made from.
    """
    return {name: _judged_graph(model, program, mutant)[0] for name, mutant in {"": None, **GRAPH_MUTANTS}.items()}


def graph_checks_of(model: ir.Model, program: Program) -> list[str]:
    """Return the names of the checks that a true graph passes on its way, whatever checks there are."""
    return _judged_graph(model, program, None)[1]


def _judged_graph(model: ir.Model, program: Program, mutant: GraphMutant | None) -> tuple[list[str], list[str]]:
    """Return the names of the checks that caught a graph, and of those that were made."""
    changed = ir.from_proto(ir.to_proto(model))
    if mutant is not None:
        mutant.change(changed)
    caught: list[str] = []
    made: list[str] = []

    def recorded(name: str, check: Callable[..., list[str]]) -> Callable[..., list[str]]:
        def run(*arguments: Any) -> list[str]:
            made.append(name)
            problems = check(*arguments)
            if problems and name not in caught:
                caught.append(name)
            return problems

        return run

    functions = dict(inspect.getmembers(graph_checks, inspect.isfunction))
    with ExitStack() as stack:
        for name, check in functions.items():
            if name.startswith("check_") and name != "check_onnx":
                stack.enter_context(mock.patch.object(graph_checks, name, recorded(name, check)))
        asked = program if mutant is None else mutant.asked(program)
        problems = graph_checks.check_onnx(changed, asked, onnx.OPSET, recorded("refusals", onnx.refusals))
    assert bool(problems) == bool(caught), f"no function check_* of graph_checks found {problems}"
    return caught, list(dict.fromkeys(made))


def judge_reference(name: str) -> str:
    """Return what the gate says of a wrong reference, empty where it passes."""
    wrong = WRONG_REFERENCES[name]
    candidate = wrong.make().to(getattr(torch, wrong.dtype))
    try:
        report = nx.gate(candidate, wrong.make(), buckets=[BUCKET], dtype=wrong.dtype)
    except nx.RequestError as error:
        return str(error)
    return "; ".join(report.failures)


def judge_folder(name: str, artifact: Path) -> str:
    """Return what is said of a copy of an artifact made wrong, empty where it passes."""
    mutant = ARTIFACT_MUTANTS[name]
    with tempfile.TemporaryDirectory() as folder:
        copied = Path(folder) / "artifact"
        shutil.copytree(artifact, copied)
        mutant.change(copied)
        try:
            report = judge_artifact(copied, mutant.reference(), JudgeRequest(cases=CaseSelection(effort="quick")))
        except nx.NaflexExportError as error:
            return str(error)
    return "; ".join(report.failures)


def page(graphs: Mapping[str, list[str]]) -> str:
    """Return docs/mutants.md."""
    count = len(MUTANTS) + len(GRAPH_MUTANTS) + len(ARTIFACT_MUTANTS) + len(WRONG_REFERENCES)
    lines = [
        "# What the gate catches",
        "",
        f"{count} faults, each made on purpose in the tests, and the checks that catch them. None passes.",
        "`python tools/judge_mutants.py --write` writes this page, and a test compares it with what it finds.",
        "",
        "## Candidates",
        "",
        "A tiny classifier with one fault (`tests/mutants/`), judged at 24 tokens. In a column, three places stand",
        "for float32, float16 and bfloat16: `x` the check caught it, `-` it did not, `.` the fault is none in that",
        "dtype, or lost in its rounding. [gate.md](gate.md) says what the checks are; name, shape and raised are what",
        "cannot be compared at all.",
        "",
        "| fault | " + " | ".join(CHECKS) + " |",
        "|---|" + ":-:|" * len(CHECKS),
    ]
    lines += [f"| {name} | " + " | ".join(_cells(name)) + " |" for name in MUTANTS]
    lines += ["", "In words, and where a fault is not asked to be caught, why:", ""]
    lines += [f"- {name}: {mutant.fault}{_besides(name)}" for name, mutant in MUTANTS.items()]
    lines += [
        "",
        "### By check",
        "",
        "How many faults a check catches in some dtype, and those that in some dtype nothing else does:",
        "",
        "| check | faults | alone |",
        "|---|--:|---|",
    ]
    for check in CHECKS:
        caught = [name for name in MUTANTS if any(check in judge(name, dtype).caught for dtype in asked(name))]
        lines.append(f"| {check} | {len(caught)} | {', '.join(alone(check))} |")
    lines += [
        "",
        "A fault large enough for one measure is mostly large enough for several. That each of them can fail alone is",
        "shown on made-up outputs, in `tests/accuracy/test_gate.py`.",
        "",
        "## Graphs",
        "",
        "The true ONNX graph with one fault (`tests/graph_mutants.py`); the export ends before any backend sees it.",
        "An ExportedProgram is checked for the same one step earlier: those faults are in",
        "`tests/graph/test_program_checks.py`.",
        "",
        "| fault | in words | caught by |",
        "|---|---|---|",
    ]
    for name, mutant in GRAPH_MUTANTS.items():
        lines.append(f"| {name} | {mutant.fault} | {', '.join(f'`{check}`' for check in graphs[name])} |")
    lines += [
        "",
        "## Artifacts",
        "",
        "A published folder with one fault (`tests/artifact_mutants.py`); it is refused before anything in it runs.",
        "",
        "| fault | in words | what is said |",
        "|---|---|---|",
    ]
    lines += [f"| {name} | {mutant.fault} | {mutant.says} |" for name, mutant in ARTIFACT_MUTANTS.items()]
    lines += [
        "",
        "## References",
        "",
        "What must not be compared with; the candidate is the reference itself, so nothing else can be what fails.",
        "",
        "| fault | in words | what the gate says |",
        "|---|---|---|",
    ]
    lines += [f"| {name} | {wrong.fault} | {wrong.says} |" for name, wrong in WRONG_REFERENCES.items()]
    return "\n".join(lines) + "\n"


def asked(name: str) -> Iterable[str]:
    """Return the dtypes in which a fault must be caught."""
    return MUTANTS[name].dtypes


def alone(check: str) -> list[str]:
    """Return the faults that in some dtype only this check catches."""
    return [name for name in MUTANTS if any(judge(name, dtype).caught == {check} for dtype in asked(name))]


def _cells(name: str) -> list[str]:
    """Return a fault's row: for each check, a place for each dtype; empty where the check caught it in none."""
    cells = []
    for check in CHECKS:
        places = [
            "." if dtype not in asked(name) else "x" if check in judge(name, dtype).caught else "-" for dtype in DTYPES
        ]
        cells.append(f"`{''.join(places)}`" if "x" in places else "")
    return cells


def _besides(name: str) -> str:
    missing = [dtype for dtype in DTYPES if dtype not in asked(name)]
    left_out = f" Not in {' and '.join(missing)}: {MUTANTS[name].why}." if missing else ""
    depends = MUTANTS[name].depends
    return left_out + (f" By {' and '.join(depends)} on some machines only." if depends else "")


def committed(text: str) -> dict[str, dict[str, frozenset[str]]]:
    """Return the checks that a page says catch each fault in each dtype."""
    rows = {}
    for line in text.splitlines():
        name, *cells = [cell.strip() for cell in line.strip("|").split("|")]
        if name in MUTANTS and len(cells) == len(CHECKS):
            rows[name] = {
                dtype: frozenset(
                    check
                    for check, cell in zip(CHECKS, cells, strict=True)
                    if cell.strip("`")[place : place + 1] == "x"
                )
                for place, dtype in enumerate(DTYPES)
            }
    return rows


def without_margins(text: str) -> str:
    """Return a page without what may depend on the machine: the marks, and what each check catches."""
    kept = re.sub(r"`[x.-]{3}`", "", text)
    return re.sub(r"^(\| [\w-]+) \| \d+ \| .*\|$", r"\1 |", kept, flags=re.MULTILINE)


def main() -> None:
    """Show the difference from the page, and write it if asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true")
    write = parser.parse_args().write
    program = trace(adapter_of(tiny.classifier()), [BUCKET])
    text = page(judge_graphs(true_graph(program), program))
    old = PAGE.read_text() if PAGE.exists() else ""
    lines = difflib.unified_diff(old.splitlines(), text.splitlines(), "docs/mutants.md", "now", lineterm="", n=1)
    print("\n".join(lines) or "docs/mutants.md: unchanged")
    if write:
        PAGE.write_text(text)


if __name__ == "__main__":
    main()
