"""`judge_artifact`: the gate on an artifact's folder, by what stands in for it where this machine cannot run it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from torch import nn

from naflex_export.accuracy import golden
from naflex_export.accuracy.comparison import EagerOutputs
from naflex_export.accuracy.efforts import CaseSelection
from naflex_export.accuracy.gate import GateSettings, artifact_on, check_same_weights, judge, summary_of
from naflex_export.accuracy.gpu_rounding import with_gpu_rounding
from naflex_export.accuracy.parts import merged, selections_by_part
from naflex_export.accuracy.photos import Photos, photos_for
from naflex_export.accuracy.results import GateReport
from naflex_export.accuracy.text_gate import PREFIX, judge_text
from naflex_export.embed.golden import read
from naflex_export.errors import BackendError, RequestError
from naflex_export.models import adapter_of
from naflex_export.models.exportable import refuse_not_plain
from naflex_export.models.preprocessing import given_in
from naflex_export.models.text_tower import TextTower
from naflex_export.serving.load import load_errors, open_verified
from naflex_export.serving.manifest_schema import TEXT
from naflex_export.serving.opened import VerifiedFolder, opened
from naflex_export.serving.runner import Runner
from naflex_export.serving.text import TokenMaker
from naflex_export.serving.trust import check_trusted
from naflex_export.targets import StandIn, target_named


@dataclass(frozen=True)
class JudgeRequest:
    """How an artifact is to be judged.

    Attributes:
        images: a folder of photos to judge on; None for the three that ship with the package.
        cases: which batches to judge on.
        locate: compare modules even if the gate passes; after a failure that is done anyway.
        require_run: refuse an artifact that this machine cannot run, in place of judging what stands in for it.
        trusted: as for `load`: with False an artifact that holds code is refused.
        announce: called with what is being judged, such as "case 4 of 9: mixed-256-seed0".
        tokenizer: the folder of the tokenizer that a text tower is judged with; None for where the model was loaded
            from, or where the artifact's was taken from.
    """

    images: Path | None = None
    cases: CaseSelection = field(default_factory=CaseSelection)
    locate: bool = False
    require_run: bool = False
    trusted: bool = True
    announce: Callable[[str], None] = lambda step: None
    tokenizer: str | None = None


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
    refuse_not_plain(reference)

    def use(folder: VerifiedFolder) -> dict[str, StandIn]:
        """Open all that is there, so that everything judged is of the same artifact."""
        check_trusted(folder.manifest, request.trusted)
        check_same_weights(reference, folder.manifest)
        if folder.manifest.by_patch_size:
            return {f"patch{size}": open_to_judge(part) for size, part in folder.by_patch_size().items()}
        text = folder.text()
        return {"": open_to_judge(folder), **({} if text is None else {PREFIX: open_to_judge(text)})}

    found = opened(path, use)
    if request.require_run:
        for one in found.values():
            refuse_stand_in(one)
    photos = photos_for(adapter_of(reference).why_no_photos, request.images)

    def judge_one(part: str, cases: CaseSelection) -> GateReport:
        settings = GateSettings.of(found[part].runner.manifest, cases, request.locate)
        settings = dataclasses.replace(settings, announce=request.announce)
        if part == PREFIX:
            return judge_opened_text(found[part], tower, settings)
        return judge_opened(found[part], reference, photos, settings)

    selections = selections_by_part(request.cases, list(found))
    tower = text_reference(reference, found, request.tokenizer) if PREFIX in selections else None
    reports = {part: judge_one(part, cases) for part, cases in selections.items()}
    report = reports[""] if list(reports) == [""] else merged(reports)
    return dataclasses.replace(report, folder=str(path))


def text_reference(reference: nn.Module, found: Mapping[str, StandIn], tokenizer: str | None) -> TextTower:
    """Return the text tower that an artifact's is judged against.

    Args:
        reference: the whole model.
        found: the parts of the artifact, by name.
        tokenizer: the folder of the tokenizer; None for where the artifact's came from.

    Raises:
        RequestError: its tokenizer cannot be had, or gives other inputs than the artifact takes.
    """
    noted = found[PREFIX].runner.manifest.preprocessing.get("tokenizer_from", "")
    adapter = adapter_of(reference)
    own = getattr(adapter.model, "name_or_path", "") or ""
    tower = adapter.text_tower(tokenizer or (str(noted) if not own and noted else None))
    taken = tuple(spec.name for spec in found[PREFIX].runner.manifest.inputs)
    if tower.input_format.names != taken:
        raise RequestError(
            f"the reference's tokenizer gives {', '.join(tower.input_format.names)}, and the artifact takes "
            f"{', '.join(taken)}: its model_input_names have changed since; give --tokenizer FOLDER, or export again"
        )
    return tower


def judge_opened_text(opened: StandIn, tower: TextTower | None, settings: GateSettings) -> GateReport:
    """Return the report of the gate on a text tower that `open_to_judge` gave.

    Args:
        opened: the tower itself, or what stands in for it.
        tower: the reference's.
        settings: the artifact's, as `GateSettings.of` its manifest.
    """
    assert tower is not None  # whoever asks has it
    tokenizer = opened.tokenizer

    def judge_one(one: Runner, cases: CaseSelection, eager: EagerOutputs | None) -> GateReport:
        asked = dataclasses.replace(settings, cases=cases, judged=opened.judged)
        return judge_text(one, tower, asked, tokenizer if one is opened.runner else None, eager)

    report = with_gpu_rounding(opened.runner, settings.cases, judge_one, repeats=lambda name: True)
    manifest = opened.runner.manifest
    return dataclasses.replace(report, artifact=summary_of(manifest), not_run=opened.not_run)


def judge_opened(opened: StandIn, reference: nn.Module, photos: Photos, settings: GateSettings) -> GateReport:
    """Return the report of the gate on what `open_to_judge` gave.

    Args:
        opened: the artifact itself, or what stands in for it.
        reference: the original model.
        photos: to judge on.
        settings: the artifact's, as `GateSettings.of` its manifest.
    """
    report = judge(opened.runner, reference, photos, dataclasses.replace(settings, judged=opened.judged))
    manifest = opened.runner.manifest
    adapter = adapter_of(reference, settings.patch_size).prepared_by(given_in(manifest.preprocessing))
    photo = golden.judge(opened.golden, manifest, adapter)
    return dataclasses.replace(
        report,
        artifact=summary_of(manifest),
        not_run=opened.not_run,
        preprocessing=photo.said,
        problems=(*report.problems, *photo.problems),
    )


def open_to_judge(folder: VerifiedFolder) -> StandIn:
    """Return the artifact itself, or what stands in for it where this machine cannot run it."""
    found = open_stand_in(folder)
    if found is None:
        runner = open_verified(folder)
        found = StandIn(runner, judged=artifact_on(runner), not_run="")
    if folder.manifest.kind == TEXT:
        return dataclasses.replace(found, tokenizer=TokenMaker(folder))
    return dataclasses.replace(found, golden=read(folder.path, folder.manifest))


def open_stand_in(folder: VerifiedFolder) -> StandIn | None:
    """Return what stands in for an artifact where this machine cannot run it; None where it can.

    Raises:
        ArtifactError: its file cannot be loaded.
    """
    with load_errors(folder, "what stands in for the artifact"):
        replacement = target_named(folder.manifest.target).stand_in(folder.path, folder.manifest)
    if replacement is not None:
        replacement.runner.folder_handle = folder.handle
    return replacement


def refuse_stand_in(opened: StandIn) -> None:
    """Check that an artifact runs itself.

    Raises:
        BackendError: another stands in for it.
    """
    if opened.not_run:
        raise BackendError(f"{opened.not_run}, and --require-run was given")
