"""`judge_artifact`: the gate on an artifact's folder, by what stands in for it where this machine cannot run it."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path

from torch import nn

from naflex_export.accuracy.cases import CaseSelection
from naflex_export.accuracy.gate import GateSettings, judge, summary_of
from naflex_export.accuracy.photos import Photos, load_photos
from naflex_export.accuracy.results import GateReport, merged, selections_by_size
from naflex_export.errors import BackendError, RequestError
from naflex_export.models.model_sources import weights_sha256
from naflex_export.serving.load import open_verified
from naflex_export.serving.manifest import Manifest
from naflex_export.targets import StandIn, target_named


@dataclass(frozen=True)
class JudgeRequest:
    """How an artifact is to be judged.

    Attributes:
        images: a folder of photos to judge on; None for the three that ship with the package.
        cases: which batches to judge on.
        locate: compare modules even if the gate passes; after a failure that is done anyway.
        require_run: refuse an artifact that this machine cannot run, in place of judging what stands in for it.
    """

    images: Path | None = None
    cases: CaseSelection = field(default_factory=CaseSelection)
    locate: bool = False
    require_run: bool = False


def judge_artifact(path: Path, reference: nn.Module, request: JudgeRequest | None = None) -> GateReport:
    """Return the gate's report on an artifact as it lies on disk, after verifying it.

    Args:
        path: the artifact's folder.
        reference: the original model.
        request: how to judge it.

    Raises:
        RequestError: the reference has other weights than those the artifact was made from, or is no reference.
        ArtifactError, BackendError: as `load`.
    """
    request = request or JudgeRequest()
    manifest = Manifest.read(path)
    manifest.verify(path)
    check_same_weights(reference, manifest)
    if manifest.entry_points:
        parts = selections_by_size(request.cases, list(manifest.entry_points))
        return merged(
            {
                size: judge_artifact(
                    path / manifest.entry_points[size], reference, dataclasses.replace(request, cases=part)
                )
                for size, part in parts.items()
            }
        )
    opened = open_to_judge(path, manifest)
    if request.require_run:
        refuse_stand_in(opened)
    settings = GateSettings.of(manifest, request.cases, request.locate)
    return judge_opened(opened, reference, load_photos(request.images), settings)


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


def judge_opened(opened: StandIn, reference: nn.Module, photos: Photos, settings: GateSettings) -> GateReport:
    """Return the report of the gate on what `open_to_judge` gave.

    Args:
        opened: the artifact itself, or what stands in for it.
        reference: the original model.
        photos: to judge on.
        settings: the artifact's, as `GateSettings.of` its manifest.
    """
    report = judge(opened.runner, reference, photos, settings)
    summary = summary_of(opened.runner.manifest)
    return dataclasses.replace(report, artifact=summary, judged=opened.judged, not_run=opened.not_run)


def open_to_judge(folder: Path, manifest: Manifest) -> StandIn:
    """Return the artifact itself, or what stands in for it where this machine cannot run it."""
    manifest.verify(folder)
    replacement = target_named(manifest.target).stand_in(folder, manifest)
    if replacement is not None:
        return replacement
    runner = open_verified(folder, manifest)
    return StandIn(runner, judged=f"the artifact, on {runner.device}", not_run="")


def refuse_stand_in(opened: StandIn) -> None:
    """Check that an artifact runs itself.

    Raises:
        BackendError: another stands in for it.
    """
    if opened.not_run:
        raise BackendError(f"{opened.not_run}, and --require-run was given")
