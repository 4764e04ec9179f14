"""`first_deviation`: where a candidate first leaves the reference, module by module, on the case that failed.

The reference's modules are heard by hooks while it runs; a candidate shows its own as it can (`taps.py`). Where it
cannot, the reason is in the report instead.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from naflex_export.accuracy.advice import advice_on, advice_without, output_tap
from naflex_export.accuracy.compare import LIMITS, measure
from naflex_export.accuracy.results import BASELINE_FACTOR, CaseResult, GateReport, Location, Tap
from naflex_export.accuracy.sides import Outputs, Sides
from naflex_export.cases import Batch, picked
from naflex_export.grid import Bucket
from naflex_export.taps import CanBeTapped, Once, Tapped, listening, tap_names

FLOAT32_FLOOR = 3e-5
"""Relative L2 error of a module that reordered float32 sums explain.

Base models measure at most 2e-6 in any module and tiny ones 1e-6; the least real fault we know of, a matmul in TF32,
measures 3e-4. So it is ten times above the one and below the other, and well below the gate's limit.
"""

FEW_IMAGES = 2
"""How many images of a case are looked at: enough that one can leak into another, at little memory."""

MOST_TOKENS = 4096
"""In images times tokens: a case of up to this size is looked at as a whole where its worst images alone are right."""


def first_deviation(sides: Sides, report: GateReport, case_of: Callable[[str], tuple[Bucket, Batch]]) -> Location:
    """Return where the candidate first deviates, on the worst case that failed, or on the first where none did.

    Args:
        sides: what was compared.
        report: what came of it.
        case_of: returns the bucket and batch of a case by its name.
    """
    worst = _worst(report)
    if worst is None:
        return Location("", untapped="no case could be compared")
    bucket, batch = case_of(worst.case)
    part = _worst_images(worst, batch, max(FEW_IMAGES, bucket.batch[0]))
    try:
        if worst.broken and not _breaks(sides, part) and batch.patch_valid.numel() <= MOST_TOKENS:
            part = batch  # what fails needs the other images
        return _located(sides, report, part)
    except Exception as error:  # whatever it is, the gate's own verdict stands and must be told
        return Location(worst.case, untapped=f"looking for it raised {type(error).__name__}: {error}")


def _worst(report: GateReport) -> CaseResult | None:
    """Return the failed result with the largest error; the first result where none failed by its measures."""

    def error(result: CaseResult) -> float:
        found = result.measures.relative_l2
        return math.inf if math.isnan(found) else found

    failed = [result for result in report.results if result.broken]
    if not failed and any(baseline.broken for baseline in report.baselines):
        failed = list(report.results)
    return max(failed, key=error) if failed else next(iter(report.results), None)


def _worst_images(result: CaseResult, batch: Batch, count: int) -> Batch:
    """Return the batch with its worst images only, in their order."""
    errors = [math.inf if math.isnan(image.relative_l2) else image.relative_l2 for image in result.per_image]
    worst = sorted(range(len(errors)), key=lambda image: -errors[image])[:count]
    return picked(batch, sorted(worst))


def _breaks(sides: Sides, batch: Batch) -> bool:
    """Whether an output of the candidate is beyond its dtype's limits on a batch."""
    expected, given = sides.reference_of(batch), sides.candidate_of(batch, checked=False)
    limits = LIMITS[_name(sides.dtype)]
    return any(
        name not in given
        or given[name].shape != wanted.shape
        or limits.broken_by(measure(given[name], wanted, sides.valid_rows(batch) if wanted.ndim == 3 else None))
        for name, wanted in expected.items()
    )


def _located(sides: Sides, report: GateReport, batch: Batch) -> Location:
    location = Location(batch.name, images=len(batch.grids))
    reference = _reference(sides, batch)
    found = _candidate(sides, batch, list(reference.values))
    if found.untapped:
        return replace(location, untapped=found.untapped)
    values = {**found.values, **{output_tap(name): value for name, value in found.outputs.items()}}
    floors = _floors(sides, batch, reference)
    highest = torch.finfo(sides.dtype).max
    taps = []
    for name, wanted in reference.values.items():
        if name not in values or values[name].shape != wanted.shape:
            continue
        valid, given = reference.valid[name], values[name].cpu()
        inside = reference.inside.get(name, 0.0)
        peak, wanted_peak = _peak(given, valid), _peak(wanted, valid)
        error = relative_l2(given, wanted, valid)
        taps.append(Tap(name, error, floors[name], peak, wanted_peak, highest, max(inside, wanted_peak)))
    if not taps:
        return replace(location, untapped="no module of the candidate has the shape of the reference's")
    located = replace(location, taps=tuple(taps), instead=found.instead)
    if located.first is not None:
        return replace(located, advice=advice_on(located.first, _name(sides.dtype)))
    if report.passed:
        return located
    breaks = _breaks(sides, batch)
    return replace(located, advice=advice_without(located.taps, _name(sides.dtype), breaks))


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


def _reference(sides: Sides, batch: Batch) -> _Reference:
    tower = sides.family.tower(sides.eager)
    kept, names, peaks = Once(), set(tap_names(tower)), dict[str, float]()

    def take(name: str, value: Tensor) -> None:
        peaks[name] = max(peaks.get(name, 0.0), _peak(value, _valid(sides, batch, value)))
        if name in names:
            kept.take(name, value)

    with listening(tower, [name for name, _ in tower.named_modules() if name], take):
        outputs = sides.reference_of(batch)
    inside = {
        name: max(peak for inner, peak in peaks.items() if inner == name or inner.startswith(f"{name}."))
        for name in kept.values
    }
    values = {**kept.values, **{output_tap(name): value for name, value in outputs.items()}}
    return _Reference(values, {name: _valid(sides, batch, value) for name, value in values.items()}, inside)


def _floors(sides: Sides, batch: Batch, reference: _Reference) -> dict[str, float]:
    """Return what rounding explains of each module's error: in low precision, twice what it does to eager itself."""
    if sides.low is None:
        return dict.fromkeys(reference.values, FLOAT32_FLOOR)
    errors: dict[str, float] = {}

    def take(name: str, value: Tensor) -> None:
        errors[name] = relative_l2(value, reference.values[name], reference.valid[name])

    with listening(sides.family.tower(sides.low), list(reference.values), take):
        outputs = sides.baseline_of(batch)
    for name, value in outputs.items():
        take(output_tap(name), value)
    least = torch.finfo(sides.dtype).eps / 2  # one rounding of a value, which eager may happen to be spared
    limit = LIMITS[_name(sides.dtype)].relative_l2
    floors = {}
    for name in reference.values:
        error = errors.get(name, math.nan)
        # eager itself overflows there: no yardstick, and just what is looked for
        floors[name] = max(BASELINE_FACTOR * error, least) if math.isfinite(error) else limit
    return floors


def _candidate(sides: Sides, batch: Batch, modules: Sequence[str]) -> Tapped:
    candidate: Any = sides.candidate
    inputs = sides.inputs(batch)
    if isinstance(candidate, CanBeTapped):
        with torch.no_grad():
            return candidate.taps(inputs, modules)
    if not isinstance(candidate, nn.Module):
        return Tapped(
            untapped=f"a {type(candidate).__name__} shows nothing of its modules: give the gate a module, an artifact, "
            "or an object with a method `taps`"
        )
    model = next((module for module in candidate.modules() if sides.family.owns(module)), None)
    if model is None:
        return Tapped(untapped=f"the candidate, a {type(candidate).__name__}, holds no {sides.family.name}")
    kept = Once()
    with listening(sides.family.tower(model), modules, kept.take):
        outputs = sides.candidate_of(batch)
    if not kept.values:
        return Tapped(untapped="the candidate ran without its modules being heard: give the gate what was compiled")
    return Tapped(kept.values, outputs)


def relative_l2(given: Tensor, wanted: Tensor, valid: Tensor | None) -> float:
    """Return the norm of the difference over the norm of the reference, over valid rows; not a number if one is not."""
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


def _valid(sides: Sides, batch: Batch, value: Tensor) -> Tensor | None:
    """Return which rows of a value to compare, to be broadcast to it; None for all.

    Tokens are on the last axis but one, with or without the prefix tokens, after the batch and perhaps heads.
    """
    for rows in (sides.valid_rows(batch), batch.patch_valid):
        if value.ndim > 2 and value.shape[0] == len(rows) and value.shape[-2] == rows.shape[1]:
            return rows.reshape(len(rows), *[1] * (value.ndim - 3), -1, 1)
    return None


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
