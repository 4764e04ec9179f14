"""`gate`: run a candidate and the untouched eager reference on the same batches, and judge.

The reference is the caller's own model in float32. It never passes through `vectorize`, and a vectorized one is
refused: a fault of ours must not stand on both sides of the comparison.

In low precision there is a second yardstick, the baseline: the same eager model in the candidate's dtype. Its own error
is the noise floor, and a candidate may be at most twice as far from the reference (flash-attention's rule).
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from naflex_export.accuracy.cases import EFFORTS, Scope, cases_of, generated_batch
from naflex_export.accuracy.comparison import Candidate, Sides
from naflex_export.accuracy.invariances import Run, check_invariances
from naflex_export.accuracy.locate import first_deviation
from naflex_export.accuracy.metrics import DECADES, measure_images, says_nothing, spread_of
from naflex_export.accuracy.photos import Photos, load_photos, photo_batches
from naflex_export.accuracy.results import (
    BaselineResult,
    CaseResult,
    Distribution,
    GateReport,
    Subject,
    merged,
    scopes_by_size,
)
from naflex_export.batch import Batch
from naflex_export.errors import RequestError
from naflex_export.grid import Bucket, check_buckets
from naflex_export.serving.manifest import Manifest
from naflex_export.serving.patch_sizes import EntryPoints
from naflex_export.serving.runner import Runner


@dataclass(frozen=True)
class GateSettings:
    """What a candidate serves, and which cases to judge it on."""

    buckets: tuple[Bucket, ...]
    dtype: str
    outputs: tuple[str, ...]
    scope: Scope
    patch_size: int | None = None
    """The reference resamples its patch projection to this size by itself; None for patches of its own size."""

    @classmethod
    def of(cls, manifest: Manifest, scope: Scope) -> GateSettings:
        """Return the settings for an artifact of one patch size, as its manifest has them."""
        outputs = tuple(spec.name for spec in manifest.outputs)
        return cls(manifest.buckets, manifest.dtype, outputs, scope, manifest.model.get("patch_size"))


def gate(
    candidate: Candidate,
    reference: nn.Module,
    *,
    images: Path | str | None = None,
    buckets: Sequence[Bucket] | None = None,
    dtype: str | None = None,
    outputs: Sequence[str] = ("features",),
    seed: int = 0,
    effort: str = "standard",
    cases: Sequence[str] = (),
    patch_size: int | None = None,
    locate: bool = False,
) -> GateReport:
    """Return how a candidate compares with the untouched eager model, on photos and on generated batches.

    Args:
        candidate: a Runner, or any callable of the model's three inputs that returns what the model does, a tensor, or
            a dict of tensors by output name. Its patches come in `dtype`.
        reference: the original model, in any dtype and mode; a float32 copy in eval mode is used.
        images: a folder of photos; by default the three that ship with the package.
        buckets: what the candidate serves; a Runner's manifest says so itself, and so for the next two.
        dtype: of the candidate; it chooses the limits.
        outputs: names of its outputs, in order.
        seed: of the generated batches.
        effort: "quick", "standard" or "thorough": how many cases; docs/gate.md says which.
        cases: names of the only cases to judge on, as an earlier report names them.
        patch_size: of the candidate's patches, where it is not the reference's own; a Runner's manifest says so itself,
            and an artifact of several sizes is judged at each.
        locate: compare modules even if the gate passes; after a failure that is done anyway.

    Raises:
        RequestError: the reference is vectorized, or an argument is not possible.
    """
    scope = Scope(seed, effort, tuple(cases))
    photos = load_photos(Path(images) if images is not None else None)

    def settings_of(runner: Runner, scope: Scope) -> GateSettings:
        """Return what the runner's manifest says, but for what the caller says."""
        own = GateSettings.of(runner.manifest, scope)
        return replace(own, buckets=check_buckets(buckets or own.buckets), dtype=dtype or own.dtype)

    if isinstance(candidate, EntryPoints):
        report = merged(
            {
                size: judge(candidate[size], reference, photos, settings_of(candidate[size], part), locate)
                for size, part in scopes_by_size(scope, list(candidate.runners)).items()
            }
        )
        return replace(report, artifact=subject_of(candidate.manifest))
    if isinstance(candidate, Runner):
        settings = settings_of(candidate, scope)
        size = settings.patch_size if patch_size is None else patch_size
        report = judge(candidate, reference, photos, replace(settings, patch_size=size), locate)
        return replace(report, artifact=subject_of(candidate.manifest))
    chosen = check_buckets(buckets or [Bucket()])
    settings = GateSettings(chosen, dtype or "float32", tuple(outputs), scope, patch_size)
    return judge(candidate, reference, photos, settings, locate)


def judge(
    candidate: Candidate, reference: nn.Module, photos: Photos, settings: GateSettings, locate: bool = False
) -> GateReport:
    """Return the report of `gate`, for photos already read and settings already chosen.

    `locate` compares modules even if everything passes.
    """
    scope = settings.scope
    check_only(scope.only, settings.buckets, photos)
    sides = Sides(candidate, reference, settings.outputs, settings.dtype, settings.patch_size)
    tally = Tally(settings.dtype, sides)
    for bucket in settings.buckets:
        for batch in batches(sides, bucket, photos, scope):
            tally.add(bucket, batch)
    invariances = []
    if "features" in settings.outputs and not tally.problems and not scope.only:
        width, floor = sides.family.token_width(sides.eager), tally.limits.relative_l2
        for bucket in settings.buckets if EFFORTS[scope.effort].every_bucket else settings.buckets[-1:]:
            invariances += check_invariances(_unchecked_features(sides), bucket, width, floor, scope.seed)
    report = replace(
        tally.report(),
        invariances=tuple(invariances),
        seed=scope.seed,
        effort=scope.effort,
        only=scope.only,
        skipped_photos=dict(photos.skipped),
    )
    if report.passed and not locate:
        return report

    def case_of(name: str) -> tuple[Bucket, Batch]:
        only = replace(scope, only=(name,))
        return next((bucket, batch) for bucket in settings.buckets for batch in batches(sides, bucket, photos, only))

    return replace(report, location=first_deviation(sides, report, case_of))


class Tally:
    """Compares the sides batch by batch, and adds up what is wanted over all of them."""

    def __init__(self, dtype: str, sides: Sides) -> None:
        self.dtype, self.limits, self._sides = dtype, sides.limits, sides
        self.problems: list[str] = []
        self._results: list[CaseResult] = []
        self._spreads: dict[tuple[str, str], list[Tensor]] = defaultdict(list)

    def add(self, bucket: Bucket, batch: Batch) -> None:
        """Run the sides on a batch and compare each output."""
        sides = self._sides
        expected, floor = sides.reference_of(batch), sides.baseline_of(batch)
        try:
            given = sides.candidate_of(batch)
        except Exception as error:  # whatever it raises on a batch that it is to serve, it has failed
            self.problems.append(f"{batch.name}: the candidate raised {type(error).__name__}: {error}")
            return
        for name, wanted in expected.items():
            valid = sides.valid_in(batch, wanted)
            fault = _fault(batch, given.get(name), wanted, valid)
            if fault:
                self.problems.append(f"{batch.name} [{name}]: {fault}")
                continue
            result = self._compare(bucket, batch, name, (given[name], wanted, floor.get(name)), valid)
            self._spreads[name, "candidate"].append(spread_of(given[name], wanted, valid))
            if result.baseline is not None:
                self._spreads[name, "baseline"].append(spread_of(floor[name], wanted, valid))
            self._results.append(result)

    def report(self) -> GateReport:
        """Return what was found so far."""
        return GateReport(
            dtype=self.dtype,
            limits=self.limits,
            results=tuple(self._results),
            problems=tuple(self.problems),
            baselines=self._against_baseline(),
            distributions=tuple(
                Distribution(name, side, self.dtype, tuple(DECADES), tuple(torch.stack(counts).sum(dim=0).tolist()))
                for (name, side), counts in self._spreads.items()
            ),
        )

    def _compare(
        self,
        bucket: Bucket,
        batch: Batch,
        output: str,
        sides: tuple[Tensor, Tensor, Tensor | None],
        valid: Tensor | None,
    ) -> CaseResult:
        """Return how the candidate's output compares with the reference's, beside the baseline's if there is one."""
        given, wanted, floor = sides
        measures, baseline, limits = self._sides.compared(batch, output, given, wanted, floor)
        images, tokens = batch.patch_valid.shape
        return CaseResult(
            case=batch.name,
            output=output,
            bucket=str(bucket),
            images=images,
            tokens=tokens,
            grids=tuple(str(grid) for grid in batch.grids),
            measures=measures,
            per_image=measure_images(given, wanted, batch.grids, valid),
            broken=tuple(limits.broken_by(measures)),
            baseline=baseline,
        )

    def _against_baseline(self) -> tuple[BaselineResult, ...]:
        pairs: dict[str, list[tuple[float, float]]] = defaultdict(list)
        for result in self._results:
            if result.baseline is not None:
                pairs[result.output].append((result.measures.relative_l2, result.baseline.relative_l2))
        return tuple(
            BaselineResult(output, *map(_root_mean_square, zip(*found, strict=True))) for output, found in pairs.items()
        )


def batches(sides: Sides, bucket: Bucket, photos: Photos, scope: Scope) -> Iterator[Batch]:
    """Yield every batch that a bucket is judged on."""
    family, names = sides.family, cases_of(bucket, scope, len(photos.images))
    if any(name.startswith("photos-") for name in names):
        transform = family.transform(sides.eager, bucket.tokens)
        yield from (batch for batch in photo_batches(photos, transform, bucket) if batch.name in names)
    width = family.token_width(sides.eager)
    yield from (generated_batch(name, bucket, width) for name in names if not name.startswith("photos-"))


def subject_of(manifest: Manifest) -> Subject:
    """Return what a report says of the artifact that it is on."""
    source = manifest.model["source"]
    return Subject(
        model=source.get("model") or manifest.model["architecture"] or manifest.model["family"],
        weights=source.get("weights", ""),
        weights_sha256=manifest.model["weights_sha256"],
        target=manifest.target,
        versions=manifest.versions,
    )


def check_only(only: Sequence[str], buckets: Sequence[Bucket], photos: Photos) -> None:
    """Check that each of the cases asked for exists.

    Raises:
        RequestError: one does not; the message says which do.
    """
    found = {name for bucket in buckets for name in cases_of(bucket, Scope(only=tuple(only)), len(photos.images))}
    for name in only:
        if name not in found:
            usual = [case for bucket in buckets for case in cases_of(bucket, Scope(), len(photos.images))]
            raise RequestError(f"case {name!r} does not exist: expected a name such as {', '.join(usual)}")


def _unchecked_features(sides: Sides) -> Run:
    """Return what runs the candidate past a Runner's checks: a masked token makes a batch that no loader would."""
    return lambda batch: sides.candidate_of(batch, checked=False)["features"]


def _root_mean_square(values: Sequence[float]) -> float:
    return math.sqrt(sum(value * value for value in values) / len(values))


def _fault(batch: Batch, given: Tensor | None, expected: Tensor, valid: Tensor | None) -> str:
    """Return why two outputs cannot be compared at all, empty where they can."""
    if given is None:
        return "the candidate has no such output"
    if given.shape != expected.shape:
        return f"the candidate's shape is {list(given.shape)}, the reference's {list(expected.shape)}"
    images_differ = bool((batch.patches != batch.patches[:1]).any())
    nothing = says_nothing(expected, valid, images_differ)
    return f"the reference's output proves nothing: {nothing}" if nothing else ""
