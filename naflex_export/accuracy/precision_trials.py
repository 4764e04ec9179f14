"""`Trials`: a search for what to keep in float32: each trial is the model in ONNX, with each result rounded."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from naflex_export.accuracy.comparison import float32_reference
from naflex_export.accuracy.gate import GateSettings, judge
from naflex_export.accuracy.photos import Photos
from naflex_export.accuracy.precision_cost import Costs
from naflex_export.accuracy.precision_search import search
from naflex_export.accuracy.results import GateReport, PrecisionSearch, SearchStep
from naflex_export.models.adapter import ModelAdapter
from naflex_export.models.kept_parts import ModelParts, blocks_of
from naflex_export.precision import Precision
from naflex_export.progress import Observer
from naflex_export.serving.manifest import Manifest
from naflex_export.targets import onnx


@dataclass(frozen=True)
class Trials:
    """A model to be tried with different parts of it in float32.

    Attributes:
        adapter: of the model.
        photos: to judge on.
        draft: writes the model's graph in a precision to a folder, in ONNX, and returns the manifest of what is there.
        settings: returns what such a draft is judged by.
        observer: told what each trial comes to.
    """

    adapter: ModelAdapter
    photos: Photos
    draft: Callable[[Precision, Path], Manifest]
    settings: Callable[[Manifest], GateSettings]
    observer: Observer

    def search(self, dtype: str, tokens: int) -> tuple[PrecisionSearch, GateReport]:
        """Return what came of the search, and the report on the last trial.

        Args:
            dtype: what is not kept computes in.
            tokens: of an image, for the estimates of cost.
        """
        costs = Costs.of(float32_reference(self.adapter), tokens)

        def tried(step: SearchStep) -> None:
            self.observer.announce(f"{','.join(step.keep_float32) or 'nothing'} {'passes' if step.passed else 'fails'}")

        return search(
            lambda names: self.judged(Precision(dtype, names)),
            lambda names: costs.of_precision(Precision(dtype, names)),
            blocks_of(self.adapter),
            tried,
            ModelParts(self.adapter),
        )

    def judged(self, precision: Precision) -> GateReport:
        """Return the gate's report on the model in a precision, each result rounded, whatever the target is.

        Args:
            precision: with the names that are kept in float32.
        """
        with tempfile.TemporaryDirectory() as name:
            draft = self.draft(precision, Path(name))
            stand_in = onnx.rounded(Path(name), draft, "it is a trial of a search")
            settings = replace(self.settings(draft), judged=stand_in.judged)
            return judge(stand_in.runner, self.adapter.model, self.photos, settings)
