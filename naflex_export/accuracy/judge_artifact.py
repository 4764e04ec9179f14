"""`judge_artifact`: the gate on an artifact's folder, by what stands in for it where this machine cannot run it."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from torch import nn

from naflex_export.accuracy.cases import Scope
from naflex_export.accuracy.gate import GateSettings, judge, subject_of
from naflex_export.accuracy.photos import Photos, load_photos
from naflex_export.accuracy.results import GateReport, merged, scopes_by_size
from naflex_export.errors import BackendError, RequestError
from naflex_export.models.model_sources import weights_sha256
from naflex_export.serving.load import open_verified
from naflex_export.serving.manifest import Manifest
from naflex_export.targets import StandIn, Target, target_named


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
    subject = open_to_judge(backend, path, manifest, require_run)
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
    """Return the report of the gate on what `open_to_judge` gave."""
    report = judge(subject.runner, reference, photos, GateSettings.of(manifest, scope), locate)
    return dataclasses.replace(report, artifact=subject_of(manifest), judged=subject.judged, not_run=subject.not_run)


def open_to_judge(backend: Target, folder: Path, manifest: Manifest, require_run: bool) -> StandIn:
    """Return the artifact itself, or what stands in for it where this machine cannot run it."""
    manifest.verify(folder)
    replacement = backend.stand_in(folder, manifest)
    if replacement is None:
        runner = open_verified(folder, manifest, device=None)
        return StandIn(runner, judged=f"the artifact, on {runner.device}", not_run="")
    if require_run:
        raise BackendError(f"{replacement.not_run}, and --require-run was given")
    return replacement
