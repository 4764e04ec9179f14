"""The gate's report for people and for machines: a table on screen, JSON, Markdown for a CI summary, JUnit XML."""

from __future__ import annotations

import json
import re
from pathlib import Path
from xml.etree import ElementTree

from rich.box import SIMPLE
from rich.table import Table

from naflex_export.accuracy.results import BASELINE_FACTOR, GateReport
from naflex_export.errors import RequestError


def write(report: GateReport, path: Path) -> None:
    """Write the report in the format that the path's suffix says: .json, .md or .xml (JUnit).

    Raises:
        RequestError: the suffix is another, or the file cannot be written.
    """
    formats = {".json": as_json, ".md": as_markdown, ".xml": as_junit}
    if path.suffix not in formats:
        raise RequestError(f"report {str(path)!r} ends in {path.suffix!r}: expected one of {', '.join(formats)}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(formats[path.suffix](report), encoding="utf-8")
    except OSError as error:
        raise RequestError(f"report {str(path)!r} cannot be written: {error.strerror}") from error


def as_json(report: GateReport) -> str:
    """Return the whole report as JSON."""
    return json.dumps(report.to_json(), indent=2) + "\n"


def as_markdown(report: GateReport) -> str:
    """Return the verdict, what failed and the figures of each case, for a CI job's summary."""
    verdict = "passed" if report.passed else "**FAILED**"
    lines = [f"### Accuracy gate: {verdict}", "", f"Judged: {report.judged}, against eager float32.", ""]
    if report.not_run:
        lines += [f"Not run: {report.not_run}.", ""]
    told = [*report.failures, *([report.location.line] if report.location else [])]
    lines += [f"- {_cell(line)}" for line in told] + [""] * bool(told)
    lines += [
        "| case | output | images | grids | of max | rel L2 | 1-cos | top-1 | |",
        "|---|---|--:|---|--:|--:|--:|--:|---|",
    ]
    for result in report.results:
        found = result.measures
        lines.append(
            f"| {_cell(result.case)} | {result.output} | {result.images} | {_shorten(result.grids)} "
            f"| {found.max_share:.1e} | {found.relative_l2:.1e} | {1 - found.worst_cosine:.0e} "
            f"| {_percent(found.top1_agreement)} | {'FAIL' if result.broken else 'ok'} |"
        )
    limits = report.limits
    lines.append(
        f"| limit | | | {report.dtype} | {limits.max_share:.1e} | {limits.relative_l2:.1e} "
        f"| {1 - limits.worst_cosine:.0e} | {_percent(limits.agreement)} | |"
    )
    notes = [*baseline_lines(report), invariance_line(report)]
    lines += ["", *(f"- {_cell(note)}" for note in notes if note)]
    return "\n".join(lines) + "\n"


def as_junit(report: GateReport) -> str:
    """Return the report as JUnit XML: a test case for each output of each batch, each invariance and each baseline."""
    suite = ElementTree.Element("testsuite", name="naflex_export gate")
    case, where = (report.location.case, report.location.line) if report.location else ("", "")
    for result in report.results:
        detail = where if result.case == case else ""
        _add_case(suite, f"{result.case} [{result.output}]", ", ".join(result.broken), detail)
    for found in report.invariances:
        _add_case(suite, f"invariance: {found.name}", found.broken)
    for baseline in report.baselines:
        _add_case(suite, f"baseline [{baseline.output}]", baseline.broken, where)
    for problem in report.problems:
        _add_case(suite, "problem", problem)
    suite.set("tests", str(len(suite)))
    suite.set("failures", str(len(suite.findall("testcase/failure"))))
    if where:
        ElementTree.SubElement(suite, "system-out").text = where
    ElementTree.indent(suite)
    return ElementTree.tostring(suite, encoding="unicode", xml_declaration=True) + "\n"


def _add_case(suite: ElementTree.Element, name: str, broken: str, detail: str = "") -> None:
    case = ElementTree.SubElement(suite, "testcase", classname="naflex_export.gate", name=name)
    if broken:
        ElementTree.SubElement(case, "failure", message=f"{broken}; {detail}" if detail else broken)


def _cell(text: str) -> str:
    """Return text that cannot end a Markdown table's cell."""
    return text.replace("|", "\\|").replace("\n", " ")


def table(report: GateReport) -> Table:
    """Return the report as a table: a row for each output of each batch, the limits below.

    Case names go without what is the same for all: the seed, and the tokens of the only bucket.
    """
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
    rows.add_column("case", no_wrap=True)
    rows.add_column("images, grids", no_wrap=True)
    for heading in (*([] if several else ["max abs"]), "of max", "rel L2", "1-cos", *(["top-1"] if logits else []), ""):
        rows.add_column(heading, justify="right", no_wrap=True)
    for result in report.results:
        found = result.measures
        name = result.case.removesuffix(f"-seed{report.seed}")
        if one_bucket:
            name = re.sub(rf"-{result.bucket.split(':')[0]}(?=-|$)", "", name, count=1)
        rows.add_row(
            f"{name} {result.output}" if several else name,
            f"{result.images}: {_shorten(result.grids)}",
            *([] if several else [f"{found.max_abs:.1e}"]),
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
        *([] if several else [""]),
        f"{limits.max_share:.1e}",
        f"{limits.relative_l2:.1e}",
        f"{1 - limits.worst_cosine:.0e}",
        *([_percent(limits.agreement)] if logits else []),
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
