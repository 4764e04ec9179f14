"""The gate's report as one HTML page that stands on its own: no script, no link, no file beside it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from xml.etree.ElementTree import Element

from naflex_export.accuracy.markup import html_of, tag
from naflex_export.accuracy.phrases import (
    broken_measures,
    distance,
    facts,
    limit_rows,
    location_line,
    number,
    percent,
    rerun_command,
    shorten,
    tap_line,
    verdict_line,
)
from naflex_export.accuracy.results import BASELINE_FACTOR, CaseResult, GateReport, Location, Summary
from naflex_export.accuracy.style import stylesheet
from naflex_export.accuracy.svg import colour_legend, distribution_plot, heat_map, layer_plot

MOST_LINES = 12
"""Failures and cases to show before the rest are folded."""

Cell = Element | str


def as_html(report: GateReport) -> str:
    """Return the report as a page: the verdict, what failed and where, three drawings, and the tables behind them."""
    verdict = "passed" if report.passed else "FAILED"
    about = f" \N{EN DASH} {report.artifact.model}, {report.artifact.target}" if report.artifact else ""
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("title", f"Accuracy gate: {verdict}{about}"),
        tag("style", stylesheet()),
    )
    main = tag(
        "main",
        _banner(report, verdict),
        *_warnings(report),
        _facts(report),
        *_failures(report),
        *_first_deviation(report),
        *_limits(report),
        *_error_by_grid(report),
        *_error_by_layer(report.location),
        *_distributions(report),
        *_tables(report),
        tag("footer", tag("p", _FOOTER, class_="note")),
    )
    return f"<!doctype html>\n{html_of(tag('html', head, tag('body', main), lang='en'))}\n"


_FOOTER = (
    "Relative L2 is the norm of the difference over the norm of the reference; 1-cos is 1 minus the cosine between "
    "candidate and reference; both are taken over valid tokens only. A grid is height x width, in patches. "
    "The same figures as data: naflex-gate ARTIFACT --report gate.json."
)


def _banner(report: GateReport, verdict: str) -> Element:
    sign = "\N{CHECK MARK}" if report.passed else "\N{MULTIPLICATION X}"
    return tag(
        "header",
        tag("h1", f"{sign} Accuracy gate: {verdict}"),
        tag("p", verdict_line(report)),
        class_="verdict" if report.passed else "failed verdict",
    )


def _warnings(report: GateReport) -> list[Element]:
    found = []
    if report.not_run:
        found.append(f"Not run: {report.not_run}. Judged instead: {report.judged}.")
    if report.artifact is not None and report.artifact.weights == "random":
        found.append("Random weights: a dry run. The artifact computes nothing of use.")
    return [tag("p", text, class_="warning") for text in found]


def _facts(report: GateReport) -> Element:
    names = [part for name, text in facts(report) for part in (tag("dt", name), tag("dd", text))]
    return tag("dl", *names)


def _failures(report: GateReport) -> list[Element]:
    """Return what failed, and how to run that again."""
    if report.passed:
        return []
    lines = [tag("li", line) for line in report.failures or ["nothing was compared"]]
    section = [tag("h2", "What failed"), tag("ul", *lines[:MOST_LINES])]
    if lines[MOST_LINES:]:
        section.append(_folded(f"{len(lines) - MOST_LINES} more", tag("ul", *lines[MOST_LINES:])))
    command = rerun_command(report)
    if command:
        section += [
            tag("p", "To run failed cases again, and nothing else (with the same --images, if you gave them):"),
            tag("pre", command),
        ]
    return section


def _first_deviation(report: GateReport) -> list[Element]:
    """Return which module leaves its floor first and what to try; or why that is not known."""
    location = report.location
    if location is None:
        return []
    if location.first is None:
        text = location_line(report).removeprefix("first deviation: ")
        return [tag("h2", "First deviation"), tag("p", f"{_sentence(text)}.")]
    named: list[Cell] = ["The first module to leave its floor, on ", tag("code", location.case), ", is "]
    section = [
        tag("h2", "First deviation"),
        tag("p", *named, tag("b", tag("code", location.first.module)), "."),
        tag("p", f"{_sentence(tap_line(location.first, report.dtype))}."),
    ]
    return [*section, *([tag("p", f"{_sentence(location.advice)}.")] if location.advice else [])]


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:].rstrip(".")


def _limits(report: GateReport) -> list[Element]:
    """Return the worst of each measure beside its limit, and in low precision the error beside eager's own."""
    if not report.results:
        return []
    rows = [
        [
            tag("div", tag("code", row.measure), tag("div", row.meaning, class_="note")),
            row.worst,
            row.limit,
            _verdict(row.holds),
        ]
        for row in limit_rows(report)
    ]
    section = [
        tag("h2", "Worst of all cases"),
        _table(["measure", "worst #", "limit #", ""], rows),
    ]
    if report.baselines:
        beside = [
            [
                tag("code", found.output),
                number(found.candidate),
                number(found.baseline),
                f"{number(found.candidate / found.baseline)}x" if found.baseline else "",
                f"{BASELINE_FACTOR:g}x",
                _verdict(not found.broken),
            ]
            for found in report.baselines
        ]
        headings = ["output", "candidate #", f"eager in {report.dtype} #", "ratio #", "limit #", ""]
        told = f"Root mean square relative L2 over all cases, beside the error of eager itself in {report.dtype}:"
        section += [tag("p", told, class_="note"), _table(headings, beside)]
    return section


def _error_by_grid(report: GateReport) -> list[Element]:
    if not report.results:
        return []
    limit = report.limits.relative_l2
    section = [
        tag("h2", "Error by grid"),
        tag(
            "p",
            "Relative L2 error of each grid's worst image. Only heights and widths that were judged have a row or a "
            "column, so steps are not to scale; a dotted line marks a jump to twice the size or more. The limit is "
            "that of a whole batch; a single image may exceed it.",
            class_="note",
        ),
    ]
    for output, grids in _by_output(report.by_grid).items():
        section += [
            tag("h3", output),
            tag("div", heat_map(grids, limit, output), class_="wide"),
            colour_legend(grids, limit),
            *_marks(grids, limit),
        ]
    section.append(_folded("All grids as a table", _summaries("grid", report.by_grid)))
    return section


def _marks(grids: Sequence[Summary], limit: float) -> list[Element]:
    """Return what the marks stand for that only some heat maps have."""
    errors = [found.relative_l2 for found in grids]
    key = []
    if any(math.isfinite(error) and error > limit for error in errors):
        key.append(_key("cell over0", tag("rect", x=1, y=1, width=12, height=12), "above the limit"))
    if not all(map(math.isfinite, errors)):
        key.append(_key("cell notfinite", tag("rect", x=1, y=1, width=12, height=12), "not finite"))
    return [tag("ul", *key, class_="keys note")] if key else []


def _error_by_layer(location: Location | None) -> list[Element]:
    if location is None or not location.taps:
        return []
    key = [
        _key("holds", tag("circle", cx=7, cy=7, r=4), "within the floor"),
        _key("deviates", tag("path", d="M7 1 13 7 7 13 1 7z"), "above the floor"),
        _key("", tag("line", x1=7, x2=7, y1=0, y2=14, class_="floor"), "floor: what rounding explains"),
    ]
    rows: list[Sequence[Cell]] = [
        [
            tag("code", tap.module),
            tag("b", number(tap.relative_l2), class_="broken") if tap.deviates else number(tap.relative_l2),
            number(tap.floor),
            number(tap.max_abs),
            number(tap.reference_max_abs),
            number(tap.dtype_max),
        ]
        for tap in location.taps
    ]
    headings = ["module", "relative L2 #", "floor #", "largest value #", "the reference's #", "dtype holds #"]
    return [
        tag("h2", "Error by layer"),
        tag("p", "Modules in the order in which they run, on ", tag("code", location.case), ".", class_="note"),
        tag("ul", *key, class_="keys note"),
        tag("div", layer_plot(location), class_="wide"),
        _folded(f"All {len(rows)} modules as a table", _table(headings, rows)),
    ]


def _distributions(report: GateReport) -> list[Element]:
    if not report.distributions:
        return []
    of = {found.of for found in report.distributions}
    key = [_key("candidate", tag("rect", x=1, y=2, width=12, height=10), f"candidate ({report.dtype})")]
    if "baseline" in of:
        bar = tag("rect", x=1, y=2, width=12, height=10)
        key.append(_key("baseline", bar, f"baseline: eager in {report.dtype}"))
    section = [
        tag("h2", "Distribution of errors"),
        tag(
            "p",
            "Share of single values with an error of each size, over all cases. Errors are shares of the reference's "
            "root mean square in each case.",
            class_="note",
        ),
        tag("ul", *key, class_="keys note"),
    ]
    for output in dict.fromkeys(found.output for found in report.distributions):
        found = [one for one in report.distributions if one.output == output]
        section += [tag("h3", output), tag("div", distribution_plot(found), class_="wide")]
    return section


def _tables(report: GateReport) -> list[Element]:
    section: list[Element] = []
    if report.results:
        cases = _cases(report)
        section += [tag("h2", "Cases"), cases if len(report.results) <= 2 * MOST_LINES else _many(report, cases)]
        section += [tag("h2", "Buckets"), _summaries("bucket", report.by_bucket)]
    if report.invariances:
        checked: list[Sequence[Cell]] = [
            [found.name, tag("code", found.bucket), number(found.moved), _verdict(not found.broken), found.broken]
            for found in report.invariances
        ]
        section += [
            tag("h2", "Invariances"),
            tag(
                "p",
                "The candidate compared with itself: by which share of their size the features moved. Masking a valid "
                "token must move them; nothing else may.",
                class_="note",
            ),
            _table(["what was changed", "bucket", "moved by #", "", ""], checked),
        ]
    if report.skipped_photos:
        skipped: list[Sequence[Cell]] = [[tag("code", name), why] for name, why in report.skipped_photos.items()]
        section += [tag("h2", "Skipped photos"), _table(["file", "why"], skipped)]
    return section


def _many(report: GateReport, cases: Element) -> Element:
    """Return the table of cases folded, with those that failed above it."""
    failed = [result for result in report.results if result.broken]
    parts = [_cases(report, failed[:MOST_LINES])] if failed else []
    return tag("div", *parts, _folded(f"All {len(report.results)} as a table", cases))


def _cases(report: GateReport, results: Sequence[CaseResult] | None = None) -> Element:
    """Return a row for each output of each case, the limits below."""
    results = report.results if results is None else results
    logits = any(result.measures.top1_agreement is not None for result in report.results)
    several = len({result.output for result in report.results}) > 1
    headings = ["case", *(["output"] if several else [])]
    headings += ["images #", "tokens #", "grids", "of max #", "relative L2 #", "1-cos #"]
    headings += [*(["top-1 #", "top-5 #"] if logits else []), ""]
    rows: list[Sequence[Cell]] = []
    for result in results:
        found, broken = result.measures, broken_measures(result)
        figures = {
            "max_share": number(found.max_share),
            "relative_l2": number(found.relative_l2),
            "worst_cosine": distance(found.worst_cosine),
        }
        if logits:
            figures |= {
                "top1_agreement": percent(found.top1_agreement),
                "top5_agreement": percent(found.top5_agreement),
            }
        rows.append(
            [
                tag("code", result.case),
                *([result.output] if several else []),
                str(result.images),
                str(result.tokens),
                tag("span", shorten(result.grids), title=", ".join(dict.fromkeys(result.grids))),
                *(tag("b", text, class_="broken") if name in broken else text for name, text in figures.items()),
                _verdict(not result.broken),
            ]
        )
    limits = report.limits
    agreement = [percent(limits.agreement)] * 2 if logits else []
    allowed = [number(limits.max_share), number(limits.relative_l2), distance(limits.worst_cosine), *agreement]
    return _table(headings, rows, last=["limit", *([""] if several else []), "", "", report.dtype, *allowed, ""])


def _summaries(of: str, found: Sequence[Summary]) -> Element:
    """Return a row for each grid or bucket, with its output where there are several."""
    several = len({summary.output for summary in found}) > 1
    headings = [of, *(["output"] if several else []), "images #", "largest difference #", "relative L2 #", "1-cos #"]
    rows: list[Sequence[Cell]] = [
        [
            tag("code", summary.of),
            *([summary.output] if several else []),
            str(summary.images),
            number(summary.max_abs),
            number(summary.relative_l2),
            distance(summary.worst_cosine),
        ]
        for summary in found
    ]
    return _table(headings, rows)


def _verdict(holds: bool) -> Cell:
    return "ok" if holds else tag("b", "FAIL", class_="broken")


def _table(headings: Sequence[str], rows: Iterable[Sequence[Cell]], last: Sequence[Cell] = ()) -> Element:
    """Return a table that scrolls by itself where it is too wide; columns whose heading ends in # hold figures."""
    kinds = ["n" if heading.endswith("#") else "" for heading in headings]
    body = [_row(row, kinds) for row in rows]
    if last:
        body.append(_row(last, kinds, class_="limits"))
    head = tag("tr", *(tag("th", text.rstrip(" #"), class_=kind) for text, kind in zip(headings, kinds, strict=True)))
    return tag("div", tag("table", tag("thead", head), tag("tbody", *body)), class_="wide")


def _row(cells: Sequence[Cell], kinds: Sequence[str], **attributes: str) -> Element:
    return tag("tr", *(tag("td", cell, class_=kind) for cell, kind in zip(cells, kinds, strict=True)), **attributes)


def _folded(summary: str, *content: Element) -> Element:
    return tag("details", tag("summary", summary), *content)


def _key(name: str, mark: Element, text: str) -> Element:
    """Return an entry of a drawing's key: the mark and what it stands for."""
    return tag("li", tag("svg", tag("g", mark, class_=name), width=14, height=14, aria_hidden="true"), text)


def _by_output(found: Sequence[Summary]) -> dict[str, list[Summary]]:
    grouped: dict[str, list[Summary]] = {}
    for summary in found:
        grouped.setdefault(summary.output, []).append(summary)
    return grouped
