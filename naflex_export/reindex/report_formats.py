"""A comparison of two artifacts in words, and as HTML, Markdown, JUnit and JSON."""

from __future__ import annotations

import json
from pathlib import Path
from xml.etree import ElementTree
from xml.etree.ElementTree import Element

from naflex_export.accuracy.report.markup import clean, document, tag
from naflex_export.accuracy.report.style import stylesheet
from naflex_export.accuracy.report.suffix import write_report
from naflex_export.embed.thumbnail import thumbnail
from naflex_export.errors import PhotoError
from naflex_export.reindex.compare_report import DECADES, CompareReport, Found, Moved

MOST_SHOWN = 12
"""Bad photos that are named; the rest are counted."""

NEIGHBOURS = 5
"""Photos beside each of the worst, of either artifact."""


def write(report: CompareReport, path: Path) -> None:
    """Write the report in the format that the path's suffix says: .html, .json, .md or .xml (JUnit).

    Raises:
        RequestError: the suffix is another, or the file cannot be written.
    """
    write_report(report, path, {".html": as_html, ".json": as_json, ".md": as_markdown, ".xml": as_junit})


def lines(report: CompareReport) -> list[str]:
    """Return the figures of a report in words, a line each."""
    cosines = report.quantiles()
    found = [
        f"recall@{report.k} {report.recall:.4f} of {report.photos} photos, an old index searched by the new artifact; "
        f"expected at least {report.min_recall:g} (by chance {report.chance:.2g})",
        f"overlap {report.overlap:.4f} of the {report.k} nearest, each artifact in an index of its own",
        f"{report.finds_itself:.1%} of the photos find themselves first",
        "cosine of a photo's two vectors: " + ", ".join(f"{name} {value:.6f}" for name, value in cosines.items()),
    ]
    found += [f"what differs: {line}" for line in report.differences]
    return found + _bad(report)


def _bad(report: CompareReport) -> list[str]:
    """Return which photos could not be read, and why."""
    if not report.bad_photos:
        return []
    told = [f"{name}: {why}" for name, why in report.bad_photos.items()]
    rest = [f"and {len(told) - MOST_SHOWN} more"] if len(told) > MOST_SHOWN else []
    return [f"{len(told)} photos cannot be read, and are left out:", *told[:MOST_SHOWN], *rest]


def as_json(report: CompareReport) -> str:
    """Return the whole report as JSON."""
    return json.dumps(report.to_json(), indent=2) + "\n"


def as_markdown(report: CompareReport) -> str:
    """Return the verdict and the figures, for a CI job's summary."""
    verdict = "the index may be kept" if report.passed else "**the index must be built anew**"
    told = [f"### Compared: {verdict}", "", f"Old: {report.old}", "", f"New: {report.new}", ""]
    told += [f"- **{failure}**" for failure in report.failures] + [f"- {line}" for line in lines(report)]
    told += ["", "| photo of which least is found again | recall | cosine |", "|---|--:|--:|"]
    told += [
        f"| {one.photo.name.replace('|', chr(92) + '|')} | {one.recall:.2f} | {one.photo.cosine:.6f} |"
        for one in report.worst[:MOST_SHOWN]
    ]
    return "\n".join(clean(" ".join(line.splitlines())) for line in told) + "\n"


def as_junit(report: CompareReport) -> str:
    """Return a test for the recall and one for each artifact's vectors; a photo that cannot be read is skipped."""
    recall = "" if report.recall >= report.min_recall else report.failures[0]
    tests = [_test(f"recall@{report.k}", recall)]
    for side in ("old", "new"):
        named = [failure for failure in report.failures if failure.startswith(f"the {side} artifact's vectors")]
        tests.append(_test(f"vectors of the {side} artifact", "".join(named)))
    for name, why in report.bad_photos.items():
        tests.append(_test(f"photo {name}"))
        tests[-1].append(tag("skipped", message=why))
    suite = tag("testsuite", name="naflex_export compare", tests=len(tests), errors=0)
    suite.set("failures", str(sum(test.find("failure") is not None for test in tests)))
    suite.set("skipped", str(len(report.bad_photos)))
    suite.extend(tests)
    suite.append(tag("system-out", "\n".join(lines(report))))
    ElementTree.indent(suite)
    return ElementTree.tostring(suite, encoding="unicode", xml_declaration=True) + "\n"


def _test(name: str, failure: str = "") -> Element:
    test = tag("testcase", classname="naflex_export.compare", name=name)
    if failure:
        test.append(tag("failure", failure, message=failure, type="recall"))
    return test


def as_html(report: CompareReport) -> str:
    """Return the report as one page without scripts, with the photos of which least is found again."""
    verdict = "the index may be kept" if report.passed else "the index must be built anew"
    banner = tag(
        "header",
        tag("h1", f"Compared: {verdict}"),
        tag("p", f"Recall@{report.k} is {report.recall:.4f}; expected at least {report.min_recall:g}."),
        class_="verdict" if report.passed else "failed verdict",
    )
    facts = {"old": str(report.old), "new": str(report.new), "photos": str(report.photos)}
    main = tag(
        "main",
        banner,
        tag("dl", *(part for name, text in facts.items() for part in (tag("dt", name), tag("dd", text)))),
        *([tag("h2", "What failed"), _list(report.failures)] if report.failures else []),
        tag("h2", "Figures"),
        _list(lines(report)),
        tag("h2", "How far vectors move"),
        tag("div", _moves(report), class_="wide"),
        tag("h2", "Photos of which least is found again"),
        tag("p", _ABOUT_WORST, class_="note"),
        *(_worst(report, one) for one in report.worst),
    )
    return document(f"Compared: {verdict}", stylesheet() + _STYLE, main)


_ABOUT_WORST = (
    "Above what the old artifact finds among its own vectors, below what the new one finds among them. A photo with a "
    "dashed outline is in one of the two rows only."
)

_STYLE = """
figure{margin:0;width:128px;flex:none}
figure img{max-width:120px;max-height:120px;display:block}
figcaption{font-size:.75rem;color:var(--muted);overflow-wrap:anywhere}
.photos{display:flex;gap:.5rem;align-items:flex-start;overflow-x:auto;margin:.3rem 0}
.photos figure:first-child{border-right:3px solid var(--edge);margin-right:.4rem}
figure.alone img{outline:2px dashed var(--bad);outline-offset:2px}
"""


def _list(texts: list[str]) -> Element:
    return tag("ul", *(tag("li", text) for text in texts))


def _moves(report: CompareReport) -> Element:
    """Return a table of how many photos moved by how much, with a bar for each."""
    counts = report.moves()
    names = [*(f"up to 1e{power}" if power else "up to 1" for power in DECADES), "above 1"]
    rows = [
        tag(
            "tr",
            tag("td", name),
            tag("td", str(count), class_="n"),
            tag("td", tag("svg", _bar(count, max(counts)), width=240, height=14, aria_hidden="true")),
        )
        for name, count in zip(names, counts, strict=True)
    ]
    head = tag("thead", tag("tr", tag("th", "1 - cosine"), tag("th", "photos"), tag("th", "")))
    return tag("table", head, tag("tbody", *rows))


def _bar(count: int, most: int) -> Element:
    group = tag("g", class_="candidate")
    group.append(tag("rect", x=0, y=2, width=round(240 * count / max(1, most), 1), height=10))
    return group


def _worst(report: CompareReport, one: Moved) -> Element:
    title = tag("h3", f"{one.photo.name}: recall {one.recall:.2f}, cosine {one.photo.cosine:.6f}")
    places = [{found.place for found in side} for side in (one.old, one.new)]
    rows = [
        tag(
            "div",
            _figure(report, one.photo, name),
            *(
                _figure(report, found, f"{found.cosine:.4f}", alone=found.place not in others)
                for found in side[:NEIGHBOURS]
            ),
            class_="photos",
        )
        for name, side, others in (("old finds", one.old, places[1]), ("new finds", one.new, places[0]))
    ]
    return tag("section", title, *rows)


def _figure(report: CompareReport, found: Found, caption: str, alone: bool = False) -> Element:
    name = found.name.replace("\\", "/").rsplit("/", 1)[-1]
    try:
        assert report.source is not None  # a report that was made has it
        (photo,) = report.source.read(found.place, found.place + 1)
        shown = tag("img", src=thumbnail(photo), alt=name)
    except PhotoError as error:  # it was there when it was embedded
        shown = tag("p", str(error), class_="note")
    return tag(
        "figure", shown, tag("figcaption", f"{caption}, {name}"), title=found.name, class_="alone" if alone else ""
    )
