"""The text tower's part of an export: an artifact of its own, in the folder `text` of the image tower's."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

from naflex_export.accuracy.gate import GateSettings
from naflex_export.accuracy.judge_artifact import judge_opened_text, open_to_judge, refuse_stand_in
from naflex_export.accuracy.report.formats import verdict, write
from naflex_export.accuracy.results import GateReport
from naflex_export.accuracy.text_gate import PREFIX
from naflex_export.errors import RequestError
from naflex_export.export_manifest import kept_in_float32, said_of_model
from naflex_export.graph.build_settings import BuildSettings
from naflex_export.graph.onnx_about import describe_onnx
from naflex_export.graph.program import Program
from naflex_export.graph.trace import trace
from naflex_export.grid import Bucket
from naflex_export.models.kept_parts import kept_of
from naflex_export.models.text_tower import TextTower
from naflex_export.precision import PRESETS, Precision
from naflex_export.serving import compile_cache
from naflex_export.serving.device import resolve_device
from naflex_export.serving.manifest import Manifest
from naflex_export.serving.manifest_schema import TEXT
from naflex_export.serving.opened import opened
from naflex_export.targets import Target

FOLDER = PREFIX
"""Inside the artifact of the image tower."""

BATCH = (1, 8, 64)
"""How many texts the graph takes at once; more are given to it in parts."""


class TextExport:
    """Builds and judges the text tower of an artifact.

    Args:
        tower: of the untouched model; also the reference.
        target: to build for.

    Attributes:
        tower: as given.
    """

    def __init__(self, tower: TextTower, target: Target) -> None:
        self.tower, self._target = tower, target

    def fields(self) -> dict[str, Any]:
        """Return what the manifest of the image tower says of the text tower."""
        return {"folder": FOLDER, **self.tower.scoring.fields()}

    def precision(self, asked: Precision) -> Precision:
        """Return what the tower computes in: of what is kept in float32 the presets that it has; names are of images.

        Args:
            asked: of the image tower.
        """
        kept = []
        for name in asked.keep_float32:
            with contextlib.suppress(RequestError):  # it has nothing of that kind
                if name in PRESETS:
                    kept_of(self.tower, Precision(asked.dtype, (name,)))
                    kept.append(name)
        return Precision(asked.dtype, tuple(kept))

    def program(self, precision: Precision) -> Program:
        """Return the tower as one graph.

        Args:
            precision: of the graph.
        """
        return trace(self.tower, [Bucket(self.tower.length, BATCH)], precision, self.tower.default_outputs)

    def build(self, program: Program, folder: Path, settings: BuildSettings, top: Manifest) -> None:
        """Write the tower's artifact, yet to be judged, into a folder of the image tower's.

        Args:
            program: the tower's graph.
            folder: the image tower's.
            settings: of the build.
            top: the image tower's draft, whose source and versions it shares.
        """
        inner = folder / FOLDER
        inner.mkdir()
        build = self._target.build(program, inner, settings)
        for name, content in self.tower.tokenizer_files().items():
            (inner / name).write_bytes(content)
        Manifest(
            target=top.target,
            dtype=top.dtype,
            inputs=program.inputs,
            outputs=program.outputs,
            buckets=program.buckets,
            model={**said_of_model(self.tower, top.model["source"]), "vocabulary": self.tower.token_width},
            preprocessing=self.tower.preprocessing(),
            versions=top.versions,
            build=build | kept_in_float32(program.precision),
            kind=TEXT,
        ).write(inner)

    def judge(
        self, folder: Path, ask: Callable[[Manifest], GateSettings], *, must_run: bool, cached: bool
    ) -> GateReport:
        """Return the gate's report on the tower's artifact, and write both into its folder.

        Args:
            folder: the image tower's.
            ask: returns what to judge an artifact by, from its manifest.
            must_run: refuse what stands in for it.
            cached: keep in the artifact what judging compiles.
        """
        inner = folder / FOLDER
        with compile_cache.recorded(inner) if cached else contextlib.nullcontext():
            found = opened(inner, open_to_judge)
            if must_run:
                refuse_stand_in(found)
            draft = found.runner.manifest
            report = judge_opened_text(found, self.tower, ask(draft))
        if cached:
            draft = dataclasses.replace(
                draft, build={**draft.build, "cache": compile_cache.made_for(resolve_device(None))}
            )
        write(report, inner / "gate" / "report.json")
        draft = dataclasses.replace(draft, gate=verdict(report))
        describe_onnx(inner, draft, scoring=self.tower.scoring.fields())
        draft.write(inner)
        return report
