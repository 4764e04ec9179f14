"""`gate`: run a candidate and the untouched eager reference on the same batches, and judge.

The reference is the caller's own model in float32. It never passes through `vectorize`, and a vectorized one is
refused: a fault of ours must not stand on both sides of the comparison.

In low precision there is a second yardstick, the baseline: the same eager model in the candidate's dtype. Its own error
is the noise floor, and a candidate may be at most twice as far from the reference (flash-attention's rule).
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from naflex_export.accuracy.candidate_fault import fault_of
from naflex_export.accuracy.cases import cases_of, generated_batch
from naflex_export.accuracy.comparison import Candidate, Comparison, EagerOutputs
from naflex_export.accuracy.efforts import EFFORTS, CaseSelection
from naflex_export.accuracy.gpu_rounding import with_gpu_rounding
from naflex_export.accuracy.invariances import check_invariances
from naflex_export.accuracy.locate import first_deviation
from naflex_export.accuracy.neighbours import LEAST_RECALL, MOST, neighbours_of
from naflex_export.accuracy.parts import merged, selections_by_part
from naflex_export.accuracy.photos import FEWEST, Photos, every_other, photo_batches, photos_for
from naflex_export.accuracy.results import ArtifactSummary, GateReport, Neighbours
from naflex_export.accuracy.survey import survey
from naflex_export.accuracy.tally import Tally
from naflex_export.batch import Batch, noise_batch
from naflex_export.errors import RequestError
from naflex_export.grid import Bucket, Grid, check_buckets
from naflex_export.models import adapter_of
from naflex_export.models.adapter import ModelAdapter
from naflex_export.models.exportable import refuse_modes, refuse_not_plain
from naflex_export.models.model_sources import weights_sha256
from naflex_export.models.rounding import refuse_rounded, remark_on_precision, stored_precision
from naflex_export.precision import FLOAT32, Precision
from naflex_export.progress import Observer, shown_progress
from naflex_export.serving.manifest import Manifest, refuse_text_tower
from naflex_export.serving.patch_sizes import PatchSizesRunner
from naflex_export.serving.runner import Runner


@dataclass(frozen=True)
class GateSettings:
    """What a candidate serves, and what to judge it on.

    Attributes:
        buckets: that it serves.
        precision: of its weights and floating inputs; it chooses the limits.
        outputs: names of its outputs, in order.
        cases: which batches to judge on.
        patch_size: the reference resamples its patch projection to this size by itself; None for patches of its own.
        packed: the candidate takes packed inputs, and the reference the same images, padded unless it takes packs only.
        locate: compare modules even if everything passes; after a failure that is done anyway.
        preprocessing: how photos are prepared, in place of what the reference says; None for that.
        judged: what runs as the candidate, in words.
        announce: called with what is being judged, such as "case 4 of 9: mixed-256-seed0".
    """

    buckets: tuple[Bucket, ...]
    precision: Precision
    outputs: tuple[str, ...]
    cases: CaseSelection
    patch_size: int | None = None
    packed: bool = False
    locate: bool = False
    preprocessing: Mapping[str, Any] | None = None
    judged: str = "the candidate"
    announce: Callable[[str], None] = lambda step: None

    @classmethod
    def of(cls, manifest: Manifest, cases: CaseSelection, locate: bool = False) -> GateSettings:
        """Return the settings for an artifact of one patch size.

        Args:
            manifest: the artifact's, which says what it serves.
            cases: as the attribute.
            locate: as the attribute.
        """
        outputs = tuple(spec.name for spec in manifest.outputs)
        size = manifest.model.get("patch_size")
        return cls(manifest.buckets, manifest.precision, outputs, cases, size, manifest.packed, locate)


def gate(
    candidate: Candidate,
    reference: nn.Module,
    *,
    images: Path | str | None = None,
    buckets: Sequence[Bucket | int] | Bucket | None = None,
    dtype: str | None = None,
    keep_float32: str | Sequence[str] = (),
    keep_unquantized: str | Sequence[str] = (),
    outputs: Sequence[str] | None = None,
    seed: int = 0,
    effort: str = "standard",
    cases: Sequence[str] = (),
    patch_size: int | None = None,
    packed: bool = False,
    locate: bool = False,
    progress: bool = False,
) -> GateReport:
    """Return how a candidate compares with the untouched eager model, on photos and on generated batches.

    Of an artifact with a text tower the image tower is judged; `naflex-gate` judges both.

    Args:
        candidate: a Runner, or any callable of the model's three inputs that returns what the model does, a tensor, or
            a dict of tensors by output name. Its patches come in `dtype`.
        reference: the original model, in any dtype and mode; a float32 copy in eval mode is used.
        images: a folder of photos; by default the three that ship with the package.
        buckets: what the candidate serves; a Runner's manifest says so itself, and so for the next two.
        dtype: of the candidate; it chooses the limits.
        keep_float32: what of the candidate computes in float32 all the same, as for `export`; so does the baseline.
        keep_unquantized: modules of a candidate in "int8" or "fp8" whose layers are not quantized, as for `export`.
        outputs: names of its outputs, in order; by default the features, or the tokens of a model that pools nothing.
        seed: of the generated batches.
        effort: "quick", "standard" or "thorough": how many cases; docs/gate.md says which.
        cases: names of the only cases to judge on, as an earlier report names them.
        patch_size: of the candidate's patches, where it is not the reference's own; a Runner's manifest says so itself,
            and an artifact of several sizes is judged at each.
        packed: the candidate takes what `nx.pack` gives, in that order, and gives the rows of tokens as a packed
            artifact does; a Runner's manifest says so itself.
        locate: compare modules even if the gate passes; after a failure that is done anyway.
        progress: show on standard error how far it is, as `export` does.

    Raises:
        UnsupportedModelError: the reference is not known, or no model of plain tensors and layers.
        RequestError: the reference is vectorized, was rounded by a copy that is, or has other weights than those an
            artifact was made from; or an argument is not possible.
    """
    refuse_modes("nx.gate")
    refuse_not_plain(reference)
    selection = CaseSelection(seed, effort, tuple(cases))
    photos = photos_for(adapter_of(reference).why_no_photos, None if images is None else Path(images))
    kept = {"keep_float32": keep_float32, "keep_unquantized": keep_unquantized}
    if dtype is None and isinstance(candidate, Runner | PatchSizesRunner):
        for name in (name for name, names in kept.items() if names):
            raise RequestError(
                f"{name}={kept[name]!r} was given and no dtype: an artifact's manifest says what it computes in; "
                f"leave {name} out, or give dtype too"
            )
    is_given = dtype is not None or any(kept.values())
    asked = Precision.of(dtype or "float32", keep_float32, keep_unquantized) if is_given else None

    def settings_of(runner: Runner, part: CaseSelection) -> GateSettings:
        """Return what the runner's manifest says, but for what the caller says."""
        own = GateSettings.of(runner.manifest, part, locate)
        chosen = check_buckets(own.buckets if buckets is None else buckets)
        return replace(own, buckets=chosen, precision=asked or own.precision, judged=artifact_on(runner))

    observer = shown_progress() if progress else Observer()

    def judged(one: Candidate, settings: GateSettings) -> GateReport:
        with observer.stage("gate"):
            return judge(one, reference, photos, replace(settings, announce=observer.announce))

    tower = adapter_of(reference).model
    refuse_rounded(tower)
    if remark := remark_on_precision(tower):
        warnings.warn(remark, stacklevel=2)
    if isinstance(candidate, Runner | PatchSizesRunner):
        check_same_weights(reference, candidate.manifest)
    if isinstance(candidate, PatchSizesRunner):
        runners = {f"patch{size}": runner for size, runner in candidate.runners.items()}
        parts = selections_by_part(selection, list(runners))
        report = merged({name: judged(runners[name], settings_of(runners[name], part)) for name, part in parts.items()})
        return replace(report, artifact=summary_of(candidate.manifest))
    if isinstance(candidate, Runner):
        settings = settings_of(candidate, selection)
        size = settings.patch_size if patch_size is None else patch_size
        report = judged(candidate, replace(settings, patch_size=size))
        return replace(report, artifact=summary_of(candidate.manifest))
    chosen = check_buckets([Bucket()] if buckets is None else buckets)
    wanted = tuple(outputs or adapter_of(reference).default_outputs)
    settings = GateSettings(chosen, asked or FLOAT32, wanted, selection, patch_size, packed, locate)
    return judged(candidate, settings)


def artifact_on(runner: Runner) -> str:
    """Return what is judged where an artifact itself runs, in words."""
    return f"the artifact, on {runner.device}"


def check_same_weights(reference: nn.Module, manifest: Manifest) -> None:
    """Check that a model has the weights that an artifact was made from.

    Raises:
        RequestError: it has others, or the artifact is the text tower of another.
    """
    refuse_text_tower(manifest)
    found = weights_sha256(adapter_of(reference).model)
    if manifest.model["weights_sha256"] not in ("", found):  # one that is made in memory may not say it
        raise RequestError(
            f"the reference's weights ({found[:12]}) are not those the artifact was made from "
            f"({manifest.model['weights_sha256'][:12]}): export again, or give the model and weights it was made from"
        )


def judge(candidate: Candidate, reference: nn.Module, photos: Photos, settings: GateSettings) -> GateReport:
    """Return the report of `gate`.

    Args:
        candidate: what is judged.
        reference: the original model.
        photos: already read.
        settings: already chosen.

    Raises:
        RequestError: the reference is vectorized, or a case asked for does not exist.
    """

    def judge_one(one: Candidate, cases: CaseSelection, eager: EagerOutputs | None) -> GateReport:
        return _judge(one, reference, photos, replace(settings, cases=cases), eager)

    return with_gpu_rounding(candidate, settings.cases, judge_one)


def _judge(
    candidate: Candidate, reference: nn.Module, photos: Photos, settings: GateSettings, eager: EagerOutputs | None
) -> GateReport:
    """Return the report on one form of a candidate."""
    cases = settings.cases
    check_only(cases.only, settings.buckets, photos)
    adapter = adapter_of(reference, settings.patch_size).prepared_by(settings.preprocessing)
    comparison = Comparison(candidate, adapter, settings.outputs, settings.precision, settings.packed)
    comparison.eager = eager
    if comparison.precision.quantized and photos.images:
        comparison.contents = _patches_of(photos, adapter, settings.buckets[-1])
    tally = Tally(comparison)
    planned = sum(len(cases_of(bucket, cases, len(photos.images))) for bucket in settings.buckets)
    made = ((one, batch) for one in settings.buckets for batch in batches(adapter, one, photos, cases))
    if EFFORTS[cases.effort].sampled and not cases.only:
        settings.announce("first call")
        _call_first(comparison, settings.buckets[0])
    for count, (bucket, batch) in enumerate(made, 1):
        settings.announce(f"case {count} of {planned}: {batch.name}")
        tally.add(bucket, batch if batch.name.startswith("photos-") else comparison.filled(batch))
    invariances = []
    form = comparison.input_format
    output = "features" if form.masks else settings.outputs[0]  # of a tower every output is of tokens
    if output in settings.outputs and not tally.problems and not cases.only:
        width, floor = comparison.reference.token_width, tally.limits.relative_l2
        for bucket in settings.buckets if EFFORTS[cases.effort].every_bucket else settings.buckets[-1:]:
            settings.announce(f"invariances in {bucket}")
            run = comparison.unchecked(output)
            invariances += check_invariances(
                run, bucket, width, floor, cases.seed, output=output, packed=form.is_packed, masks=form.masks
            )
    neighbours = _neighbours(comparison, adapter, photos, settings) if not tally.problems else None
    found = replace(tally.report(), invariances=tuple(invariances), neighbours=neighbours)
    surveyed = survey(tally, settings.buckets, cases, found.passed, settings.announce)
    report = replace(
        tally.report(),
        invariances=tuple(invariances),
        neighbours=neighbours,
        survey=surveyed,
        seed=cases.seed,
        effort=cases.effort,
        only=cases.only,
        judged=settings.judged,
        skipped_photos=dict(photos.skipped),
        no_photos=photos.left_out,
        reference_sha256=weights_sha256(comparison.reference.model),
        reference_precision=stored_precision(comparison.reference.model),
    )
    if report.passed and not settings.locate:
        return report

    settings.announce("looking for the first module that deviates")

    def case_of(name: str) -> tuple[Bucket, Batch]:
        only = replace(cases, only=(name,))
        found = ((bucket, batches(adapter, bucket, photos, only)) for bucket in settings.buckets)
        bucket, batch = next((bucket, batch) for bucket, made in found for batch in made)
        return bucket, batch if name.startswith("photos-") else comparison.filled(batch)

    report = replace(report, location=first_deviation(comparison, report, case_of))
    if report.passed:
        return report
    settings.announce("looking for the fault that it is")
    found_fault = fault_of(comparison, report, case_of)
    return replace(report, fault=found_fault.fault, diagnosis=found_fault.line)


def _call_first(comparison: Comparison, bucket: Bucket) -> None:
    """Call the candidate with as little as it takes, so that whatever it allocates has to grow in the cases."""
    least = noise_batch("least", [Grid(1, 1)] * bucket.batch[0], 1, comparison.reference.token_width)
    with contextlib.suppress(Exception):  # the case of this size says what it raises
        comparison.candidate_of(least)


def _patches_of(photos: Photos, adapter: ModelAdapter, bucket: Bucket) -> Tensor:
    """Return [n, D] patches of the first photos."""
    first = next(photo_batches(photos, adapter.transform(bucket.tokens), bucket))
    return first.patches[first.patch_valid]


def _neighbours(
    comparison: Comparison, adapter: ModelAdapter, photos: Photos, settings: GateSettings
) -> Neighbours | None:
    """Return how many neighbours an index finds among photos that nothing was calibrated on; only where it was."""
    held_out = every_other(photos, 1)
    is_asked = comparison.precision.quantized and "features" in settings.outputs and not settings.cases.only
    if not is_asked or len(held_out.images) < FEWEST:
        return None
    settings.announce(f"neighbours among {min(len(held_out.images), MOST)} photos")
    bucket = settings.buckets[-1]
    made = photo_batches(held_out, adapter.transform(bucket.tokens), bucket)
    return neighbours_of(
        islice(made, max(1, MOST // bucket.batch[1])),
        lambda batch: comparison.reference_of(batch)["features"],
        lambda batch: comparison.candidate_of(batch)["features"],
        lambda batch: comparison.baseline_of(batch)["features"],
        LEAST_RECALL[comparison.precision.quantized],
    )


def batches(adapter: ModelAdapter, bucket: Bucket, photos: Photos, cases: CaseSelection) -> Iterator[Batch]:
    """Yield every batch that a bucket is judged on.

    Args:
        adapter: of the reference, whose own transform makes patches of photos.
        bucket: what the candidate serves.
        photos: to make batches of.
        cases: which of the bucket's batches.
    """
    names = cases_of(bucket, cases, len(photos.images))
    if any(name.startswith("photos-") for name in names):
        made = photo_batches(photos, adapter.transform(bucket.tokens), bucket)
        yield from (batch for batch in made if batch.name in names)
    width = adapter.token_width
    yield from (generated_batch(name, bucket, width) for name in names if not name.startswith("photos-"))


def summary_of(manifest: Manifest) -> ArtifactSummary:
    """Return what a report says of the artifact that it is on."""
    source = manifest.model["source"]
    return ArtifactSummary(
        model=source.get("model") or manifest.model["architecture"] or manifest.model["family"],
        weights=source.get("weights", ""),
        weights_sha256=manifest.model["weights_sha256"],
        target=manifest.target,
        versions=manifest.versions,
    )


def check_only(only: Sequence[str], buckets: Sequence[Bucket], photos: Photos) -> None:
    """Check that each of the cases asked for exists.

    Args:
        only: names of the cases asked for.
        buckets: that the candidate serves.
        photos: to judge on.

    Raises:
        RequestError: one does not; the message says which do.
    """
    asked, count = CaseSelection(only=tuple(only)), len(photos.images)
    found = {name for bucket in buckets for name in cases_of(bucket, asked, count)}
    for name in only:
        if name not in found:
            usual = [case for bucket in buckets for case in cases_of(bucket, CaseSelection(), count)]
            raise RequestError(f"case {name!r} does not exist: expected a name such as {', '.join(usual)}")
