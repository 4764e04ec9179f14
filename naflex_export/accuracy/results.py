"""What the gate found: plain values, their worst and their summaries; no models and no tensors."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from naflex_export.accuracy.invariances import Invariance
from naflex_export.accuracy.json_values import plain_json
from naflex_export.accuracy.metrics import ImageMeasures, Limits, Measures
from naflex_export.errors import GateFailure

SCHEMA = 2
"""Version of the layout of `GateReport.to_json`, which docs/gate.md describes."""

GOLDEN = "golden-photo"
"""What problems with an artifact's golden photo begin with: no case to be run again, for it is judged each time."""

BASELINE_FACTOR = 2.0
"""How many times eager's own error in a low precision a candidate's may be."""


MOST_FAILURES = 4
"""Failures that an error names: a fault shows in most cases, and what is worth reading is where it begins."""


@dataclass(frozen=True)
class CaseResult:
    """One output of one batch: its shape, how far the candidate is, and what exceeds the limits.

    `case` is the batch's name, by which `naflex-gate --case` runs it again. `baseline` is, in low precision, how far
    eager itself is in the candidate's dtype: where it comes near to a limit, the limit gives way to it.
    """

    case: str
    output: str
    bucket: str
    images: int
    tokens: int
    grids: tuple[str, ...]
    measures: Measures
    per_image: tuple[ImageMeasures, ...]
    exceeded: tuple[str, ...]
    baseline: Measures | None = None


@dataclass(frozen=True)
class BaselineResult:
    """How a candidate's error compares with that of eager in the candidate's dtype, for one output over all cases.

    Attributes:
        output: name of the output that was compared.
        candidate: root mean square over the cases of its relative L2 error against the float32 reference.
        baseline: the same error of eager in the candidate's dtype.
        limit: the most that the candidate's may be, whatever eager's is.
    """

    output: str
    candidate: float
    baseline: float
    limit: float

    @property
    def is_coarse(self) -> bool:
        """Whether the dtype itself is too coarse for the model: eager in it is as far off, and that is too far."""
        as_far_off = math.isfinite(self.baseline) and self.candidate <= BASELINE_FACTOR * self.baseline
        return as_far_off and not self.candidate <= self.limit

    @property
    def failure(self) -> str:
        """Return what is wrong, empty where nothing is."""
        if not math.isfinite(self.baseline):
            return "eager itself is not finite in this dtype: keep the model in float32, or try bfloat16"
        if not self.candidate <= BASELINE_FACTOR * self.baseline:
            return f"error {self.candidate:.2g} is more than {BASELINE_FACTOR:g} times eager's own {self.baseline:.2g}"
        if self.is_coarse:
            return (
                f"error {self.candidate:.2g} is more than {self.limit:g}, and eager's own in this dtype is "
                f"{self.baseline:.2g}: too coarse for this model, some of which needs more digits"
            )
        return ""


@dataclass(frozen=True)
class Neighbours:
    """How many of the nearest neighbours of photos an index of the candidate's features finds.

    Attributes:
        photos: that were searched among.
        count: neighbours of each.
        recall: share of them that the candidate has too, by cosine.
        baseline: the same of eager in the candidate's precision.
        limit: the least share that passes.
    """

    photos: int
    count: int
    recall: float
    baseline: float
    limit: float

    @property
    def failure(self) -> str:
        """Return what is wrong, empty where nothing is."""
        if self.recall >= self.limit:
            return ""
        return f"{self.line}: expected {self.limit:.0%} or more"

    @property
    def line(self) -> str:
        """Return what was found, in one line."""
        return (
            f"recall of the {self.count} nearest of {self.photos} photos {self.recall:.1%}, eager's {self.baseline:.1%}"
        )


@dataclass(frozen=True)
class Distribution:
    """How large the errors of single values are, for one output over all cases.

    Attributes:
        output: name of the output that was compared.
        of: whose errors are counted, "candidate" or "baseline".
        dtype: the dtype that it ran in.
        decades: powers of ten of the bins' upper edges, as shares of the reference's root mean square in each case.
        counts: values with an error up to each edge and above the one before it, and last those above all.
    """

    output: str
    of: str
    dtype: str
    decades: tuple[int, ...]
    counts: tuple[int, ...]


@dataclass(frozen=True)
class Summary:
    """The worst of some measures over all cases of one bucket, or over all images of one grid, for one output."""

    of: str
    output: str
    images: int
    max_abs: float
    relative_l2: float
    worst_cosine: float


@dataclass(frozen=True)
class Tap:
    """What one module gave in one batch: the candidate's values beside the reference's.

    Attributes:
        module: its name in the model, such as "blocks.7.attn".
        relative_l2: norm of the difference over norm of the reference, over valid tokens.
        floor: what the same measure may be: what rounding explains in the candidate's dtype.
        max_abs: largest magnitude of the candidate's values; not finite where one of them is not.
        reference_max_abs: largest magnitude of the reference's.
        dtype_max: the largest number that the candidate's dtype holds.
        inside_max_abs: largest magnitude of the reference's values in the module: its own, and those that it is made
            of, such as of `blocks.7.mlp.fc1` in `blocks.7.mlp`.
    """

    module: str
    relative_l2: float
    floor: float
    max_abs: float
    reference_max_abs: float
    dtype_max: float
    inside_max_abs: float = 0.0

    @property
    def deviates(self) -> bool:
        """Whether the module has left the floor; a measure that is not a number has."""
        return not self.relative_l2 <= self.floor


@dataclass(frozen=True)
class Location:
    """Where a candidate first deviates from the reference, module by module, on one case.

    Attributes:
        case: name of the batch.
        taps: the modules that both sides show, in the order in which the reference runs them, and last the outputs.
        advice: what to try, in words; empty where nothing deviates and nothing failed.
        unavailable: why there are no taps; empty where there are.
        instead: what was looked into, where it is not the candidate itself.
        images: how many images of the case were looked at.
    """

    case: str
    taps: tuple[Tap, ...] = ()
    advice: str = ""
    unavailable: str = ""
    instead: str = ""
    images: int = 0

    @property
    def first(self) -> Tap | None:
        """The first module that leaves the floor, if one does."""
        return next((tap for tap in self.taps if tap.deviates), None)

    @property
    def line(self) -> str:
        """What was found, in one line."""
        if self.unavailable:
            return f"first deviation: not known: {self.unavailable}"
        where = f"on {self.case}" + (f", in {self.instead}" if self.instead else "")
        if self.first is None:
            found = f"none in {len(self.taps)} modules and outputs {where}"
        else:
            errors = f"relative L2 {self.first.relative_l2:.1e} (floor {self.first.floor:.1e})"
            found = f"{self.first.module}, {errors}, {where}"
        return f"first deviation: {found}" + (f"; {self.advice}" if self.advice else "")


@dataclass(frozen=True)
class CellCount:
    """How many batches lay in a bucket's pair of strata of two axes, such as batches of 9 to 16 at 65 to 128 tokens."""

    bucket: str
    axes: tuple[str, str]
    strata: tuple[str, str]
    batches: int


@dataclass(frozen=True)
class Survey:
    """What was looked at beside the cases: all sizes that are served, and how the candidate behaves when called.

    Attributes:
        batches: how many were compared; those that failed are among the report's results.
        calls: how many there were of the candidate, all in all.
        fresh_seed: of the batches that were drawn anew in this run.
        cells: the pairs of sizes that each bucket has; the report's cases are counted too.
        behaviours: what was asked of the candidate alone; `Invariance.moved` is the worst that was found.
        not_done: why nothing was looked at; empty where it was.
    """

    batches: int = 0
    calls: int = 0
    fresh_seed: int = 0
    cells: tuple[CellCount, ...] = ()
    behaviours: tuple[Invariance, ...] = ()
    not_done: str = ""

    @property
    def covered(self) -> tuple[int, int]:
        """How many cells of all buckets were covered, and of how many."""
        return sum(cell.batches > 0 for cell in self.cells), len(self.cells)


@dataclass(frozen=True)
class ArtifactSummary:
    """The artifact that was judged, in its manifest's words.

    Attributes:
        model: what it was exported from.
        weights: where they came from: "pretrained", "random" or a file; empty where the manifest does not say.
        weights_sha256: their hash.
        target: "compile", "aot", "onnx" or "trt".
        versions: of the packages that made it.
    """

    model: str
    weights: str
    weights_sha256: str
    target: str
    versions: dict[str, str]


@dataclass(frozen=True)
class SearchStep:
    """One trial of a search for what to keep in float32.

    Attributes:
        keep_float32: what was kept.
        passed: whether the gate passed.
        relative_l2: the worst over all cases; not finite where a value is not.
        cost: estimated time, as a multiple of that with nothing kept.
        why: this was tried.
    """

    keep_float32: tuple[str, ...]
    passed: bool
    relative_l2: float
    cost: float
    why: str


@dataclass(frozen=True)
class PrecisionSearch:
    """A search for what to keep in float32.

    Attributes:
        steps: its trials, in order.
        found: what it ended with; None where the gate passed with nothing that could be kept.
    """

    steps: tuple[SearchStep, ...]
    found: tuple[str, ...] | None

    @property
    def line(self) -> str:
        """What came of it, in one line."""
        trials = f"{len(self.steps)} trial{'s' if len(self.steps) > 1 else ''}"
        if self.found is None:
            return (
                f"search: {trials}, and no part of the model makes the gate pass that is kept in float32: export in "
                "another dtype"
            )
        if not self.found:
            return f"search: the gate passes with nothing kept in float32 ({trials})"
        cost = min(step.cost for step in self.steps if step.keep_float32 == self.found)
        return f"search: --keep-float32 {','.join(self.found)}, an estimated {cost:.2f} times the time ({trials})"


@dataclass(frozen=True)
class GateReport:
    """What the gate found.

    Attributes:
        dtype: of the candidate, or what its layers are quantized to; it chose the limits.
        limits: the worst measures that pass.
        results: one for each output of each batch.
        problems: what is wrong beyond the measures, such as a reference that proves nothing; each begins with the name
            of its case.
        invariances: what moved the candidate's own features, and whether it should.
        baselines: in low precision, one for each output: the error beside eager's own in that dtype.
        distributions: how large the errors of single values are.
        location: where the candidate first deviates, if that was looked for: after a failure, or where asked to.
        seed: of the generated batches.
        effort: "quick", "standard" or "thorough": how many cases there were.
        only: the cases asked for, if not all of them.
        artifact: where the candidate came from; None where it was a plain callable.
        judged: what ran as the candidate.
        not_run: what was built and could not be run here; empty where the artifact itself was judged.
        skipped_photos: why each file among the photos was left out.
        no_photos: why no photo was judged on, of a model that takes images of other channels; empty where some were.
        fault: name of the typical fault that the candidate has; empty where it passed, or has none of them.
        diagnosis: that in words, with what to do; empty where it passed, or its features are not what failed.
        survey: what was looked at beside the cases; None in an effort without a survey. Part of it is drawn anew in
            each run, so two reports are equal whatever theirs say.
        reference_sha256: of the reference's weights, as manifests have it. A vectorized copy that is rounded rounds the
            model that it shares parameters with: reports on one model then hold different hashes.
        preprocessing: how the artifact's golden photo compares with what the library makes of it; empty where the
            candidate was a plain callable.
        reference_precision: the narrowest dtype that holds all of the reference's weights exactly: a checkpoint was
            stored in it, or the weights were rounded to it.
        keep_float32: what of the candidate computes in float32 all the same, and so of the baseline.
        search: how that was found, where a search was asked for.
        keep_unquantized: of a candidate with quantized layers, the modules whose layers are not.
        neighbours: whether an index still finds a photo's neighbours; None where nothing is quantized, or there are too
            few photos.
        folder: of the artifact, for a command that judges it again: "ARTIFACT" where it is not known, empty where the
            artifact was rejected and is not kept.
        again: options that such a command needs besides, such as the folder of the photos that were judged on.
    """

    dtype: str
    limits: Limits
    results: tuple[CaseResult, ...]
    problems: tuple[str, ...] = ()
    invariances: tuple[Invariance, ...] = ()
    baselines: tuple[BaselineResult, ...] = ()
    distributions: tuple[Distribution, ...] = ()
    location: Location | None = None
    seed: int = 0
    effort: str = "standard"
    only: tuple[str, ...] = ()
    artifact: ArtifactSummary | None = None
    judged: str = "the candidate"
    not_run: str = ""
    skipped_photos: dict[str, str] = field(default_factory=dict)
    no_photos: str = ""
    reference_sha256: str = ""
    preprocessing: str = ""
    reference_precision: str = "float32"
    keep_float32: tuple[str, ...] = ()
    search: PrecisionSearch | None = None
    keep_unquantized: tuple[str, ...] = ()
    neighbours: Neighbours | None = None
    folder: str = "ARTIFACT"
    again: tuple[str, ...] = ()
    fault: str = ""
    diagnosis: str = ""
    survey: Survey | None = field(default=None, compare=False)

    @property
    def passed(self) -> bool:
        """Whether there is something to compare, no problem, and every measure is within its limit."""
        return bool(self.results) and not self.failures

    @property
    def worst(self) -> dict[str, float | None]:
        """The worst of each measure over all cases; a measure that is not a number is the worst there is."""
        choices = {"max_abs": max, "max_share": max, "relative_l2": max}
        choices |= dict.fromkeys(("worst_cosine", "top1_agreement", "top5_agreement"), min)
        measured = {name: [getattr(result.measures, name) for result in self.results] for name in choices}
        there = {name: [value for value in values if value is not None] for name, values in measured.items()}
        return {name: _worst(there[name], choose) if there[name] else None for name, choose in choices.items()}

    @property
    def by_bucket(self) -> tuple[Summary, ...]:
        """The worst of each bucket and output."""
        return _summaries(
            Summary(result.bucket, result.output, result.images, m.max_abs, m.relative_l2, m.worst_cosine)
            for result in self.results
            for m in [result.measures]
        )

    @property
    def by_grid(self) -> tuple[Summary, ...]:
        """The worst image of each grid and output."""
        return _summaries(
            Summary(image.grid, result.output, 1, image.max_abs, image.relative_l2, image.cosine)
            for result in self.results
            for image in result.per_image
        )

    @property
    def is_coarse(self) -> bool:
        """Whether the dtype is too coarse for the model: eager in it is as far off."""
        return any(found.is_coarse for found in self.baselines)

    @property
    def failures(self) -> list[str]:
        """What failed, a line for each, in words."""
        lines = [self.search.line] if self.search is not None and self.search.found is None else []
        lines += self.problems
        lines += [f"{r.case} [{r.output}]: {', '.join(r.exceeded)}" for r in self.results if r.exceeded]
        lines += [f"all cases [{r.output}]: {r.failure}" for r in self.baselines if r.failure]
        lines += [f"neighbours: {self.neighbours.failure}"] if self.neighbours and self.neighbours.failure else []
        lines += [f"invariance: {r.failure}" for r in self.invariances if r.failure]
        behaviours = self.survey.behaviours if self.survey else ()
        lines += [f"behaviour: {found.failure}" for found in behaviours if found.failure]
        return lines

    def raise_for_failure(self) -> None:
        """Raise GateFailure, naming what failed, unless the gate passed."""
        if not self.passed:
            found = self.failures or ["nothing was compared"]
            lines = found[:MOST_FAILURES]
            if len(found) > MOST_FAILURES:
                lines.append(f"and {len(found) - MOST_FAILURES} more, which the report lists")
            lines += [] if self.location is None else [self.location.line]
            lines += [self.diagnosis] if self.diagnosis else []
            raise GateFailure("the gate failed (docs/errors.md#the-gate-failed):\n  " + "\n  ".join(lines))

    def to_json(self) -> dict[str, Any]:
        """Return the report as plain JSON values; numbers that JSON lacks are written as text."""
        summaries = {name: [asdict(found) for found in getattr(self, name)] for name in ("by_bucket", "by_grid")}
        told = {"schema": SCHEMA, "passed": self.passed, "failures": self.failures, "worst": self.worst}
        fields = asdict(self)
        if self.location is not None:
            first = self.location.first
            fields["location"] |= {"first": first.module if first else None, "line": self.location.line}
        if self.search is not None:
            fields["search"] |= {"line": self.search.line}
        if self.survey is not None:
            covered, cells = self.survey.covered
            fields["survey"] |= {"covered": covered, "of_cells": cells}
        found: dict[str, Any] = plain_json({**told, **summaries, **fields})
        return found


def _worst(values: Sequence[float], choose: Callable[[Sequence[float]], float]) -> float:
    """Return what `choose` picks; a value that is not a number is the worst there is."""
    unordered = [value for value in values if math.isnan(value)]
    return unordered[0] if unordered else choose(values)


def _summaries(rows: Iterable[Summary]) -> tuple[Summary, ...]:
    """Return the worst of each `of` and output, in order of appearance."""
    groups: dict[tuple[str, str], list[Summary]] = {}
    for row in rows:
        groups.setdefault((row.of, row.output), []).append(row)
    return tuple(
        Summary(
            *key,
            images=sum(row.images for row in found),
            max_abs=_worst([row.max_abs for row in found], max),
            relative_l2=_worst([row.relative_l2 for row in found], max),
            worst_cosine=_worst([row.worst_cosine for row in found], min),
        )
        for key, found in groups.items()
    )
