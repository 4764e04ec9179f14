"""What `naflex-export --dry-run` prints: the plan of a run, from the model itself, without a build."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass

import torch

from naflex_export.accuracy.cases import cases_of, survey_names, tokens_of
from naflex_export.accuracy.efforts import CaseSelection
from naflex_export.accuracy.sampling import CALL_COST
from naflex_export.accuracy.survey import CALLS
from naflex_export.cli.amounts import bytes_in_words, parameters_in_words, seconds_in_words
from naflex_export.exporter import Exporter
from naflex_export.graph.trace import EXAMPLE, example_inputs
from naflex_export.grid import Bucket
from naflex_export.models.adapter import ModelAdapter
from naflex_export.models.encoder_adapter import EncoderAdapter
from naflex_export.serving.signature import TensorSpec


@dataclass(frozen=True)
class PlannedArtifact:
    """An artifact that a run would make.

    Attributes:
        target: it would be built for.
        dtype: of its weights.
        folder: where it would be.
        bytes: that its weights take.
        not_run: why the gate would judge what stands in for it; empty where it judges the artifact itself.
        cases: of the gate.
        gate_seconds: that the gate takes after the build, as fast as eager ran here just now.
    """

    target: str
    dtype: str
    folder: str
    bytes: int
    not_run: str
    cases: int
    gate_seconds: float


@dataclass(frozen=True)
class RunPlan:
    """What a run would make, and of what.

    Attributes:
        models: of each patch size its name, parameters and inputs.
        text: the text tower's architecture and tokens of a text; None where there is none.
        outputs: that the artifacts would have.
        buckets: that they would serve.
        artifacts: that would be made.
    """

    models: tuple[tuple[str, int, tuple[TensorSpec, ...]], ...]
    text: tuple[str, int] | None
    outputs: tuple[str, ...]
    buckets: tuple[Bucket, ...]
    artifacts: tuple[PlannedArtifact, ...]

    def lines(self) -> Iterator[str]:
        """Yield the plan in words, a line each."""
        for name, parameters, inputs in self.models:
            yield f"model: {name}, {parameters_in_words(parameters)}"
            for spec in inputs:
                yield f"  in   {spec}"
        if self.text is not None:
            architecture, length = self.text
            yield f"text tower: {architecture}, texts of {length} tokens"
        yield f"outputs: {', '.join(self.outputs)}"
        for bucket in self.buckets:
            smallest, usual, largest = bucket.batch
            yield f"bucket and profile: {bucket.tokens} tokens, batches of {smallest} to {largest}, tuned for {usual}"
        for one in self.artifacts:
            seconds = seconds_in_words(one.gate_seconds)
            yield f"{one.target} in {one.dtype}: about {bytes_in_words(one.bytes)}, to {one.folder}"
            yield f"  judged: {f'what stands in for it ({one.not_run})' if one.not_run else 'the artifact itself'}"
            yield f"  gate: {one.cases} cases, {seconds} on this CPU, after the build"
        yield "nothing was built: leave out --dry-run to build it"

    def as_json(self) -> str:
        """Return the plan as JSON; an axis of any length is a name in place of a number."""
        told = {
            "models": [
                {"model": name, "parameters": parameters, "inputs": [asdict(spec) for spec in inputs]}
                for name, parameters, inputs in self.models
            ],
            "text": None if self.text is None else dict(zip(("architecture", "tokens"), self.text, strict=True)),
            "outputs": self.outputs,
            "buckets": [asdict(bucket) for bucket in self.buckets],
            "artifacts": [asdict(one) for one in self.artifacts],
        }
        return json.dumps(told, indent=2)


def plan_of(exporters: list[Exporter]) -> RunPlan:
    """Return the plan of a run; eager runs a few times on a small batch, to tell how long a gate takes.

    Args:
        exporters: of each artifact asked for, all of one model.
    """
    first = exporters[0]
    adapters = list(first.adapters.values())
    seconds = _seconds_of_eager(adapters[0])
    return RunPlan(
        tuple(
            (
                _name(adapter, first),
                sum(parameter.numel() for parameter in adapter.model.parameters()),
                tuple(_inputs(adapter, first)),
            )
            for adapter in adapters
        ),
        None if first.text is None else (first.text.tower.describe()["architecture"], first.text.tower.length),
        tuple(first.outputs),
        tuple(first.request.buckets),
        tuple(_planned(exporter, seconds) for exporter in exporters),
    )


def _planned(exporter: Exporter, seconds: float) -> PlannedArtifact:
    """Return what one export would make.

    Args:
        exporter: of the artifact.
        seconds: that eager takes for a token.
    """
    request, adapters = exporter.request, list(exporter.adapters.values())
    low = exporter.precision.is_low
    width = 1 if exporter.precision.quantized else 2 if low else 4
    texts = [] if exporter.text is None else [exporter.text.tower]
    photos = len(exporter.photos.images)
    work = sum(tokens_run(bucket, request.cases, photos, 3 if low else 2) for bucket in request.buckets)
    return PlannedArtifact(
        request.target,
        str(exporter.precision),
        str(request.out),
        sum(_bytes(adapter, width) for adapter in [*adapters, *texts]),
        exporter.target.cannot_run(exporter.precision),
        sum(_cases(exporter)) * len(adapters),
        len(adapters) * work * seconds,
    )


def _name(adapter: ModelAdapter, exporter: Exporter) -> str:
    """Return what a model was asked for by, and what it is where that says more."""
    asked = exporter.request.source.get("model", "")
    kind = adapter.describe()["architecture"] or type(adapter.model).__name__
    return kind if asked in ("", kind) else f"{asked} ({kind})"


def _inputs(adapter: ModelAdapter, exporter: Exporter) -> Iterator[TensorSpec]:
    form = adapter.input_format
    given = example_inputs(adapter, torch.float32)
    for name, value, axes in zip(form.names, given, form.open_dims, strict=True):
        dtype = exporter.precision.dtype if value.is_floating_point() else str(value.dtype).removeprefix("torch.")
        yield TensorSpec(name, dtype, tuple(axes.get(axis, size) for axis, size in enumerate(value.shape)))


def _cases(exporter: Exporter) -> list[int]:
    photos = len(exporter.photos.images)
    return [len(cases_of(bucket, exporter.request.cases, photos)) for bucket in exporter.request.buckets]


def tokens_run(bucket: Bucket, selection: CaseSelection, num_photos: int, models: int) -> int:
    """Return what a gate runs of a bucket, in tokens, with what its calls cost beside those.

    Args:
        bucket: what the candidate serves.
        selection: which cases are asked for.
        num_photos: how many photos there are.
        models: how many are run on each batch: the reference, the candidate, and in 16 bits the baseline.
    """
    surveyed = survey_names(bucket, selection)
    generated = [name for name in cases_of(bucket, selection, num_photos) if not name.startswith("photos-")]
    tokens = num_photos * bucket.tokens + sum(tokens_of(name, bucket) for name in [*generated, *surveyed])
    return models * tokens + CALL_COST * max(len(generated), CALLS if surveyed else 0)


def _bytes(adapter: EncoderAdapter, width: int) -> int:
    return sum(parameter.numel() * width for parameter in adapter.tower.parameters())


def _seconds_of_eager(adapter: ModelAdapter) -> float:
    """Return the seconds that eager takes for a token, on a small batch; of a merged one, for all its patches."""
    inputs = example_inputs(adapter, torch.float32)
    encoder = adapter.encoder(adapter.default_outputs)
    taken = []
    with torch.no_grad():
        for _ in range(4):  # the first is slower, and so is any that other work on the machine meets
            started = time.perf_counter()
            encoder(*inputs)
            taken.append(time.perf_counter() - started)
    is_packed = adapter.input_format.is_packed
    tokens = sum(grid.tokens for grid in EXAMPLE) if is_packed else inputs[0].shape[0] * inputs[0].shape[1]
    return min(taken) / tokens
