"""A 16-bit artifact that this machine computes in more digits is judged twice: as it runs here, and as a GPU rounds it.

ONNX Runtime's CPU provider computes a float16 graph in float32. What it gives is right for this machine, and says
nothing of the one with a GPU that most such files are made for.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TypeVar

from naflex_export.accuracy.cases import is_quick
from naflex_export.accuracy.comparison import EagerOutputs
from naflex_export.accuracy.efforts import CaseSelection
from naflex_export.accuracy.parts import ROUNDED, merged, selections_by_part
from naflex_export.accuracy.results import GateReport
from naflex_export.serving.runner import Runner
from naflex_export.targets import target_named

Candidate = TypeVar("Candidate")

JudgeOne = Callable[[Candidate | Runner, CaseSelection, EagerOutputs | None], GateReport]
"""Judges a candidate on cases, with what eager gave on some of them for another."""


def with_gpu_rounding(
    candidate: Candidate,
    cases: CaseSelection,
    judge_one: JudgeOne[Candidate],
    repeats: Callable[[str], bool] = is_quick,
) -> GateReport:
    """Return the report on a candidate, and where it is computed in more digits here, on its rounded form beside it.

    Args:
        candidate: what is judged.
        cases: asked for; those of the rounded form have `rounded/` before their names.
        judge_one: judges either of them.
        repeats: whether the rounded form is judged on a case too, by its name: how sums are rounded shows in any.
    """
    rounded = target_named(candidate.manifest.target).as_on_gpu(candidate) if isinstance(candidate, Runner) else None
    if rounded is None:
        return judge_one(candidate, cases, None)
    eager, reports = EagerOutputs(repeats), {}
    parts = selections_by_part(cases, ["", ROUNDED])
    if "" in parts:
        reports[""] = judge_one(candidate, parts[""], eager)
    again = parts.get(ROUNDED) if cases.only else replace(cases, only=tuple(eager.of))
    if again is not None and again.only:
        reports[ROUNDED] = judge_one(rounded, again, eager)
    told = {part: report.judged for part, report in reports.items()}
    if ROUNDED in told:
        told[ROUNDED] = f"{ROUNDED}/: the same graph with each result rounded to {rounded.manifest.dtype}, as on a GPU"
    return replace(merged(reports), only=cases.only, judged="; ".join(told.values()))
