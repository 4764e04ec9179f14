"""`export`: model in, judged artifact out. `load`: artifact in, callable out."""

from __future__ import annotations

import dataclasses
import platform
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import nn

from naflex_export.accuracy.cases import Photos, Scope, load_photos
from naflex_export.accuracy.gate import GateSettings, judge, subject_of
from naflex_export.accuracy.report.formats import verdict, write
from naflex_export.accuracy.results import GateReport, merged, scopes_by_size
from naflex_export.cli.progress import Stages
from naflex_export.errors import BackendError, RequestError
from naflex_export.graph.trace import check_dtype, trace
from naflex_export.grid import Bucket, check_buckets, check_patch_sizes
from naflex_export.models import Family, family_of
from naflex_export.models.model_sources import weights_sha256
from naflex_export.serving.manifest import SCHEMA_ENTRY_POINTS, Manifest, check_destination, staged
from naflex_export.serving.patch_sizes import EntryPoints
from naflex_export.serving.runner import Runner
from naflex_export.targets import BuildSettings, StandIn, Target, target_named

REPORT = Path("gate") / "report.json"


@dataclasses.dataclass(frozen=True)
class Artifact:
    """A published artifact.

    Attributes:
        path: its folder.
        manifest: what it says of itself.
        report: the gate's report; of all patch sizes together where there are several.
        entry_points: the artifact of each patch size, if `patch_sizes` were asked for.
    """

    path: Path
    manifest: Manifest
    report: GateReport
    entry_points: dict[int, Artifact] = dataclasses.field(default_factory=dict)


def export(
    model: nn.Module,
    target: str,
    out: Path | str,
    buckets: Sequence[Bucket] | None = None,
    dtype: str = "float32",
    *,
    outputs: Sequence[str] = ("features",),
    patch_sizes: Sequence[int] | None = None,
    images: Path | str | None = None,
    seed: int = 0,
    effort: str = "standard",
    require_run: bool = False,
    source: dict[str, Any] | None = None,
    stages: Stages | None = None,
    settings: BuildSettings | None = None,
    on_report: Callable[[GateReport], None] | None = None,
) -> Artifact:
    """Build an artifact, reload it, judge it against the untouched eager model, and publish it if it passes.

    Args:
        model: a model that `vectorize` takes, in any dtype and mode. It is not changed.
        target: "compile", "aot", "onnx" or "trt".
        out: the artifact's folder. An artifact there is replaced, atomically; anything else is left alone.
        buckets: what the artifact serves; one of 256 tokens by default.
        dtype: "float32", "float16" or "bfloat16", of the weights and of floating inputs and outputs.
        outputs: "features" (pooled, through the head), "tokens" (the encoder's), or both.
        patch_sizes: make an entry point for each of these patch sizes, in pixels: an artifact of its own in the folder
            `patch<size>`, with the patch projection resampled and folded into its weight. The model must have been made
            with `enable_patch_interpolator=True`. By default one artifact for the model's own size.
        images: a folder of photos to judge on; by default the three that ship with the package.
        seed: of the generated batches to judge on.
        effort: "quick", "standard" or "thorough": how many cases to judge on.
        require_run: refuse an artifact that this machine can build and not run.
        source: where the model came from, for the manifest, so that `naflex-gate` can load it again.
        stages: shows and times the stages.
        settings: what the build takes besides the program.
        on_report: called with the gate's report, passed or failed; once for each patch size.

    Raises:
        RequestError: an argument is not possible; nothing was built.
        UnsupportedModelError: the model is not known, or takes no other patch sizes and was asked to.
        BackendError: a package or device is missing.
        BuildError: a graph check or the backend's builder rejected the model.
        GateFailure: the gate failed; nothing was published, and the report is beside `out`, as data and as a page.
    """
    out, stages = Path(out), stages or Stages()
    settings = dataclasses.replace(settings or BuildSettings(), announce=stages.announce)
    backend, ordered = target_named(target), check_buckets(buckets or [Bucket()])
    sizes = check_patch_sizes(patch_sizes) if patch_sizes is not None else ()
    check_dtype(dtype)
    scope = Scope(seed, effort)
    check_destination(out)
    photos = load_photos(Path(images) if images is not None else None)
    backend.require()
    if require_run and (reason := backend.cannot_run(dtype)):
        raise BackendError(f"{target} in {dtype} can be built and not run here: {reason}; --require-run was given")
    family = family_of(model)
    if family.is_vectorized(model):
        raise RequestError("the model is vectorized: pass the original, which the gate compares with")
    preprocessing = {size: family_of(model, size).preprocessing(model) for size in sizes or (None,)}

    def make(folder: Path, patch_size: int | None) -> Artifact:
        """Build and judge one artifact in its folder."""
        with stages.stage("trace"):
            program = trace(model, ordered, dtype, outputs, patch_size)
        with stages.stage("build"):
            build = backend.build(program, folder, settings)
        draft = Manifest(
            target=target,
            dtype=dtype,
            inputs=program.inputs,
            outputs=program.outputs,
            buckets=ordered,
            model={
                "family": family.name,
                **family.describe(model),
                "source": source or {},
                "weights_sha256": weights_sha256(model),
                **({} if patch_size is None else {"patch_size": patch_size}),
            },
            preprocessing=preprocessing[patch_size],
            versions=_versions(family, backend),
            build=build,
        ).write(folder)
        del program
        with stages.stage("reload"):
            subject = _open_to_judge(backend, folder, draft, require_run)
        with stages.stage("gate"):
            report = judge_subject(subject, model, photos, draft, scope)
        named = report if patch_size is None else merged({patch_size: report})
        if on_report is not None:
            on_report(named)
        if not report.passed:
            for suffix in (".json", ".html"):
                write(named, out.with_name(f"{out.name}.rejected{suffix}"))
            named.raise_for_failure()
        write(report, folder / REPORT)
        manifest = dataclasses.replace(draft, gate=verdict(report)).write(folder)
        return Artifact(out / folder.relative_to(staging), manifest, report)

    with staged(out) as staging:
        if not sizes:
            return make(staging, None)
        entry_points = {}
        for size in sizes:
            folder = staging / f"patch{size}"
            folder.mkdir()
            entry_points[size] = make(folder, size)
        report = merged({size: artifact.report for size, artifact in entry_points.items()})
        write(report, staging / REPORT)
        manifest = _manifest_of(entry_points, report).write(staging)
    return Artifact(out, manifest, report, entry_points)


def _manifest_of(entry_points: dict[int, Artifact], report: GateReport) -> Manifest:
    """Return the manifest of the folder that holds an artifact for each patch size: what they have in common."""
    first = next(iter(entry_points.values())).manifest
    patches, *others = first.inputs
    return dataclasses.replace(
        first,
        inputs=(dataclasses.replace(patches, shape=(*patches.shape[:2], "values")), *others),
        model={key: value for key, value in first.model.items() if key != "patch_size"},
        preprocessing={**first.preprocessing, "patch_size": [[size, size] for size in entry_points]},
        build={"entry_points": {str(size): artifact.path.name for size, artifact in entry_points.items()}},
        gate=verdict(report),
        schema=SCHEMA_ENTRY_POINTS,
    )


def load(path: Path | str, device: torch.device | str | None = None, check_inputs: bool = True) -> Runner:
    """Return a Runner for an artifact, after checking size and sha256 of each of its files.

    An artifact of several patch sizes gives `EntryPoints`: a Runner that picks by the width of the patches, and
    `run[16]` for one size. The folder of one size can be loaded by itself.

    Args:
        path: the artifact's folder.
        device: where to run; by default a GPU where there is one, or the device that the artifact was built for.
        check_inputs: look at the values of coordinates and masks before each call.

    Raises:
        ArtifactError: the folder is no artifact, or not what its manifest says.
        BackendError: a package or device that it needs is missing.
    """
    folder = Path(path)
    manifest = Manifest.read(folder)
    manifest.verify(folder)
    backend = target_named(manifest.target)
    backend.require()
    at = None if device is None else torch.device(device)
    if not manifest.entry_points:
        return backend.open(folder, manifest, at, check_inputs)
    runners = {}
    for size, name in manifest.entry_points.items():
        runners[size] = backend.open(folder / name, Manifest.read(folder / name), at, check_inputs)
    return EntryPoints(manifest, runners)


def judge_artifact(
    path: Path,
    reference: nn.Module,
    images: Path | None,
    scope: Scope,
    require_run: bool = False,
    locate: bool = False,
) -> GateReport:
    """Return the gate's report on an artifact as it lies on disk, after verifying it.

    With `locate` its modules are compared even if it passes; after a failure that is done anyway.

    Raises:
        RequestError: the reference has other weights than those the artifact was made from, or is no reference.
        ArtifactError, BackendError: as `load`.
    """
    manifest = Manifest.read(path)
    manifest.verify(path)
    check_same_weights(reference, manifest)
    if manifest.entry_points:
        return merged(
            {
                size: judge_artifact(path / manifest.entry_points[size], reference, images, part, require_run, locate)
                for size, part in scopes_by_size(scope, list(manifest.entry_points)).items()
            }
        )
    backend = target_named(manifest.target)
    backend.require()
    subject = _open_to_judge(backend, path, manifest, require_run)
    return judge_subject(subject, reference, load_photos(images), manifest, scope, locate)


def check_same_weights(reference: nn.Module, manifest: Manifest) -> None:
    """Check that a model has the weights that an artifact was made from.

    Raises:
        RequestError: it has others.
    """
    found = weights_sha256(reference)
    if found != manifest.model["weights_sha256"]:
        raise RequestError(
            f"the reference's weights ({found[:12]}) are not those the artifact was made from "
            f"({manifest.model['weights_sha256'][:12]}): export again, or give the model and weights it was made from"
        )


def judge_subject(
    subject: StandIn, reference: nn.Module, photos: Photos, manifest: Manifest, scope: Scope, locate: bool = False
) -> GateReport:
    """Return the report of the gate on what `_open_to_judge` gave."""
    report = judge(subject.runner, reference, photos, GateSettings.of(manifest, scope), locate)
    return dataclasses.replace(report, artifact=subject_of(manifest), judged=subject.judged, not_run=subject.not_run)


def _open_to_judge(backend: Target, folder: Path, manifest: Manifest, require_run: bool) -> StandIn:
    """Return the artifact itself, or what stands in for it where this machine cannot run it."""
    manifest.verify(folder)
    replacement = backend.stand_in(folder, manifest)
    if replacement is None:
        runner = backend.open(folder, manifest, None, True)
        return StandIn(runner, judged=f"the artifact, on {runner.device}", not_run="")
    if require_run:
        raise BackendError(f"{replacement.not_run}, and --require-run was given")
    return replacement


def _versions(family: Family, backend: Target) -> dict[str, str]:
    versions = {"python": platform.python_version()}
    for package in ("naflex_export", family.package, *backend.PACKAGES):
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return versions
