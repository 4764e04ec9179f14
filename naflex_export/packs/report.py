"""A verdict on a port's answers in words, as JSON and as one HTML page without scripts."""

from __future__ import annotations

import json
from dataclasses import asdict
from xml.etree.ElementTree import Element

from naflex_export.accuracy.json_values import plain_json
from naflex_export.accuracy.report.markup import document, tag
from naflex_export.accuracy.report.phrases import distance, number
from naflex_export.accuracy.report.style import stylesheet
from naflex_export.accuracy.report.suffix import SUFFIXES_OF_VERDICTS
from naflex_export.packs.judge import Verdict


def lines(verdict: Verdict) -> list[str]:
    """Return a verdict's figures, a line for each case, and what was not answered."""
    found = [
        f"{one.case}: relative L2 {number(one.measures.relative_l2)}, 1-cos {distance(one.measures.worst_cosine)}, "
        f"{'FAIL' if one.exceeded else 'ok'}"
        for one in verdict.cases
    ]
    found += [
        f"{one.name}: {f'refused: {one.refused}' if one.refused else f'moved {one.moved:.1e}'}" for one in verdict.asked
    ]
    found += [f"first deviation of a stage: {verdict.stage}"] if verdict.stage and verdict.passed else []
    found += [f"not answered: {', '.join(verdict.unanswered)}"] if verdict.unanswered else []
    return found + ([f"answers to no case: {', '.join(verdict.ignored)}"] if verdict.ignored else [])


def as_json(verdict: Verdict) -> str:
    """Return a verdict as JSON; a number that is not finite is written as text."""
    told = {"schema": 1, "passed": verdict.passed, "failures": verdict.failures, **asdict(verdict)}
    return json.dumps(plain_json(told), indent=1) + "\n"


def as_html(verdict: Verdict) -> str:
    """Return a verdict as a page: whether the answers are right, the diagnosis, and the figures."""
    word = "passed" if verdict.passed else "FAILED"
    right = sum(not one.exceeded for one in verdict.cases)
    banner = tag(
        "header",
        tag("h1", f"Golden pack: {word}"),
        tag(
            "p", f"{right} of {len(verdict.cases)} cases of {verdict.origin} are within the limits of {verdict.dtype}."
        ),
        class_="verdict" if verdict.passed else "failed verdict",
    )
    main = tag("main", banner, *_diagnosis(verdict), *_failures(verdict), *_cases(verdict))
    return document(f"Golden pack: {word}", stylesheet(), main)


def _diagnosis(verdict: Verdict) -> list[Element]:
    section = []
    if verdict.diagnosis:
        text = verdict.diagnosis.removeprefix("diagnosis: ")
        section += [tag("h2", "Diagnosis"), tag("p", f"{text[:1].upper()}{text[1:]}.")]
    if verdict.stage:
        section += [tag("h2", "First deviation"), tag("p", f"{verdict.stage}.")]
    return section


def _failures(verdict: Verdict) -> list[Element]:
    if not verdict.failures:
        return []
    return [tag("h2", "What failed"), tag("ul", *(tag("li", line) for line in verdict.failures))]


def _cases(verdict: Verdict) -> list[Element]:
    headings = ("case", "of max", "relative L2", "1-cos", "")
    rows = [
        tag(
            "tr",
            tag("td", tag("code", one.case)),
            *(
                tag("td", text, class_="n")
                for text in (
                    number(one.measures.max_share),
                    number(one.measures.relative_l2),
                    distance(one.measures.worst_cosine),
                )
            ),
            tag("td", "FAIL" if one.exceeded else "ok", class_="broken" if one.exceeded else ""),
        )
        for one in verdict.cases
    ]
    head = tag("thead", tag("tr", *(tag("th", text) for text in headings)))
    section = [tag("h2", "Cases"), tag("div", tag("table", head, tag("tbody", *rows)), class_="wide")]
    if verdict.asked:
        told = (
            f"{one.name}: {f'refused: {one.refused}' if one.refused else number(one.moved)}" for one in verdict.asked
        )
        section += [tag("h2", "Moves of the vectors"), tag("ul", *(tag("li", line) for line in told))]
    if verdict.unanswered:
        section.append(tag("p", f"Not answered: {', '.join(verdict.unanswered)}.", class_="note"))
    if verdict.ignored:
        section.append(tag("p", f"Answers to no case: {', '.join(verdict.ignored)}.", class_="note"))
    return section


FORMATS = dict(zip(SUFFIXES_OF_VERDICTS, (as_html, as_json), strict=True))
"""What makes text of a verdict, by the suffix of a file."""
