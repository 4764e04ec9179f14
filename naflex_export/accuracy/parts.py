"""An artifact in parts, such as patch sizes or two towers: one report of theirs, and which cases are whose."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from naflex_export.accuracy.efforts import CaseSelection
from naflex_export.accuracy.results import GateReport, Location, Neighbours, Survey
from naflex_export.errors import RequestError

ROUNDED = "rounded"
"""What stands before the names of cases, with a slash, on which an artifact was judged as a GPU rounds it."""


def merged(reports: Mapping[str, GateReport]) -> GateReport:
    """Return the reports of several parts of an artifact as one, its cases named after them; passed if all have.

    Args:
        reports: by the part's name, such as "patch8" or "text"; an empty name leaves names as they are.
    """
    first = next(iter(reports.values()))
    diagnosed = next((report for report in reports.values() if report.diagnosis), first)
    results = [(part, result) for part, report in reports.items() for result in report.results]
    problems = [_within(part, problem) for part, report in reports.items() for problem in report.problems]
    return replace(
        first,
        results=tuple(replace(result, case=_within(part, result.case)) for part, result in results),
        problems=tuple(problems),
        location=_first_location(reports),
        neighbours=_worst_neighbours([report.neighbours for report in reports.values()]),
        fault=diagnosed.fault,
        diagnosis=diagnosed.diagnosis,
        only=tuple(_within(part, name) for part, report in reports.items() for name in report.only),
        invariances=tuple(
            replace(found, name=_within(part, found.name))
            for part, report in reports.items()
            for found in report.invariances
        ),
        baselines=tuple(
            replace(found, output=_within(part, found.output))
            for part, report in reports.items()
            for found in report.baselines
        ),
        distributions=tuple(
            replace(found, output=_within(part, found.output))
            for part, report in reports.items()
            for found in report.distributions
        ),
        survey=_merged_surveys({part: report.survey for part, report in reports.items() if report.survey}),
    )


def _worst_neighbours(found: Iterable[Neighbours | None]) -> Neighbours | None:
    return min(filter(None, found), key=lambda one: one.recall, default=None)


def _merged_surveys(surveys: Mapping[str, Survey]) -> Survey | None:
    """Return the surveys of several parts as one, its buckets and behaviours named after their parts."""
    if not surveys:
        return None
    return Survey(
        batches=sum(found.batches for found in surveys.values()),
        calls=sum(found.calls for found in surveys.values()),
        fresh_seed=next(iter(surveys.values())).fresh_seed,
        cells=tuple(
            replace(cell, bucket=_within(part, cell.bucket)) for part, found in surveys.items() for cell in found.cells
        ),
        behaviours=tuple(
            replace(one, name=_within(part, one.name)) for part, found in surveys.items() for one in found.behaviours
        ),
        not_done="; ".join(dict.fromkeys(found.not_done for found in surveys.values() if found.not_done)),
    )


def _first_location(reports: Mapping[str, GateReport]) -> Location | None:
    """Return the first location, of a part that failed if one did, its case named after it."""
    for part, report in sorted(reports.items(), key=lambda item: item[1].passed):  # stable: parts stay in order
        if report.location is not None:
            return replace(report.location, case=_within(part, report.location.case))
    return None


def _within(part: str, name: str) -> str:
    return f"{part}/{name}" if part else name


def selections_by_part(cases: CaseSelection, parts: Sequence[str]) -> dict[str, CaseSelection]:
    """Return the part of a selection of cases for each part of an artifact: `merged` names them `patch8/mixed-256`.

    Args:
        cases: that were asked for.
        parts: their names, as for `merged`.

    Raises:
        RequestError: a case asked for names no part of these.
    """
    if not cases.only:
        return dict.fromkeys(parts, cases)
    found: dict[str, list[str]] = {}
    for name in cases.only:
        prefix, case = _apart(name, parts)
        if prefix not in parts:
            raise RequestError(
                f"case {name!r} names no part of the artifact: expected {', '.join(filter(None, parts))} and / before "
                "it" + (", or nothing before it" if "" in parts else "")
            )
        found.setdefault(prefix, []).append(case)
    return {part: replace(cases, only=tuple(names)) for part, names in found.items()}


def _apart(name: str, parts: Sequence[str]) -> tuple[str, str]:
    """Return which of these parts a case names, and its name there: that of a rounded form is one within its part."""
    prefix, _, case = name.rpartition("/")
    if prefix not in parts and (prefix == ROUNDED or prefix.endswith(f"/{ROUNDED}")):
        return prefix.removesuffix(ROUNDED).removesuffix("/"), f"{ROUNDED}/{case}"
    return prefix, case
