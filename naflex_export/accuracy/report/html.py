"""The gate's report as one HTML page that stands on its own: no script, no link, no file beside it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from xml.etree.ElementTree import Element

from naflex_export.accuracy.report.markup import document, tag
from naflex_export.accuracy.report.phrases import (
    MOST_LINES,
    facts,
    location_line,
    rerun_command,
    rerun_line,
    survey_line,
    tap_line,
    verdict_line,
    warnings,
)
from naflex_export.accuracy.report.style import stylesheet
from naflex_export.accuracy.report.svg import (
    colour_legend,
    coverage_maps,
    distribution_plot,
    heat_map,
    layer_plot,
    search_plot,
)
from naflex_export.accuracy.report.tables import (
    Cell,
    Table,
    baseline_table,
    behaviours_table,
    cases_table,
    invariances_table,
    limits_table,
    search_table,
    skipped_table,
    summary_table,
    taps_table,
)
from naflex_export.accuracy.results import GateReport, Location, PrecisionSearch, Summary


def as_html(report: GateReport) -> str:
    """Return the report as a page: the verdict, where it fails and what, three drawings, and the tables behind them."""
    verdict = "passed" if report.passed else "FAILED"
    about = f" \N{EN DASH} {report.artifact.model}, {report.artifact.target}" if report.artifact else ""
    main = tag(
        "main",
        _banner(report, verdict),
        *(tag("p", text, class_="warning") for text in warnings(report)),
        tag("dl", *(part for name, text in facts(report) for part in (tag("dt", name), tag("dd", text)))),
        *_diagnosis(report),
        *_first_deviation(report),
        *_failures(report),
        *_search(report.search),
        *_limits(report),
        *_error_by_grid(report),
        *_error_by_layer(report.location),
        *_distributions(report),
        *_cases(report),
        *_invariances(report),
        *_survey(report),
        tag("footer", tag("p", _FOOTER, class_="note")),
    )
    return document(f"Accuracy gate: {verdict}{about}", stylesheet(), main)


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
            tag("p", rerun_line(report)),
            tag("pre", command),
        ]
    return section


def _diagnosis(report: GateReport) -> list[Element]:
    """Return which typical fault the candidate has, if that was looked for."""
    if not report.diagnosis:
        return []
    return [tag("h2", "Diagnosis"), tag("p", _sentence(report.diagnosis.removeprefix("diagnosis: ")))]


def _first_deviation(report: GateReport) -> list[Element]:
    """Return which module leaves its floor first and what to try; or why that is not known."""
    location = report.location
    if location is None:
        return []
    if location.first is None:
        text = location_line(report).removeprefix("first deviation: ")
        return [tag("h2", "First deviation"), tag("p", _sentence(text))]
    case, module = tag("code", location.case), tag("b", tag("code", location.first.module))
    where = f", in {location.instead}" if location.instead else ""
    section = [
        tag("h2", "First deviation"),
        tag("p", "The first module to leave its floor, on ", case, f"{where}, is ", module, "."),
        tag("p", _sentence(tap_line(location.first, report.dtype))),
    ]
    return [*section, *([tag("p", _sentence(location.advice))] if location.advice else [])]


def _search(found: PrecisionSearch | None) -> list[Element]:
    """Return the steps of a search for what to keep in float32."""
    if found is None:
        return []
    key = [
        _key("holds", tag("circle", cx=7, cy=7, r=4), "the gate passed"),
        _key("deviates", tag("path", d="M7 1 13 7 7 13 1 7z"), "the gate failed"),
    ]
    return [
        tag("h2", "What is kept in float32"),
        tag("p", _sentence(found.line.removeprefix("search: "))),
        tag("p", _ABOUT_SEARCH, class_="note"),
        tag("ul", *key, class_="keys note"),
        tag("div", search_plot(found), class_="wide"),
        _table(search_table(found)),
    ]


_ABOUT_SEARCH = (
    "Trials are numbered in their order. Times are counted, not measured, by multiply-adds and values moved: multiples "
    "of the model with nothing kept."
)


def _limits(report: GateReport) -> list[Element]:
    """Return the worst of each measure beside its limit, in low precision the error beside eager's own, and buckets."""
    if not report.results:
        return []
    section = [tag("h2", "Worst of all cases"), _table(limits_table(report))]
    if report.baselines:
        told = f"Root mean square relative L2 over all cases, beside the error of eager itself in {report.dtype}:"
        section += [tag("p", told, class_="note"), _table(baseline_table(report))]
    return [*section, tag("h2", "Worst of each bucket"), _table(summary_table("bucket", report.by_bucket))]


def _error_by_grid(report: GateReport) -> list[Element]:
    if not report.results:
        return []
    limit = report.limits.relative_l2
    section = [tag("h2", "Error by grid"), tag("p", _ABOUT_GRIDS, class_="note")]
    for output in dict.fromkeys(found.output for found in report.by_grid):
        grids = [found for found in report.by_grid if found.output == output]
        section += [
            *_named(output, report),
            tag("div", heat_map(grids, limit, output), class_="wide"),
            colour_legend(grids, limit),
            *_marks(grids, limit),
        ]
    return [*section, _folded("All grids as a table", _table(summary_table("grid", report.by_grid)))]


_ABOUT_GRIDS = (
    "Relative L2 error of each grid's worst image. Only heights and widths that were judged have a row or a column, so "
    "steps are not to scale; a dotted line marks a jump to twice the size or more. The limit is that of a whole batch; "
    "a single image may exceed it."
)


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
    return [
        tag("h2", "Error by layer"),
        tag("p", "Modules in the order in which they run, on ", tag("code", location.case), ".", class_="note"),
        tag("ul", *key, class_="keys note"),
        tag("div", layer_plot(location), class_="wide"),
        _folded(f"All {len(location.taps)} modules as a table", _table(taps_table(location))),
    ]


def _distributions(report: GateReport) -> list[Element]:
    if not report.distributions:
        return []
    names = {"candidate": f"candidate ({report.dtype})", "baseline": f"baseline: eager in {report.dtype}"}
    sides = dict.fromkeys(found.of for found in report.distributions)
    key = [_key(side, tag("rect", x=1, y=2, width=12, height=10), names[side]) for side in sides]
    section = [
        tag("h2", "Distribution of errors"),
        tag("p", _ABOUT_DISTRIBUTIONS, class_="note"),
        tag("ul", *key, class_="keys note"),
    ]
    for output in dict.fromkeys(found.output for found in report.distributions):
        found = [one for one in report.distributions if one.output == output]
        section += [*_named(output, report), tag("div", distribution_plot(found), class_="wide")]
    return section


_ABOUT_DISTRIBUTIONS = (
    "Share of single values with an error of each size, over all cases. Errors are shares of the reference's root mean "
    "square in each case."
)


def _cases(report: GateReport) -> list[Element]:
    """Return the table of cases; where it is long it is folded, and the first that failed are above it."""
    if not report.results:
        return []
    whole = _table(cases_table(report, report.results))
    if len(report.results) <= 2 * MOST_LINES:
        return [tag("h2", "Cases"), whole]
    failed = [result for result in report.results if result.exceeded][:MOST_LINES]
    above = [_table(cases_table(report, failed))] if failed else []
    return [tag("h2", "Cases"), *above, _folded(f"All {len(report.results)} as a table", whole)]


def _invariances(report: GateReport) -> list[Element]:
    section = []
    if report.invariances:
        section += [
            tag("h2", "Invariances"),
            tag("p", _ABOUT_INVARIANCES, class_="note"),
            _table(invariances_table(report)),
        ]
    if report.skipped_photos:
        section += [tag("h2", "Skipped photos"), _table(skipped_table(report))]
    return section


_ABOUT_INVARIANCES = (
    "The candidate compared with itself: by which share of their size the features moved. Masking a valid token must "
    "move them; nothing else may."
)


def _survey(report: GateReport) -> list[Element]:
    """Return which sizes were covered, as drawings, and how the candidate behaved."""
    survey = report.survey
    if survey is None:
        return []
    section = [tag("h2", "Sizes covered"), tag("p", _sentence(survey_line(report).removeprefix("survey: ")))]
    if survey.not_done:
        return section
    section.append(tag("p", _ABOUT_SURVEY, class_="note"))
    key = [
        _key("cell within3", tag("rect", x=1, y=1, width=12, height=12), "covered"),
        _key("cell uncovered", tag("rect", x=1, y=1, width=12, height=12), "not covered"),
    ]
    section.append(tag("ul", *key, class_="keys note"))
    for bucket in dict.fromkeys(cell.bucket for cell in survey.cells):
        maps = coverage_maps([cell for cell in survey.cells if cell.bucket == bucket])
        drawings = [tag("div", drawing, class_="wide") for drawing in maps]
        section.append(_folded(f"Bucket {bucket}", *drawings))
    if survey.behaviours:
        section += [tag("h2", "Behaviours"), _table(behaviours_table(survey))]
    return section


_ABOUT_SURVEY = (
    "Each square is a pair of sizes of two axes, and a covered one has a batch or an image in it that was compared. "
    "Images are the batch's, tokens what they are padded to, and fill which share of the tokens is valid. Pairs that "
    "cannot be are left out. Batches of many images and many tokens together cost most: --thorough has more of them."
)


def _table(table: Table) -> Element:
    """Return a table that scrolls by itself where it is too wide."""
    kinds = ["n" if heading.endswith("#") else "" for heading in table.headings]
    head = [tag("th", text.rstrip(" #"), class_=kind) for text, kind in zip(table.headings, kinds, strict=True)]
    body = [
        tag("tr", *(tag("td", _shown(cell), class_=kind) for cell, kind in zip(row, kinds, strict=True)))
        for row in table.rows
    ]
    if table.ends_in_limits:
        body[-1].set("class", "limits")
    return tag("div", tag("table", tag("thead", tag("tr", *head)), tag("tbody", *body)), class_="wide")


def _shown(cell: Cell) -> Element | str:
    """Return a cell's content; what explains code stands below it, what explains other text is its tooltip."""
    if cell.code:
        code = tag("code", cell.text)
        return tag("div", code, tag("div", cell.note, class_="note")) if cell.note else code
    if cell.wrong:
        return tag("b", cell.text, class_="broken")
    return tag("span", cell.text, title=cell.note) if cell.note else cell.text


def _folded(summary: str, *content: Element) -> Element:
    return tag("details", tag("summary", summary), *content)


def _key(name: str, mark: Element, text: str) -> Element:
    """Return an entry of a drawing's key: the mark and what it stands for."""
    return tag("li", tag("svg", tag("g", mark, class_=name), width=14, height=14, aria_hidden="true"), text)


def _named(output: str, report: GateReport) -> list[Element]:
    """Return an output's name as a heading, where there are several."""
    return [tag("h3", output)] if len({result.output for result in report.results}) > 1 else []


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:].rstrip('.')}."
