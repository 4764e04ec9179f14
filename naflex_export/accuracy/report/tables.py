"""A report's tables, as cells of text: HTML and Markdown show the same ones."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from naflex_export.accuracy.report.phrases import distance, exceeded_measures, limit_rows, number, percent, shorten
from naflex_export.accuracy.results import (
    BASELINE_FACTOR,
    CaseResult,
    GateReport,
    Location,
    PrecisionSearch,
    Summary,
    Survey,
)


@dataclass(frozen=True)
class Cell:
    """One cell: its text, whether that is code, whether it says that something is wrong, and what explains it."""

    text: str
    code: bool = False
    wrong: bool = False
    note: str = ""


@dataclass(frozen=True)
class Table:
    """A table; columns whose heading ends in # hold figures, and its last row may be of the limits."""

    headings: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    ends_in_limits: bool = False

    @classmethod
    def of(cls, headings: Sequence[str], rows: Iterable[Sequence[Cell | str]], ends_in_limits: bool = False) -> Table:
        """Return the table of some rows, without the columns that are empty in all of them.

        Args:
            headings: of all columns.
            rows: a cell for each column.
            ends_in_limits: whether the last row is of the limits.
        """
        cells = [[cell if isinstance(cell, Cell) else Cell(cell) for cell in row] for row in rows]
        kept = [index for index in range(len(headings)) if any(row[index].text for row in cells)]
        shown = tuple(tuple(row[index] for index in kept) for row in cells)
        return cls(tuple(headings[index] for index in kept), shown, ends_in_limits)


def limits_table(report: GateReport) -> Table:
    """Return the worst of each measure beside its limit."""
    return Table.of(
        ("measure", "worst #", "limit #", ""),
        [
            (Cell(row.measure, code=True, note=row.meaning), row.worst, row.limit, _verdict(row.holds))
            for row in limit_rows(report)
        ],
    )


def baseline_table(report: GateReport) -> Table:
    """Return the error of each output beside that of eager itself; no rows in float32."""
    return Table.of(
        ("output", "candidate #", f"eager in {report.dtype} #", "ratio #", "limit #", ""),
        [
            (
                Cell(found.output, code=True),
                number(found.candidate),
                number(found.baseline),
                _ratio(found.candidate, found.baseline),
                f"{BASELINE_FACTOR:g}x, {found.limit:g}",
                _verdict(not found.failure),
            )
            for found in report.baselines
        ],
    )


def _ratio(candidate: float, baseline: float) -> str:
    """Return how many times the baseline's error a candidate's is; a dash where that is no number."""
    ratio = candidate / baseline if baseline else math.nan
    if not math.isfinite(ratio):
        return "-"
    return f"{number(ratio)}x" if ratio >= 1 else f"{ratio:.2g}x"


def summary_table(of: str, found: Sequence[Summary]) -> Table:
    """Return a row for each bucket, or for each grid, with its output where there are several."""
    several = len({summary.output for summary in found}) > 1
    return Table.of(
        (of, "output", "images #", "largest difference #", "relative L2 #", "1-cos #"),
        [
            (
                Cell(summary.of, code=True),
                summary.output if several else "",
                str(summary.images),
                number(summary.max_abs),
                number(summary.relative_l2),
                distance(summary.worst_cosine),
            )
            for summary in found
        ],
    )


def cases_table(report: GateReport, results: Sequence[CaseResult]) -> Table:
    """Return a row for each of some outputs of cases, and the limits last."""
    several = len({result.output for result in report.results}) > 1
    logits = any(result.measures.top1_agreement is not None for result in results)
    limits, rows = report.limits, [_case(result, several) for result in results]
    agreement = [percent(limits.agreement) if logits else ""] * 2
    allowed = [number(limits.max_share), number(limits.relative_l2), distance(limits.worst_cosine), *agreement]
    headings = ("case", "output", "images #", "tokens #", "grids", "of max #", "relative L2 #", "1-cos #", "top-1 #")
    last = ("limit", "", "", "", report.dtype, *allowed, "")
    return Table.of((*headings, "top-5 #", ""), [*rows, last], ends_in_limits=True)


def _case(result: CaseResult, several: bool) -> tuple[Cell | str, ...]:
    found, exceeded = result.measures, exceeded_measures(result)
    figures = {
        "max_share": number(found.max_share),
        "relative_l2": number(found.relative_l2),
        "worst_cosine": distance(found.worst_cosine),
        "top1_agreement": percent(found.top1_agreement),
        "top5_agreement": percent(found.top5_agreement),
    }
    return (
        Cell(result.case, code=True),
        result.output if several else "",
        str(result.images),
        str(result.tokens),
        Cell(shorten(result.grids), note=", ".join(dict.fromkeys(result.grids))),
        *(Cell(text, wrong=name in exceeded) for name, text in figures.items()),
        _verdict(not result.exceeded),
    )


def invariances_table(report: GateReport) -> Table:
    """Return a row for each invariance that was checked."""
    return Table.of(
        ("what was changed", "bucket", "moved by #", "", "what is wrong"),
        [
            (found.name, Cell(found.bucket, code=True), number(found.moved), _verdict(not found.failure), found.failure)
            for found in report.invariances
        ],
    )


def behaviours_table(survey: Survey) -> Table:
    """Return a row for each behaviour that was asked for."""
    return Table.of(
        ("what was done", "moved by #", "", "what is wrong"),
        [(found.name, number(found.moved), _verdict(not found.failure), found.failure) for found in survey.behaviours],
    )


def taps_table(location: Location) -> Table:
    """Return a row for each module, in the order in which they run."""
    return Table.of(
        ("module", "relative L2 #", "floor #", "largest value #", "the reference's #", "dtype holds #"),
        [
            (
                Cell(tap.module, code=True),
                Cell(number(tap.relative_l2), wrong=tap.deviates),
                number(tap.floor),
                number(tap.max_abs),
                number(tap.reference_max_abs),
                number(tap.dtype_max),
            )
            for tap in location.taps
        ],
    )


def search_table(found: PrecisionSearch) -> Table:
    """Return a row for each trial of a search for what to keep in float32."""
    return Table.of(
        ("kept in float32", "relative L2 #", "estimated time #", "", "why it was tried"),
        [
            (
                Cell(",".join(step.keep_float32) or "nothing", code=bool(step.keep_float32)),
                number(step.relative_l2),
                f"{step.cost:.2f}x",
                _verdict(step.passed),
                step.why,
            )
            for step in found.steps
        ],
    )


def skipped_table(report: GateReport) -> Table:
    """Return a row for each file among the photos that was left out."""
    return Table.of(("file", "why"), [(Cell(name, code=True), why) for name, why in report.skipped_photos.items()])


def _verdict(holds: bool) -> Cell:
    return Cell("ok") if holds else Cell("FAIL", wrong=True)
