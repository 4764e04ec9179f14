"""`export`: model in, judged artifact out. `load`: artifact in, callable out."""

from __future__ import annotations

import dataclasses
import platform
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from torch import nn

from naflex_export.accuracy.cases import Scope
from naflex_export.accuracy.judge_artifact import judge_subject, open_to_judge
from naflex_export.accuracy.photos import load_photos
from naflex_export.accuracy.report.formats import verdict, write
from naflex_export.accuracy.results import GateReport, merged
from naflex_export.cli.progress import Stages
from naflex_export.errors import BackendError, RequestError
from naflex_export.graph.build_settings import BuildSettings
from naflex_export.graph.trace import trace
from naflex_export.grid import Bucket, check_buckets, check_patch_sizes
from naflex_export.models import family_of
from naflex_export.models.adapter import Family
from naflex_export.models.model_sources import weights_sha256
from naflex_export.precision import check_dtype
from naflex_export.serving.manifest import SCHEMA_ENTRY_POINTS, Manifest
from naflex_export.serving.publish import check_destination, staged
from naflex_export.targets import Target, target_named

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
    backend.require_build()
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
            subject = open_to_judge(backend, folder, draft, require_run)
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


def _versions(family: Family, backend: Target) -> dict[str, str]:
    versions = {"python": platform.python_version()}
    for package in ("naflex_export", family.package, *backend.PACKAGES):
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return versions
