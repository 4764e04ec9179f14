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
from naflex_export.accuracy.results import GateReport


def write(report: GateReport, path: Path) -> None:
    """Write the report in the format that the path's suffix says: .html, .json, .md or .xml (JUnit).

    Raises:
        RequestError: the suffix is another, or the file cannot be written.
    """
    write_report(report, path, {".html": as_html, ".json": as_json, ".md": as_markdown, ".xml": as_junit})


def as_json(report: GateReport) -> str:
    """Return the whole report as JSON."""
    return json.dumps(report.to_json(), indent=2) + "\n"


NARROW = 78
"""Columns below which the table leaves out what a verdict does not need: grids, and the largest difference itself."""

ROOMY = 100
"""Columns from which a case's name has a line."""


def table(report: GateReport, width: int = 120) -> Table:
    """Return the report as a table: a row for each output of each batch, the limits below.

    The verdict is never cut: where there is little room, names of cases are folded. They go without what is the same
    for all: the seed, and the tokens of the only bucket.

    Args:
        report: to show.
        width: columns that there are for it.
    """
    narrow = width < NARROW
    several = len({result.output for result in report.results}) > 1
    one_bucket = len({result.bucket for result in report.results}) == 1
    logits = any(result.measures.top1_agreement is not None for result in report.results)
    rows = Table(
        title=f"{report.judged}, against eager float32",
        title_justify="left",
        title_style="bold",
        box=SIMPLE,
        padding=(0, 1, 0, 0),
    )
    with_abs = not several and not narrow
    rows.add_column("case", overflow="fold")
    if not narrow:
        rows.add_column("images, grids", overflow="fold")
    for heading in (*(["max abs"] if with_abs else []), "of max", "rel L2", "1-cos", *(["top-1"] if logits else [])):
        rows.add_column(heading, justify="right", no_wrap=True, min_width=7)
    rows.add_column("", justify="right", no_wrap=True, min_width=4)
    for result in report.results:
        found = result.measures
        name = result.case.removesuffix(f"-seed{report.seed}")
        if one_bucket:
            name = re.sub(rf"-{result.bucket.split(':')[0]}(?=-|$)", "", name, count=1)
        if width < ROOMY:
            name = name.replace("/", "/\n")  # better there than in the midst of a word
        rows.add_row(
            f"{name} {result.output.rpartition('/')[2]}" if several else name,  # the part is in the case's name
            *([] if narrow else [f"{result.images}: {shorten(result.grids)}"]),
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
        *([] if narrow else [report.dtype]),
        *([""] if with_abs else []),
        f"{limits.max_share:.1e}",
        f"{limits.relative_l2:.1e}",
        f"{1 - limits.worst_cosine:.0e}",
        *([percent(limits.agreement)] if logits else []),
        "",
    )
    return rows


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
