"""The gate's report for people and for machines: in a file of any format, on screen, and in a manifest."""

from __future__ import annotations

import json
import re
from pathlib import Path

from rich.box import SIMPLE
from rich.table import Table

from naflex_export.accuracy.report.html import as_html
from naflex_export.accuracy.report.junit import as_junit
from naflex_export.accuracy.report.markdown import as_markdown
from naflex_export.accuracy.report.phrases import percent, shorten
from naflex_export.accuracy.report.suffix import write_report
from naflex_export.accuracy.results import CaseResult, GateReport


def write(report: GateReport, path: Path) -> None:
    """Write the report in the format that the path's suffix says: .html, .json, .md or .xml (JUnit).

    Raises:
        RequestError: the suffix is another, or the file cannot be written.
    """
    write_report(report, path, {".html": as_html, ".json": as_json, ".md": as_markdown, ".xml": as_junit})


def as_json(report: GateReport) -> str:
    """Return the whole report as JSON."""
    return json.dumps(report.to_json(), indent=2) + "\n"


ROOMY = 100
"""Columns from which a case's name has a line."""


FIGURE, VERDICT = 7, 4
"""Columns of a figure such as 3.5e-07, and of FAIL."""


def table(report: GateReport, width: int = 120) -> Table:
    """Return the report as a table: a row for each output of each batch, the limits below.

    The verdict is never cut, and no name in the midst of a word: where there is little room, the table goes without
    what a verdict does not need, the largest difference itself and then the grids. Names go without what is the same
    for all: the seed, and the tokens of the only bucket.

    Args:
        report: to show.
        width: columns that there are for it.
    """
    logits = any(result.measures.top1_agreement is not None for result in report.results)
    names = [_name(result, report, width) for result in report.results]
    grids = [f"{result.images}: {shorten(result.grids)}" for result in report.results]
    with_grids, with_abs = _what_fits(report, names, grids, 4 if logits else 3, width)
    rows = Table(
        title=f"{report.judged}, against eager float32",
        title_justify="left",
        title_style="bold",
        box=SIMPLE,
        padding=(0, 1, 0, 0),
    )
    rows.add_column("case", overflow="fold")
    if with_grids:
        rows.add_column(GRIDS, no_wrap=True)
    for heading in (*(["max abs"] if with_abs else []), "of max", "rel L2", "1-cos", *(["top-1"] if logits else [])):
        rows.add_column(heading, justify="right", no_wrap=True, min_width=FIGURE)
    rows.add_column("", justify="right", no_wrap=True, min_width=VERDICT)
    for result, name, shown in zip(report.results, names, grids, strict=True):
        found = result.measures
        rows.add_row(
            name,
            *([shown] if with_grids else []),
            *([f"{found.max_abs:.1e}"] if with_abs else []),
            f"{found.max_share:.1e}",
            f"{found.relative_l2:.1e}",
            f"{1 - found.worst_cosine:.0e}",
            *([percent(found.top1_agreement)] if logits else []),
            "[bold red]FAIL[/]" if result.exceeded else "[green]ok[/]",
        )
    limits = report.limits
    rows.add_section()
    rows.add_row(
        "limit",
        *([report.dtype] if with_grids else []),
        *([""] if with_abs else []),
        f"{limits.max_share:.1e}",
        f"{limits.relative_l2:.1e}",
        f"{1 - limits.worst_cosine:.0e}",
        *([percent(limits.agreement)] if logits else []),
        "",
    )
    return rows


GRIDS = "images, grids"


def _name(result: CaseResult, report: GateReport, width: int) -> str:
    """Return the name of a row, with its output where there are several."""
    name = result.case.removesuffix(f"-seed{report.seed}")
    if len({one.bucket for one in report.results}) == 1:
        name = re.sub(rf"-{result.bucket.split(':')[0]}(?=-|$)", "", name, count=1)
    if width < ROOMY:
        name = name.replace("/", "/\n")  # better there than in the midst of a word
    several = len({one.output for one in report.results}) > 1
    return f"{name} {result.output.rpartition('/')[2]}" if several else name  # the part is in the case's name


def _what_fits(report: GateReport, names: list[str], grids: list[str], figures: int, width: int) -> tuple[bool, bool]:
    """Return whether there is room for grids, and for the largest differences, where names are broken between words."""
    word = max((len(word) for name in [*names, "case"] for word in name.split()), default=0)
    needed = [word, *[FIGURE] * figures, VERDICT]
    with_grids = _width([*needed, max(map(len, [GRIDS, *grids]))]) <= width
    one_output = len({result.output for result in report.results}) <= 1
    with_abs = one_output and _width([*needed, max(map(len, [GRIDS, *grids])), FIGURE]) <= width
    return with_grids, with_abs


def _width(columns: list[int]) -> int:
    """Return how wide a table is: each column has one space behind it, one between it and the next, and one around."""
    return 1 + sum(columns) + 2 * len(columns)


def verdict(report: GateReport) -> dict[str, object]:
    """Return what a manifest says of the gate."""
    full = report.to_json()
    return {
        "passed": report.passed,
        "judged": report.judged,
        "not_run": report.not_run,
        "worst": full["worst"],
        "limits": full["limits"],
        "baselines": full["baselines"],
        "cases": len(report.results),
        "no_photos": report.no_photos,
        "invariances": len(report.invariances),
        "report": "gate/report.json",
    }
