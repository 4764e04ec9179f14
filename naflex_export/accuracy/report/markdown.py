"""The gate's report as Markdown, for the summary of a CI job: what a reviewer needs first, the rest folded."""

from __future__ import annotations

import re
from collections.abc import Sequence

from naflex_export.accuracy.report.markup import clean
from naflex_export.accuracy.report.phrases import (
    MOST_LINES,
    facts,
    invariance_line,
    location_line,
    rerun_command,
    rerun_line,
    survey_line,
    verdict_line,
    warnings,
)
from naflex_export.accuracy.report.tables import (
    Cell,
    Table,
    baseline_table,
    cases_table,
    limits_table,
    search_table,
    summary_table,
)
from naflex_export.accuracy.results import GateReport


def as_markdown(report: GateReport) -> str:
    """Return the verdict, what failed and the figures, for a CI job's summary; long lists are folded."""
    lines = [f"### Accuracy gate: {'passed' if report.passed else '**FAILED**'}", "", _text(verdict_line(report)), ""]
    for warning in warnings(report):
        lines += [f"> {_text(warning)}", ""]
    lines += _failures(report)
    if report.search is not None:
        lines += [f"**What is kept in float32:** {_text(report.search.line.removeprefix('search: '))}", ""]
        lines += _table(search_table(report.search))
    if report.results:
        lines += ["Worst of all cases:", "", *_table(limits_table(report))]
        if report.baselines:
            lines += [f"Root mean square error beside that of eager in {report.dtype}:", ""]
            lines += _table(baseline_table(report))
        lines += ["Worst of each bucket:", "", *_table(summary_table("bucket", report.by_bucket))]
    invariances = invariance_line(report)
    lines += [_text(invariances[:1].upper() + invariances[1:]) + ".", ""] if invariances else []
    surveyed = survey_line(report)
    lines += [_text(surveyed[:1].upper() + surveyed[1:]) + ".", ""] if surveyed else []
    judged = Table(("", ""), tuple((Cell(name), Cell(text)) for name, text in facts(report)))
    return (
        "\n".join([*lines, *_cases(report), *_folded("What was judged, and on what", _table(judged))]).rstrip() + "\n"
    )


def _failures(report: GateReport) -> list[str]:
    """Return where it begins to fail, which many cases would hide below them; these; and how to run them again."""
    located, command = location_line(report), rerun_command(report)
    found: list[str] = []
    if report.diagnosis:
        found += [f"**Diagnosis:** {_text(report.diagnosis.removeprefix('diagnosis: '))}", ""]
    if located:
        found += [f"**First deviation:** {_text(located.removeprefix('first deviation: '))}", ""]
    lines = [f"- {_text(failure)}" for failure in report.failures]
    found += [*lines[:MOST_LINES], ""] if lines else []
    if lines[MOST_LINES:]:
        found += _folded(f"{len(lines) - MOST_LINES} more", lines[MOST_LINES:])
    if command:
        found += [rerun_line(report), "", "```sh", clean(command), "```", ""]
    return found


def _cases(report: GateReport) -> list[str]:
    """Return the table of cases; where it is long it is folded, and the first that failed are above it."""
    if not report.results:
        return []
    whole = _table(cases_table(report, report.results))
    if len(report.results) <= MOST_LINES:
        return whole
    failed = [result for result in report.results if result.exceeded][:MOST_LINES]
    above = _table(cases_table(report, failed)) if failed else []
    return [*above, *_folded(f"All {len(report.results)} cases", whole)]


def _table(table: Table) -> list[str]:
    """Return a table's lines and an empty one."""
    rule = "|".join("--:" if heading.endswith("#") else "---" for heading in table.headings)
    head = " | ".join(heading.rstrip(" #") for heading in table.headings)
    return [f"| {head} |", f"|{rule}|", *(f"| {' | '.join(map(_shown, row))} |" for row in table.rows), ""]


def _shown(cell: Cell) -> str:
    if cell.code:
        code = "`" + _line(cell.text).replace("`", "'").replace("|", "\\|") + "`"
        return f"{code}: {_text(cell.note)}" if cell.note else code
    return f"**{_text(cell.text)}**" if cell.wrong else _text(cell.text)


def _folded(summary: str, lines: Sequence[str]) -> list[str]:
    return [f"<details><summary>{summary}</summary>", "", *"\n".join(lines).rstrip().split("\n"), "", "</details>", ""]


def _text(text: str) -> str:
    """Return one line that Markdown shows as it is: whatever a candidate's exception says is only text."""
    line = re.sub(r"[\\`*|~]|<(?=[A-Za-z/!?])|&(?=#?\w+;)|\](?=\()", r"\\\g<0>", _line(text))
    return re.sub(r"(?<![^\W_])_|_(?![^\W_])", r"\\_", line)  # within a word it stands for itself


def _line(text: str) -> str:
    return " ".join(clean(text).split())
