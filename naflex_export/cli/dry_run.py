"""What `naflex-export --dry-run` prints: the plan of a run, from the model itself, without a build."""

from __future__ import annotations

import time
from collections.abc import Iterator

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


def plan_lines(exporters: list[Exporter]) -> Iterator[str]:
    """Yield the plan of a run, a line each: the model, its inputs, buckets, and each artifact that would be made."""
    first = exporters[0]
    adapters = list(first.adapters.values())
    for adapter in adapters:
        parameters = sum(parameter.numel() for parameter in adapter.model.parameters())
        yield f"model: {_name(adapter, first)}, {parameters_in_words(parameters)}"
        for spec in _inputs(adapter, first):
            yield f"  in   {spec}"
    if first.text is not None:
        yield f"text tower: {first.text.tower.describe()['architecture']}, texts of {first.text.tower.length} tokens"
    yield f"outputs: {', '.join(first.outputs)}"
    for bucket in first.request.buckets:
        smallest, usual, largest = bucket.batch
        yield f"bucket and profile: {bucket.tokens} tokens, batches of {smallest} to {largest}, tuned for {usual}"
    cases = _cases(first)
    seconds = _seconds_of_eager(adapters[0])
    texts = [] if first.text is None else [first.text.tower]
    for exporter in exporters:
        request = exporter.request
        low = exporter.precision.is_low
        width = 1 if exporter.precision.quantized else 2 if low else 4
        size = sum(_bytes(adapter, width) for adapter in [*adapters, *texts])
        judged = exporter.target.cannot_run(exporter.precision)
        yield f"{request.target} in {exporter.precision}: about {bytes_in_words(size)}, to {request.out}"
        yield f"  judged: {f'what stands in for it ({judged})' if judged else 'the artifact itself'}"
        work = sum(
            tokens_run(bucket, request.cases, len(first.photos.images), 3 if low else 2) for bucket in request.buckets
        )
        expected = len(adapters) * work * seconds
        yield f"  gate: {sum(cases) * len(adapters)} cases, {seconds_in_words(expected)} on this CPU, after the build"
    yield "nothing was built: leave out --dry-run to build it"


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
