"""The gate's report for people and for machines: a table on screen and `gate/report.json`."""

from __future__ import annotations

import json
from pathlib import Path

from rich.table import Table

from naflex_export.accuracy.gate import GateReport


def write_json(report: GateReport, path: Path) -> None:
    """Write the report as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(report.to_json(), indent=2) + "\n", encoding="utf-8")


def table(report: GateReport) -> Table:
    """Return the report as a table: a row for each output of each batch, the limits below."""
    rows = Table(title=f"{report.judged} against eager float32", title_justify="left", title_style="bold")
    for heading in ("case", "output", "images x tokens", "grids"):
        rows.add_column(heading)
    for heading in ("max abs", "share", "rel. L2", "cosine", "top-1", ""):
        rows.add_column(heading, justify="right")
    for result in report.results:
        found = result.measures
        rows.add_row(
            result.case,
            result.output,
            f"{result.images} x {result.tokens}",
            _shorten(result.grids),
            f"{found.max_abs:.1e}",
            f"{found.max_share:.1e}",
            f"{found.relative_l2:.1e}",
            f"{found.worst_cosine:.7f}",
            "" if found.top1_agreement is None else f"{found.top1_agreement:.0%}",
            "[red]FAIL[/]" if result.broken else "[green]ok[/]",
        )
    limits = report.limits
    rows.add_section()
    rows.add_row(
        "limit", "", report.dtype, "", "",
        f"{limits.max_share:.1e}", f"{limits.relative_l2:.1e}",
        f"{limits.worst_cosine:.7f}", f"{limits.top1_agreement:.0%}", "",
    )  # fmt: skip
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
        "cases": len(report.results),
        "report": "gate/report.json",
    }


def _shorten(grids: tuple[str, ...]) -> str:
    distinct = list(dict.fromkeys(grids))
    return ", ".join(distinct[:3]) + (f" +{len(distinct) - 3}" if len(distinct) > 3 else "")
