"""`first_deviation`: where a candidate first leaves the reference, module by module, on the case that failed.

The reference's modules are heard by hooks while it runs; a candidate shows its own as it can
(`graph/intermediates.py`). Where it cannot, the reason is in the report instead.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from naflex_export.accuracy.advice import advice_on, advice_without, output_tap
from naflex_export.accuracy.comparison import Comparison
from naflex_export.accuracy.layers_to_keep import layers_to_keep
from naflex_export.accuracy.results import BASELINE_FACTOR, CaseResult, GateReport, Location, Tap
from naflex_export.batch import Batch, picked
from naflex_export.graph.intermediates import CanBeTapped, Once, Shapes, Tapped, listening, tap_names
from naflex_export.grid import Bucket
from naflex_export.models.encoder_adapter import Outputs
from naflex_export.models.kept_parts import ModelParts, blocks_of
from naflex_export.models.quantized import quantized_layers
from naflex_export.serving.runner import Runner
from naflex_export.targets import target_named

FLOAT32_FLOOR = 3e-5
"""Relative L2 error of a module that reordered float32 sums explain.

The base model measures at most 1.1e-6 in any module, ONNX Runtime beside eager, and tiny ones 2.8e-6; the least real
fault of arithmetic, matmuls of operands rounded to TF32, measures 2.9e-4 in the first of them. So the floor is ten
times above the one and ten times below the other. The gate's limit for the outputs is below it: what fails by less than
this floor is said to fail, and where it begins is not.
"""

FEW_IMAGES = 2
"""How many images of a case are looked at: enough that one can leak into another, at little memory."""

MOST_TOKENS = 4096
"""In images times tokens: a case of up to this size is looked at as a whole where its worst images alone are right."""


def first_deviation(
    comparison: Comparison, report: GateReport, case_of: Callable[[str], tuple[Bucket, Batch]]
) -> Location:
    """Return where the candidate first deviates, on the worst case that failed, or on the first where none did.

    Args:
        comparison: what was compared.
        report: what came of it.
        case_of: returns the bucket and batch of a case by its name.
    """
    worst = worst_result(report)
    if worst is None:
        return Location("", unavailable="no case could be compared")
    bucket, batch = case_of(worst.case)
    part = worst_images(worst, batch, max(FEW_IMAGES, bucket.batch[0]))
    try:
        is_small = batch.patch_valid.numel() <= MOST_TOKENS
        if worst.exceeded and is_small and not _breaks(comparison, part, comparison.candidate_of(part, checked=False)):
            part = batch  # what fails needs the other images
        return _located(comparison, report, part)
    except Exception as error:  # whatever it is, the gate's own verdict stands and must be told
        return Location(worst.case, unavailable=f"looking for it raised {type(error).__name__}: {error}")


def worst_result(report: GateReport) -> CaseResult | None:
    """Return the result that failed by most; the first where none failed by its measures."""
    failed = [result for result in report.results if result.exceeded]
    if failed:
        return max(failed, key=lambda result: _ordered(result.measures.relative_l2))
    if any(baseline.failure for baseline in report.baselines):
        return max(report.results, key=_beyond_baseline)
    return next(iter(report.results), None)


def _beyond_baseline(result: CaseResult) -> float:
    """Return by how much a result is above what the baseline allows; most of all where that is not finite."""
    allowed = BASELINE_FACTOR * (result.baseline.relative_l2 if result.baseline else 0.0)
    return _ordered(result.measures.relative_l2 - allowed) if math.isfinite(allowed) else math.inf


def _ordered(error: float) -> float:
    """Return an error that compares with others: one that is not a number is the largest."""
    return math.inf if math.isnan(error) else error


def worst_images(result: CaseResult, batch: Batch, count: int) -> Batch:
    """Return the batch with its worst images only, in their order.

    Args:
        result: what came of the batch.
        batch: that it is of.
        count: how many images are kept.
    """
    errors = [_ordered(image.relative_l2) for image in result.per_image]
    worst = sorted(range(len(errors)), key=lambda image: -errors[image])[:count]
    return picked(batch, sorted(worst))


def _breaks(comparison: Comparison, batch: Batch, given: Mapping[str, Tensor]) -> bool:
    """Whether an output is beyond its limits on a batch."""
    floor = comparison.baseline_of(batch)
    for name, wanted in comparison.reference_of(batch).items():
        if name not in given or given[name].shape != wanted.shape:
            return True
        measures, _, limits = comparison.compared(batch, name, given[name], wanted, floor.get(name))
        if limits.exceeded_by(measures):
            return True
    return False


def _located(comparison: Comparison, report: GateReport, batch: Batch) -> Location:
    location = Location(batch.name, images=len(batch.grids))
    reference = _reference(comparison, batch)
    found = _candidate(comparison, batch, _shapes(comparison, batch, reference))
    if found.unavailable:
        return replace(location, unavailable=found.unavailable)
    outputs = comparison.padded(batch, dict(found.outputs))
    values = {**found.values, **{output_tap(name): value for name, value in outputs.items()}}
    baseline = _baseline(comparison, batch, reference)
    if report.is_coarse:  # what eager does as well is just what is looked for
        floors = dict.fromkeys(reference.values, comparison.limits.relative_l2)
    else:
        floors = {name: _floor(comparison, reference, name, baseline.get(name)) for name in reference.values}
    highest = torch.finfo(comparison.precision.torch_dtype).max
    taps = []
    for name, wanted in reference.values.items():
        value = values.get(name)
        if value is not None and comparison.input_format.is_packed and reference.valid[name] is not None:
            value = comparison.padded_value(batch, value)
        given = _lined_up(value, wanted)
        if given is None:
            continue
        valid = reference.valid[name]
        inside = reference.inside.get(name, 0.0)
        peak, wanted_peak = _peak(given, valid), _peak(wanted, valid)
        error = relative_l2(given, wanted, valid)
        taps.append(Tap(name, error, floors[name], peak, wanted_peak, highest, max(inside, wanted_peak)))
    if not taps:
        return replace(location, unavailable="no module of the candidate has the shape of the reference's")
    located, precision = replace(location, taps=tuple(taps), instead=found.instead), comparison.precision
    kept, parts = precision.keep_float32, ModelParts(comparison.reference)
    if precision.quantized and not report.passed:
        return replace(located, advice=_advice_on_layers(comparison, batch))
    if located.first is not None:
        eager = baseline.get(located.first.module, 0.0)
        advice = advice_on(located.first, precision.dtype, kept, is_coarse=report.is_coarse, eager=eager, parts=parts)
        return replace(located, advice=advice)
    if report.passed:
        return located
    overflows = next((tap for tap in located.taps if not math.isfinite(baseline.get(tap.module, 0.0))), None)
    breaks = (
        _breaks(comparison, batch, comparison.candidate_of(batch, checked=False)),
        _breaks(comparison, batch, outputs),
    )
    advice = advice_without(precision.dtype, overflows, *breaks, kept=kept, parts=parts)
    return replace(located, advice=advice)


def _advice_on_layers(comparison: Comparison, batch: Batch) -> str:
    """Return which quantized layers to keep, with the option of `naflex-export` that does it."""
    precision = comparison.precision
    more = layers_to_keep(comparison, batch)
    if len(more) == len(quantized_layers(comparison.reference, precision)) or set(more) == set(
        blocks_of(comparison.reference)
    ):
        return f"no layer is right enough in {precision.quantized}: export in float16"
    names = [*precision.keep_unquantized, *more]
    outermost = [name for name in names if not any(name.startswith(f"{other}.") for other in names)]
    return f"keep what loses most out of {precision.quantized} (--keep-unquantized {','.join(outermost)})"


def _shapes(comparison: Comparison, batch: Batch, reference: _Reference) -> dict[str, torch.Size]:
    """Return the shape of each module's output in the candidate: of a pack, with a row for each token there is."""
    shapes = {name: value.shape for name, value in reference.values.items()}
    if comparison.input_format.is_packed:
        for name, valid in reference.valid.items():
            if valid is not None:
                shapes[name] = torch.Size([1, int(valid.sum()), shapes[name][-1]])
    return shapes


def _lined_up(given: Tensor | None, wanted: Tensor) -> Tensor | None:
    """Return a module's output in the reference's shape; None where there is none, or it has another.

    A vectorized embedding projects all images' tokens in a row, [B * N, D].
    """
    if given is None or given.shape not in (wanted.shape, wanted.flatten(0, -2).shape):
        return None
    return given.reshape(wanted.shape).cpu()


@dataclass
class _Reference:
    """What the reference gave on a batch.

    Attributes:
        values: of each module to tap, in the order in which they complete, and last of the outputs.
        valid: which rows of each to compare.
        inside: the largest magnitude of each module's own values and of those that it is made of.
    """

    values: Outputs
    valid: dict[str, Tensor | None]
    inside: dict[str, float] = field(default_factory=dict)


def _reference(comparison: Comparison, batch: Batch) -> _Reference:
    tower = comparison.reference.tower
    kept, names, peaks = Once(), set(tap_names(tower)), dict[str, float]()

    def take(name: str, value: Tensor) -> None:
        peaks[name] = max(peaks.get(name, 0.0), _peak(value, _valid(comparison, batch, value)))
        if name in names:
            kept.take(name, value)

    with listening(tower, [name for name, _ in tower.named_modules() if name], take):
        outputs = comparison.reference_of(batch)
    inside = {
        name: max(peak for inner, peak in peaks.items() if inner == name or inner.startswith(f"{name}."))
        for name in kept.values
    }
    values = {**kept.values, **{output_tap(name): value for name, value in outputs.items()}}
    return _Reference(values, {name: _valid(comparison, batch, value) for name, value in values.items()}, inside)


def _baseline(comparison: Comparison, batch: Batch, reference: _Reference) -> dict[str, float]:
    """Return the error of each module of eager in the candidate's dtype; nothing in float32."""
    errors: dict[str, float] = {}
    if comparison.baseline is None:
        return errors

    def take(name: str, value: Tensor) -> None:
        errors[name] = relative_l2(value, reference.values[name], reference.valid[name])

    with listening(comparison.baseline.tower, list(reference.values), take):
        outputs = comparison.baseline_of(batch)
    for name, value in outputs.items():
        take(output_tap(name), value)
    return errors


def _floor(comparison: Comparison, reference: _Reference, name: str, baseline: float | None) -> float:
    """Return what rounding explains of a module's error: in low precision, twice what it does to eager's own."""
    if baseline is None:
        return FLOAT32_FLOOR
    if not math.isfinite(baseline):  # eager overflows there: no yardstick, and just what is looked for
        return comparison.limits.relative_l2
    if comparison.precision.dtype == "float32":  # but for quantized layers
        return max(BASELINE_FACTOR * baseline, FLOAT32_FLOOR)
    one_rounding = float(torch.finfo(comparison.precision.torch_dtype).eps) / 2  # which eager may be spared
    allowed = BASELINE_FACTOR * baseline * _chance(reference.values[name], reference.valid[name])
    return max(allowed, one_rounding)


def _chance(value: Tensor, valid: Tensor | None) -> float:
    """Return by how much the errors of two equally good computations of so few values may differ by chance.

    The root mean square of n errors is itself known to about 1 / sqrt(2 n); of two, one may be four standard deviations
    above the other.
    """
    count = value.numel() if valid is None else int(torch.broadcast_to(valid, value.shape).sum())
    return 1 + 4 / math.sqrt(count)


def _candidate(comparison: Comparison, batch: Batch, modules: Shapes) -> Tapped:
    candidate: Any = comparison.candidate
    inputs = comparison.inputs(batch)
    if isinstance(candidate, CanBeTapped):
        with torch.no_grad():
            return candidate.taps(inputs, modules)
    if isinstance(candidate, Runner):
        with torch.no_grad():
            return target_named(candidate.manifest.target).taps(candidate, inputs, modules)
    if not isinstance(candidate, nn.Module):
        return Tapped(
            unavailable=f"a {type(candidate).__name__} shows nothing of its modules: give the gate a module, an "
            "artifact, or an object with a method `taps`"
        )
    model = next((module for module in candidate.modules() if comparison.reference.owns(module)), None)
    if model is None:
        return Tapped(unavailable=f"the candidate, a {type(candidate).__name__}, holds no {comparison.reference.name}")
    kept = Once()
    with listening(comparison.reference.of(model).tower, modules, kept.take):
        outputs = comparison.candidate_of(batch)
    if not kept.values:
        return Tapped(unavailable="the candidate ran without its modules being heard: give the gate what was compiled")
    return Tapped(kept.values, outputs)


def relative_l2(given: Tensor, wanted: Tensor, valid: Tensor | None) -> float:
    """Return the norm of the difference over the norm of the reference, over valid rows; not a number if one is not.

    Args:
        given: the candidate's values.
        wanted: the reference's, in the same shape.
        valid: which rows to compare, to be broadcast to them; None for all.
    """
    given, wanted = _kept(given, valid).double(), _kept(wanted, valid).double()
    difference, whole = float((given - wanted).norm()), float(wanted.norm())
    if difference == 0:
        return 0.0
    return difference / whole if whole > 0 else math.inf


def _peak(value: Tensor, valid: Tensor | None) -> float:
    return float(_kept(value, valid).abs().max()) if value.numel() else 0.0


def _kept(value: Tensor, valid: Tensor | None) -> Tensor:
    """Return the value with zeros in the rows that are not valid."""
    value = value.detach().cpu()
    return value if valid is None else torch.where(valid, value, 0)


def _valid(comparison: Comparison, batch: Batch, value: Tensor) -> Tensor | None:
    """Return which rows of a value to compare, to be broadcast to it; None for all.

    Tokens are on the last axis but one, with or without the prefix tokens, after the batch and perhaps heads.
    """
    for rows in (comparison.valid_rows(batch), batch.patch_valid):
        if value.ndim > 2 and value.shape[0] == len(rows) and value.shape[-2] == rows.shape[1]:
            return rows.reshape(len(rows), *[1] * (value.ndim - 3), -1, 1)
    return None
