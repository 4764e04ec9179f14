"""`export`: model in, judged artifact out."""

from __future__ import annotations

import dataclasses
import shlex
import shutil
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from naflex_export.accuracy import golden
from naflex_export.accuracy.calibration_photos import calibration_of, check_photos
from naflex_export.accuracy.gate import GateSettings
from naflex_export.accuracy.judge_artifact import judge_opened, open_to_judge, refuse_stand_in
from naflex_export.accuracy.parts import merged
from naflex_export.accuracy.photos import photos_for
from naflex_export.accuracy.precision_trials import Trials
from naflex_export.accuracy.report.card import write_card
from naflex_export.accuracy.report.formats import verdict, write
from naflex_export.accuracy.report.phrases import rerun_command
from naflex_export.accuracy.results import GateReport, PrecisionSearch
from naflex_export.accuracy.text_gate import PREFIX
from naflex_export.errors import BackendError, GateFailure, RequestError
from naflex_export.export_manifest import drafted, drafted_together
from naflex_export.export_request import ExportRequest, check_images, check_request, refuse_quantized
from naflex_export.graph.build_settings import BuildSettings
from naflex_export.graph.calibration import require_modelopt
from naflex_export.graph.onnx_about import describe_onnx
from naflex_export.graph.onnx_translate import write_onnx
from naflex_export.graph.program import Program
from naflex_export.graph.trace import stores_matrices, trace
from naflex_export.grid import Bucket, check_buckets, check_patch_sizes
from naflex_export.models import adapter_of, family_of, packed_of
from naflex_export.models.adapter import ModelAdapter
from naflex_export.models.exportable import refuse_modes, refuse_unexportable
from naflex_export.models.kept_parts import kept_of
from naflex_export.models.model_sources import why_untrusted
from naflex_export.models.quantized import quantized_layers
from naflex_export.models.rounding import refuse_rounded, remark_on_precision
from naflex_export.models.tower_names import IMAGE
from naflex_export.models.towers import remarks_on
from naflex_export.precision import Precision
from naflex_export.progress import Observer, shown_progress
from naflex_export.serving import compile_cache
from naflex_export.serving.device import resolve_device
from naflex_export.serving.manifest import Manifest
from naflex_export.serving.opened import opened
from naflex_export.serving.publish import staged
from naflex_export.targets import onnx, target_named, tensorrt
from naflex_export.text_export import TextExport

REPORT = Path("gate") / "report.json"


@dataclass(frozen=True)
class Artifact:
    """A published artifact.

    Attributes:
        path: its folder.
        manifest: what it says of itself.
        report: the gate's report; of all patch sizes together where there are several.
        by_patch_size: the artifact of each patch size, if `patch_sizes` were asked for.
    """

    path: Path
    manifest: Manifest
    report: GateReport
    by_patch_size: dict[int, Artifact] = field(default_factory=dict)


def export(
    model: nn.Module,
    target: str,
    out: Path | str,
    buckets: Sequence[Bucket | int] | Bucket | None = None,
    dtype: str = "float32",
    *,
    keep_float32: str | Sequence[str] = (),
    keep_unquantized: str | Sequence[str] = (),
    progress: bool = False,
    **options: Any,
) -> Artifact:
    """Build an artifact, reload it, judge it against the untouched eager model, and publish it if it passes.

    Args:
        model: a model that `vectorize` takes, in any dtype and mode. It is not changed. Of a model that holds one, that
            tower is exported, and a warning says so.
        target: "compile", "aot", "onnx" or "trt".
        out: the artifact's folder. An artifact there is replaced, atomically; anything else is left alone.
        buckets: what the artifact serves; one of 256 tokens by default.
        dtype: "float32", "float16" or "bfloat16", of the weights and of floating inputs and outputs; or "int8" or
            "fp8", which quantize the linear layers of blocks, calibrated on the photos of `images`.
        keep_float32: what computes in float32 all the same, where `dtype` has 16 bits: names of modules of the model,
            or "residual", "norm", "softmax", "pooling", "embedding"; a list, or a text with commas between names.
            "auto" searches, by trial, for the cheapest that passes the gate.
        keep_unquantized: modules whose layers are not quantized, by name, where `dtype` is "int8" or "fp8"; a list,
            or a text with commas between names.
        progress: show on standard error how far it is: a line that moves on a terminal, else a plain one each 10
            seconds. Without it the logger `naflex_export` is told.
        options: further attributes of `ExportRequest`, by name: `outputs`, `matrices`, `patch_sizes`, `packed`,
            `towers`, `tokenizer`, `preprocessing`, `upscale`, `images`, `seed`, `effort`, `require_run`,
            `keep_rejected`, `source`, `settings`.

    Raises:
        RequestError: an argument is not possible; nothing was built.
        UnsupportedModelError: the model is not known, or takes no other patch sizes and was asked to.
        BackendError: a package or device is missing.
        BuildError: a graph check or the backend's builder rejected the model.
        GateFailure: the gate failed; nothing was published, and the report is beside `out`, as data and as a page.
    """
    refuse_modes("nx.export")
    lists: dict[str, tuple[Any, ...]] = {}
    if options.get("outputs") is not None:
        lists["outputs"] = tuple([options["outputs"]] if isinstance(options["outputs"], str) else options["outputs"])
    if options.get("patch_sizes") is not None:
        lists["patch_sizes"] = check_patch_sizes(options["patch_sizes"])
    if options.get("images") is not None:
        options["images"] = Path(options["images"])
    chosen, precision = (
        check_buckets([Bucket()] if buckets is None else buckets),
        Precision.of(dtype, keep_float32, keep_unquantized),
    )
    request = ExportRequest(target, Path(out), chosen, precision, **{**options, **lists})
    if family_of(model) is None:
        warnings.warn("; ".join(remarks_on(model, request.preprocessing)), stacklevel=2)
    exporter = Exporter(model, request, shown_progress() if progress else None)
    if remark := remark_on_precision(adapter_of(model).model):
        warnings.warn(remark, stacklevel=2)
    return exporter.run()


STAGES = ("trace", "build", "reload", "gate")
"""Of an export, in order; for each patch size again, and a graph that is there already is not traced."""

Traced = dict[tuple[int | str | None, Precision], Program]
"""Graphs of one model for the same buckets and outputs, by patch size, or "text", and precision."""


class Exporter:
    """One export: what it needs is checked when it is made, and `run` goes through its steps.

    Args:
        model: to be exported, and the reference that the artifact is judged against.
        request: what is asked for.
        observer: told what happens.
        traced: graphs that other exports of the same model, buckets and outputs traced: one is used again where the
            precision is the same, and a new one is put there.

    Raises:
        RequestError: something is at `out` that is no artifact, the model is vectorized, there is no photo, or what is
            to be kept in float32 is not in the model.
        UnsupportedModelError: the model is not known, or takes no other patch sizes and was asked to.
        BackendError: a package or device is missing.
    """

    def __init__(
        self,
        model: nn.Module,
        request: ExportRequest,
        observer: Observer | None = None,
        traced: Traced | None = None,
    ) -> None:
        self.request, self.observer = request, observer or Observer()
        self._traced = traced
        check_request(request)
        self.target = target_named(request.target)
        self.target.require_build()
        if request.require_run and (reason := self.target.cannot_run(request.precision)):
            raise BackendError(
                f"{request.target} in {request.precision} can be built and not run here: {reason}; --require-run was "
                "given"
            )
        refuse_unexportable(model)
        own = adapter_of(model)
        refuse_rounded(own.model)
        if own.is_vectorized:
            raise RequestError("the model is vectorized: pass the original, which the gate compares with")
        if self.laid_out(own).input_format.is_packed:
            refuse_quantized(request.precision, packed=request.packed)
        self.photos = photos_for(own.why_no_photos, request.images)
        self.adapters = {
            size: adapter_of(model, size).prepared_by(request.preprocessing) for size in request.patch_sizes or (None,)
        }
        check_images(request)
        if request.precision.quantized and request.images is not None:
            check_photos(request.precision, request.images, self.photos)
            require_modelopt()
        self.text: TextExport | None = None
        if request.towers != IMAGE:
            self.text = TextExport(own.text_tower(request.tokenizer), self.target)
        self.outputs = request.outputs or own.default_outputs
        if request.matrices is not None:
            for adapter in self.adapters.values():
                stores_matrices(self.laid_out(adapter), request.buckets, request.precision, request.matrices)
        self.precision = request.precision
        self.search: PrecisionSearch | None = None
        if self.precision.is_auto:
            onnx.require_build()
        else:
            for adapter in self.adapters.values():
                kept_of(adapter, self.precision)
                quantized_layers(adapter, self.precision)
        self.preprocessing = {
            size: {**adapter.preprocessing(), **({} if request.upscale else {"upscale": False})}
            for size, adapter in self.adapters.items()
        }

    def run(self) -> Artifact:
        """Return the artifact of the model's own patch size, or of all patch sizes asked for, once it is published."""
        self.observer.planned([*(["search"] if self.precision.is_auto else []), *STAGES])
        with staged(self.request.out) as staging:
            if self.precision.is_auto:
                self.find_precision(next(iter(self.adapters.values())))
            if self.request.patch_sizes is None:
                return self.make(self.adapters[None], staging)
            return self.make_all(staging)

    def find_precision(self, adapter: ModelAdapter) -> None:
        """Search for what to keep in float32, by trial, without a GPU whatever the target is.

        Args:
            adapter: of the model that is tried.

        Raises:
            GateFailure: nothing that could be kept makes the gate pass; the report is beside `out`.
        """
        dtype = self.request.precision.dtype
        with self.observer.stage("search"):
            self.search, report = self.trials(adapter).search(dtype, self.request.buckets[-1].tokens)
        if self.search.found is None:
            self.tell(adapter, dataclasses.replace(report, search=self.search))
        self.precision = Precision(dtype, self.search.found or ())

    def trials(self, adapter: ModelAdapter) -> Trials:
        """Return a model, ready to be tried: its graph is written in ONNX as TensorRT takes it."""

        def draft(precision: Precision, folder: Path) -> Manifest:
            program = self.graph_of(adapter, precision)
            return self.describe(adapter, program, write_onnx(program, folder, BuildSettings(), tensorrt.OPSET))

        return Trials(adapter, self.photos, draft, self.gate_settings, self.observer)

    def make_all(self, staging: Path) -> Artifact:
        """Return the artifact that holds one for each patch size."""
        by_patch_size = {}
        for size in self.request.patch_sizes or ():
            folder = staging / f"patch{size}"
            folder.mkdir()
            by_patch_size[size] = self.make(self.adapters[size], folder)
        report = merged({f"patch{size}": artifact.report for size, artifact in by_patch_size.items()})
        write(report, staging / REPORT)
        draft = drafted_together(
            {size: artifact.manifest for size, artifact in by_patch_size.items()},
            {size: artifact.path.name for size, artifact in by_patch_size.items()},
        )
        draft = dataclasses.replace(draft, gate=verdict(report))
        write_card(staging, draft)
        manifest = draft.write(staging)
        return Artifact(self.request.out, manifest, report, by_patch_size)

    def make(self, adapter: ModelAdapter, folder: Path) -> Artifact:
        """Return the artifact of one patch size, built in its folder and judged."""
        draft = self.build(adapter, folder)
        if self.request.settings.compile_cache:
            draft, report = self.judge_recorded(adapter, folder, draft)
        else:
            report = self.judge(adapter, folder, draft)
        if self.text is not None:
            report = merged({"": report, PREFIX: self.judge_text(self.text, folder)})
        report = dataclasses.replace(
            report, search=self.search, folder=str(self.request.out) if report.passed else "", again=self.again
        )
        describe_onnx(folder, dataclasses.replace(draft, gate=verdict(report)))
        if not report.passed and self.request.keep_rejected:
            report = self.keep(folder, draft, report)
        self.tell(adapter, report)
        write(report, folder / REPORT)
        draft = dataclasses.replace(draft, gate=verdict(report))
        write_card(folder, draft)
        manifest = draft.write(folder)
        published = self.request.out if adapter.patch_size is None else self.request.out / folder.name
        return Artifact(published, manifest, report)

    def build(self, adapter: ModelAdapter, folder: Path) -> Manifest:
        """Write the target's files and return the manifest of an artifact that is yet to be judged."""
        program = self.program(adapter)
        settings = dataclasses.replace(self.request.settings, announce=self.observer.announce)
        with self.observer.stage("build"):
            if program.quantized:
                calibration = calibration_of(adapter, self.photos, program)
                settings = dataclasses.replace(settings, calibration=calibration)
            build = self.target.build(program, folder, settings)
        draft = self.describe(adapter, program, build)
        golden.add(folder, draft)
        if self.text is not None:
            program = self.text_program(self.text)
            with self.observer.stage("build"):
                self.text.build(program, folder, settings, draft)
        return draft.write(folder)

    def program(self, adapter: ModelAdapter) -> Program:
        """Return the model as one graph: the one that an export before this traced, where that is the same."""
        return self._once((adapter.patch_size, self.precision), lambda: self.graph_of(adapter, self.precision))

    def text_program(self, text: TextExport) -> Program:
        """Return the text tower as one graph, likewise."""
        precision = text.precision(self.precision)
        return self._once((PREFIX, precision), lambda: text.program(precision))

    def _once(self, key: tuple[int | str | None, Precision], make: Callable[[], Program]) -> Program:
        known = {} if self._traced is None else self._traced
        if key in known:
            return known[key]
        for other in [other for other in known if other[0] == key[0]]:
            del known[other]  # it holds a copy of all weights
        with self.observer.stage("trace"):
            made = make()
        known[key] = made
        return made

    def graph_of(self, adapter: ModelAdapter, precision: Precision) -> Program:
        """Return the model as one graph.

        Args:
            adapter: of the model.
            precision: of the graph.
        """
        buckets, matrices = self.request.buckets, self.request.matrices
        traced = trace(self.laid_out(adapter), buckets, precision, self.outputs, matrices=matrices)
        return dataclasses.replace(traced, quantized=quantized_layers(adapter, precision))

    def laid_out(self, adapter: ModelAdapter) -> ModelAdapter:
        """Return the adapter of a model for the inputs that were asked for, padded or packed."""
        return packed_of(adapter) if self.request.packed else adapter

    def describe(self, adapter: ModelAdapter, program: Program, build: dict[str, Any]) -> Manifest:
        """Return what an artifact says of itself, but for its files and the gate's verdict.

        Args:
            adapter: of the model that was exported.
            program: what it was built from.
            build: what the target has to say of the build.
        """
        return drafted(
            self.request,
            adapter,
            program,
            build,
            preprocessing=self.preprocessing[adapter.patch_size],
            packages=self.target.PACKAGES,
            text=None if self.text is None else self.text.fields(),
        )

    def judge(self, adapter: ModelAdapter, folder: Path, draft: Manifest) -> GateReport:
        """Return the gate's report on an artifact, reloaded from its folder.

        Args:
            adapter: of the model that was exported.
            folder: where the artifact is.
            draft: its manifest.
        """
        with self.observer.stage("reload"):
            found = opened(folder, open_to_judge)
            if self.request.require_run:
                refuse_stand_in(found)
        with self.observer.stage("gate"):
            return judge_opened(found, adapter.model, self.photos, self.gate_settings(draft))

    def judge_text(self, text: TextExport, folder: Path) -> GateReport:
        """Return the gate's report on the text tower's artifact, written beside it with its manifest.

        Args:
            text: the tower's part of this export.
            folder: where the artifact is.
        """
        with self.observer.stage("gate"):
            request = self.request
            return text.judge(
                folder, self.gate_settings, must_run=request.require_run, cached=request.settings.compile_cache
            )

    def gate_settings(self, draft: Manifest) -> GateSettings:
        """Return what an artifact is judged by, from its manifest and the request."""
        own = GateSettings.of(draft, self.request.cases)
        return dataclasses.replace(own, preprocessing=self.request.preprocessing, announce=self.observer.announce)

    @property
    def again(self) -> tuple[str, ...]:
        """What a command needs, beside the artifact's folder, to judge on the same cases again."""
        noted = self.request.source.get("model")
        asked = ["--reference", "MODEL", "--weights", "WEIGHTS"] if noted is None else []
        if noted is not None and why_untrusted(noted):
            asked.append("--trust-source")
        if self.request.tokenizer is not None:
            asked += ["--tokenizer", self.request.tokenizer]
        return (*asked, *(["--images", str(self.request.images)] if self.request.images is not None else []))

    def keep(self, folder: Path, draft: Manifest, report: GateReport) -> GateReport:
        """Return the report on an artifact that the gate rejects, once that is kept beside where it would have been.

        Args:
            folder: where it was built.
            draft: its manifest.
            report: what the gate found.
        """
        with staged(self.request.rejected) as kept:
            shutil.copytree(folder, kept, dirs_exist_ok=True)
            report = dataclasses.replace(report, folder=str(self.request.rejected))
            write(report, kept / REPORT)
            draft = dataclasses.replace(draft, gate=verdict(report))
            write_card(kept, draft)
            draft.write(kept)
        return report

    def judge_recorded(self, adapter: ModelAdapter, folder: Path, draft: Manifest) -> tuple[Manifest, GateReport]:
        """Return a draft that tells of the compiled code that judging has left in the artifact, and the report.

        Args:
            adapter: of the model that was exported.
            folder: where the artifact is.
            draft: its manifest.
        """
        with compile_cache.recorded(folder):
            report = self.judge(adapter, folder, draft)
        key = compile_cache.made_for(resolve_device(None))
        return dataclasses.replace(draft, build={**draft.build, "cache": key}), report

    def tell(self, adapter: ModelAdapter, report: GateReport) -> None:
        """Tell the observer what the gate found; where it failed, leave the report beside `out` and raise."""
        named = report if adapter.patch_size is None else merged({f"patch{adapter.patch_size}": report})
        self.observer.judged(named)
        if report.passed:
            return
        pages = [self.request.out.with_name(f"{self.request.rejected.name}{suffix}") for suffix in (".html", ".json")]
        for path in pages:
            write(named, path)
        try:
            named.raise_for_failure()
        except GateFailure as failure:
            kept = (
                f"the artifact is kept in {report.folder}, to be looked into and not for use; to judge it again: "
                f"{rerun_command(report) or shlex.join(['naflex-gate', report.folder, *self.again])}"
                if report.folder
                else "the artifact is not kept (--keep-rejected, or keep_rejected=True, keeps it)"
            )
            raise GateFailure(f"{failure}\n  report: {pages[0]} (open it in a browser), {pages[1]}\n  {kept}") from None
