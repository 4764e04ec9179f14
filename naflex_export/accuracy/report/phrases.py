"""What a report says in words and figures, the same in every format."""

from __future__ import annotations

import math
import re
import shlex
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from naflex_export.accuracy.efforts import difference_from_standard
from naflex_export.accuracy.results import BASELINE_FACTOR, GOLDEN, CaseResult, GateReport, Tap
from naflex_export.grid import Bucket
from naflex_export.precision import QUANTIZED

MOST_LINES = 12
"""Failures and cases to show before the rest are folded."""


@dataclass(frozen=True)
class LimitRow:
    """One measure over all cases beside its limit, in words.

    Attributes:
        measure: its name in the report's data.
        meaning: what it is.
        worst: the worst of it over all cases.
        limit: the worst that passes.
        holds: whether no case exceeds the limit.
    """

    measure: str
    meaning: str
    worst: str
    limit: str
    holds: bool


def verdict_line(report: GateReport) -> str:
    """Return how much of what was looked at is right."""
    if not report.results:
        return "Nothing was compared."
    failed = sum(bool(result.exceeded) for result in report.results)
    several = len({result.output for result in report.results}) > 1
    what = "comparisons (an output of a case each)" if several else "cases"
    said = [f"{len(report.results) - failed} of {len(report.results)} {what} are within the limits of {report.dtype}"]
    if report.baselines:
        held = sum(not found.failure for found in report.baselines)
        said.append(f"{held} of {len(report.baselines)} outputs within {BASELINE_FACTOR:g} times eager's own error")
    if report.neighbours:
        said.append(report.neighbours.line)
    if report.invariances:
        held = sum(not found.failure for found in report.invariances)
        said.append(f"{held} of {len(report.invariances)} invariances hold")
    if report.survey and not report.survey.not_done:
        held = sum(not found.failure for found in report.survey.behaviours)
        said.append(f"{held} of {len(report.survey.behaviours)} behaviours hold")
    if report.problems:
        said.append(f"{_count(len(report.problems), 'problem')} beyond the measures")
    return "; ".join(said) + "."


def warnings(report: GateReport) -> list[str]:
    """Return what makes a verdict worth less than it seems."""
    found = []
    if report.not_run:
        found.append(f"Not run: {report.not_run}. Judged instead: {report.judged}.")
    if report.artifact is not None and report.artifact.weights == "random":
        found.append("Random weights: a dry run. The artifact computes nothing of use.")
    if report.dtype in QUANTIZED and report.neighbours is None and not report.only:
        found.append("Neighbours were not searched for: that takes 16 photos or more, by --images, and features.")
    if report.no_photos:
        found.append(f"Judged on no photo, on generated batches alone: {report.no_photos}.")
    return found


def facts(report: GateReport) -> list[tuple[str, str]]:
    """Return what was judged, against what and on what, as names and texts."""
    found = [("Judged", report.judged)]
    if report.not_run:
        found.append(("Not run", report.not_run))
    artifact = report.artifact
    if artifact is not None:
        weights = {"random": "random weights (a dry run)", "": "weights"}.get(artifact.weights, artifact.weights)
        found.append(("Model", artifact.model))
        found.append(("Weights", f"{weights}, sha256 {artifact.weights_sha256[:12]}"))
        found.append(("Target", artifact.target))
    if report.reference_precision != "float32":
        found.append(("Weights fit in", f"{report.reference_precision}: the checkpoint's, or they were rounded"))
    floor = "" if report.dtype == "float32" else f"; noise floor: eager in {report.dtype}"
    outputs = dict.fromkeys(result.output for result in report.results)
    kept = f", but for {', '.join(report.keep_float32)} in float32" if report.keep_float32 else ""
    kept += f", without {', '.join(report.keep_unquantized)}" if report.keep_unquantized else ""
    found += [("Dtype", f"{report.dtype}{kept}"), *([("Outputs", ", ".join(outputs))] if outputs else [])]
    found += [("Against", f"untouched eager in float32{floor}")]
    buckets = dict.fromkeys(result.bucket for result in report.results)
    if buckets:
        found.append(("Buckets", "; ".join(_bucket(text) for text in buckets)))
    if report.preprocessing:
        found.append(("Preprocessing", report.preprocessing))
    found.append(("Effort", effort_line(report)))
    if report.results:
        found.append(("Compared", _compared(report.results)))
    if artifact is not None and artifact.versions:
        found.append(("Built with", ", ".join(f"{name} {version}" for name, version in artifact.versions.items())))
    return found


def effort_line(report: GateReport) -> str:
    """Return how many cases there were, beside the standard ones."""
    if report.only:
        return f"only the cases asked for, seed {report.seed}"
    beside = difference_from_standard(report.effort)
    return f"{report.effort}, seed {report.seed}{f': {beside}' if beside else ''}"


def limit_rows(report: GateReport) -> list[LimitRow]:
    """Return each measure's worst beside its limit; measures that no output has are left out.

    In low precision a measure above its limit holds where eager itself is half as far, and the limit then says so.
    """
    limits, worst = report.limits, report.worst
    exceeded = {measure for result in report.results for measure in exceeded_measures(result)}
    above = {
        text.split()[0]
        for result in report.results
        for text in limits.exceeded_by(result.measures)
        if not result.exceeded
    }
    meanings = {
        "max_share": ("largest difference, as a share of the reference's largest value", number, limits.max_share),
        "relative_l2": ("norm of the difference over norm of the reference", number, limits.relative_l2),
        "worst_cosine": ("1 - cosine, of the image whose direction differs most", distance, limits.worst_cosine),
        "top1_agreement": ("images with the reference's highest class", percent, limits.agreement),
        "top5_agreement": ("of the five highest classes, those of the reference", percent, limits.agreement),
    }
    return [
        LimitRow(
            measure, meaning, written(value), written(limit) + _or_eagers(measure in above), measure not in exceeded
        )
        for measure, (meaning, written, limit) in meanings.items()
        for value in [worst[measure]]
        if value is not None
    ]


def _or_eagers(gave_way: bool) -> str:
    return f", or {BASELINE_FACTOR:g} x eager's" if gave_way else ""


def baseline_lines(report: GateReport) -> list[str]:
    """Return a line for each output of a low-precision candidate: its error beside eager's own in that dtype.

    And one for the cases that are above a limit and hold, if there are any.
    """
    lines = [
        f"{result.output}: relative L2 error {result.candidate:.1e}, eager {report.dtype}'s own {result.baseline:.1e} "
        f"(at most {BASELINE_FACTOR:g} times as much, and {result.limit:g})"
        for result in report.baselines
    ]
    above = [
        result.case for result in report.results if report.limits.exceeded_by(result.measures) and not result.exceeded
    ]
    if above:
        lines.append(
            f"{shorten(tuple(above))}: above a limit, and not {BASELINE_FACTOR:g} times as far as eager {report.dtype}"
        )
    return lines


def invariance_line(report: GateReport) -> str:
    """Return a line that says which invariances were checked on the candidate, and how many hold."""
    names = list(dict.fromkeys(found.name for found in report.invariances))
    held = sum(not found.failure for found in report.invariances)
    return f"invariances: {held} of {len(report.invariances)} hold ({', '.join(names)})" if names else ""


def survey_line(report: GateReport) -> str:
    """Return a line that says how many sizes were covered beside the cases, and how the candidate behaved."""
    survey = report.survey
    if survey is None:
        return ""
    if survey.not_done:
        return f"survey: not done: {survey.not_done}"
    covered, cells = survey.covered
    held = sum(not found.failure for found in survey.behaviours)
    return (
        f"survey: {covered} of {cells} cells of sizes covered by {survey.batches} further batches; {held} of "
        f"{len(survey.behaviours)} behaviours hold in {survey.calls} calls; fresh seed {survey.fresh_seed}"
    )


def location_line(report: GateReport) -> str:
    """Return where the candidate first deviates, and what to try; empty where that was not looked for."""
    return report.location.line if report.location else ""


def tap_line(tap: Tap, dtype: str) -> str:
    """Return how far a module's values are off, and how large they are beside what the dtype holds."""
    return (
        f"relative L2 error {number(tap.relative_l2)}, floor {number(tap.floor)}; largest value {number(tap.max_abs)}, "
        f"the reference's {number(tap.reference_max_abs)}; {_held_in(dtype)} holds up to {number(tap.dtype_max)}"
    )


def _held_in(dtype: str) -> str:
    return "what is not quantized" if dtype in QUANTIZED else dtype


def rerun_command(report: GateReport, most: int = 3) -> str:
    """Return the command that judges on the first few failed cases again; empty where no case failed."""
    cases = [case for problem in report.problems if not (case := case_of(problem)).endswith(GOLDEN)]
    cases += [result.case for result in report.results if result.exceeded]
    named = [part for case in list(dict.fromkeys(cases))[:most] for part in ("--case", case)]
    return shlex.join(["naflex-gate", report.folder or "OUT.rejected", *report.again, *named]) if named else ""


def rerun_line(report: GateReport) -> str:
    """Return what `rerun_command` is for, and what it takes where the artifact was not kept."""
    if report.folder:
        return "To run failed cases again, and nothing else (with the same --images, if you gave them):"
    return (
        "To run failed cases again, and nothing else, export again with --keep-rejected, which keeps the artifact as "
        "OUT.rejected, and then (with the same --images, if you gave them):"
    )


def case_of(problem: str) -> str:
    """Return the name of the case that a problem begins with, before its output, if it names one, and a colon."""
    return problem.partition(": ")[0].partition(" [")[0]


def exceeded_measures(result: CaseResult) -> set[str]:
    """Return the names of the measures that exceed their limits, which each line of `exceeded` begins with."""
    return {line.split()[0] for line in result.exceeded}


def shorten(grids: Sequence[str], most: int = 2) -> str:
    """Return the first few distinct grids and how many more there are."""
    distinct = list(dict.fromkeys(grids))
    return " ".join(distinct[:most]) + (f" +{len(distinct) - most}" if len(distinct) > most else "")


def number(value: float) -> str:
    """Return two digits of a number, such as 3.1e-7 or 12; "NaN" and "infinite" for what is none."""
    if math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "infinite" if value > 0 else "-infinite"
    if value == 0 or 1 <= abs(value) < 1e5:
        return f"{value:.2g}" if abs(value) < 100 else f"{value:.0f}"
    return re.sub(r"\.0(?=e)|(?<=e-)0|(?<=e)\+0?", "", f"{value:.1e}")


def distance(cosine: float) -> str:
    """Return how far a cosine is from 1, which rounding may put a little above."""
    return number(cosine) if math.isnan(cosine) else number(max(0.0, 1 - cosine))


def percent(share: float | None) -> str:
    """Return a share in percent, rounded down so that 100% is all; empty where there is none."""
    if share is None:
        return ""
    return f"{math.floor(1000 * share + 1e-6) / 10:g}%" if math.isfinite(share) else number(share)


def _compared(results: Iterable[CaseResult]) -> str:
    cases = {result.case: result for result in results}
    texts = [cases.pop(name).images for name in list(cases) if name.startswith("text/")]
    grids = {grid for result in cases.values() for grid in result.grids}
    images = sum(result.images for result in cases.values())
    of_images = f"{_count(len(cases), 'case')} of {_count(images, 'image')} in {_count(len(grids), 'grid')}"
    if not texts:
        return of_images
    of_texts = f"{_count(len(texts), 'case')} of {_count(sum(texts), 'text')}"
    return f"{of_images} and {of_texts}" if cases else of_texts


def _bucket(text: str) -> str:
    bucket = Bucket.parse(text)
    smallest, _, largest = bucket.batch
    sizes = f"{smallest} to {largest}" if largest > smallest else str(smallest)
    return f"{bucket.tokens} tokens, batches of {sizes}"


def _count(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"
