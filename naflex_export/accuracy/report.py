"""The gate's report for people and for machines: a table on screen and `gate/report.json`."""

from __future__ import annotations

import json
from pathlib import Path

from rich.box import SIMPLE
from rich.table import Table

from naflex_export.accuracy.gate import BASELINE_FACTOR, GateReport


def write_json(report: GateReport, path: Path) -> None:
    """Write the report as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(report.to_json(), indent=2) + "\n", encoding="utf-8")


def table(report: GateReport) -> Table:
    """Return the report as a table: a row for each output of each batch, the limits below."""
    several = len({result.output for result in report.results}) > 1
    logits = any(result.measures.top1_agreement is not None for result in report.results)
    rows = Table(
        title=f"{report.judged}, against eager float32",
        title_justify="left",
        title_style="bold",
        box=SIMPLE,
        padding=(0, 1, 0, 0),
    )
    rows.add_column("case", no_wrap=True)
    rows.add_column("images, grids", no_wrap=True)
    for heading in ("max abs", "of max", "rel L2", "1-cos", *(["top-1"] if logits else []), ""):
        rows.add_column(heading, justify="right", no_wrap=True)
    for result in report.results:
        found = result.measures
        name = result.case.removesuffix(f"-seed{report.seed}")
        rows.add_row(
            f"{name} {result.output}" if several else name,
            f"{result.images}: {_shorten(result.grids)}",
            f"{found.max_abs:.1e}",
            f"{found.max_share:.1e}",
            f"{found.relative_l2:.1e}",
            f"{1 - found.worst_cosine:.0e}",
            *([_percent(found.top1_agreement)] if logits else []),
            "[bold red]FAIL[/]" if result.broken else "[green]ok[/]",
        )
    limits = report.limits
    rows.add_section()
    rows.add_row(
        "limit",
        report.dtype,
        "",
        f"{limits.max_share:.1e}",
        f"{limits.relative_l2:.1e}",
        f"{1 - limits.worst_cosine:.0e}",
        *([_percent(limits.top1_agreement)] if logits else []),
        "",
    )
    return rows


def baseline_lines(report: GateReport) -> list[str]:
    """Return a line for each output of a low-precision candidate: its error beside eager's own in that dtype."""
    return [
        f"{result.output}: relative L2 error {result.candidate:.1e}, eager {report.dtype}'s own {result.baseline:.1e} "
        f"(at most {BASELINE_FACTOR:g} times as much)"
        for result in report.baselines
    ]


def invariance_line(report: GateReport) -> str:
    """Return a line that says which invariances were checked on the candidate, and how many hold."""
    names = list(dict.fromkeys(found.name for found in report.invariances))
    held = sum(not found.broken for found in report.invariances)
    return f"invariances: {held} of {len(report.invariances)} hold ({', '.join(names)})" if names else ""


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
        "invariances": len(report.invariances),
        "report": "gate/report.json",
    }


def _shorten(grids: tuple[str, ...]) -> str:
    """Return the first two distinct grids and how many more there are."""
    distinct = list(dict.fromkeys(grids))
    return " ".join(distinct[:2]) + (f" +{len(distinct) - 2}" if len(distinct) > 2 else "")


def _percent(share: float | None) -> str:
    return "" if share is None else f"{share:.0%}"
