"""`gate`: run a candidate and the untouched eager reference on the same batches, and judge.

The reference is the caller's own model in float32. It never passes through `vectorize`, and a vectorized one is
refused: a fault of ours must not stand on both sides of the comparison.

In low precision there is a second yardstick, the baseline: the same eager model in the candidate's dtype. Its own error
is the noise floor, and a candidate may be at most twice as far from the reference (flash-attention's rule).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from naflex_export.accuracy.compare import LIMITS, Limits, Measures, measure, says_nothing
from naflex_export.accuracy.invariances import Invariance, Run, check_invariances
from naflex_export.accuracy.reference import SoundInterpolate
from naflex_export.cases import Batch, Photos, generated_batches, load_photos, photo_batches
from naflex_export.entry_points import EntryPoints
from naflex_export.errors import GateFailure, RequestError
from naflex_export.grid import Bucket, check_buckets
from naflex_export.models import Family, family_of
from naflex_export.program import check_dtype
from naflex_export.targets.runner import Runner

Candidate = Callable[..., Any]

BASELINE_FACTOR = 2.0
"""How many times eager's own error in a low precision a candidate's may be."""


@dataclass(frozen=True)
class GateSettings:
    """What a candidate serves, and the seed of the generated batches to judge it on."""

    buckets: tuple[Bucket, ...]
    dtype: str
    outputs: tuple[str, ...]
    seed: int
    patch_size: int | None = None
    """The reference resamples its patch projection to this size by itself; None for patches of its own size."""


@dataclass(frozen=True)
class CaseResult:
    """One output of one batch: its shape, how far the candidate is, and what exceeds the limits."""

    case: str
    output: str
    bucket: str
    images: int
    tokens: int
    grids: tuple[str, ...]
    measures: Measures
    broken: tuple[str, ...]


@dataclass(frozen=True)
class BaselineResult:
    """How a candidate's error compares with that of eager in the candidate's dtype, for one output over all cases.

    Attributes:
        output: its name.
        candidate: root mean square over the cases of its relative L2 error against the float32 reference.
        baseline: the same of eager in the candidate's dtype.
    """

    output: str
    candidate: float
    baseline: float

    @property
    def broken(self) -> str:
        """Return what is wrong, empty where nothing is."""
        if not math.isfinite(self.baseline):
            return "eager itself is not finite in this dtype: keep the model in float32, or try bfloat16"
        if not self.candidate <= BASELINE_FACTOR * self.baseline:
            return f"error {self.candidate:.2g} is more than {BASELINE_FACTOR:g} times eager's own {self.baseline:.2g}"
        return ""


@dataclass(frozen=True)
class GateReport:
    """What the gate found.

    Attributes:
        dtype: of the candidate; it chose the limits.
        limits: the worst measures that pass.
        results: one for each output of each batch.
        problems: what is wrong beyond the measures, such as a reference that proves nothing.
        invariances: what moved the candidate's own features, and whether it should.
        baselines: in low precision, one for each output: the error beside eager's own in that dtype.
        seed: of the generated batches; with a case's name it says which batch that was.
        judged: what ran as the candidate.
        not_run: what was built and could not be run here; empty where the artifact itself was judged.
        skipped_photos: why each file among the photos was left out.
    """

    dtype: str
    limits: Limits
    results: tuple[CaseResult, ...]
    problems: tuple[str, ...] = ()
    invariances: tuple[Invariance, ...] = ()
    baselines: tuple[BaselineResult, ...] = ()
    seed: int = 0
    judged: str = "the candidate"
    not_run: str = ""
    skipped_photos: dict[str, str] = field(default_factory=dict)

    @property
    def passed(self) -> bool:
        """Whether there is something to compare, no problem, and every measure is within its limit."""
        return bool(self.results) and not self.failures

    @property
    def worst(self) -> dict[str, float | None]:
        """The worst of each measure over all cases; a measure that is not a number is the worst there is."""
        measures = [result.measures for result in self.results]
        agreements = [m.top1_agreement for m in measures if m.top1_agreement is not None]
        return {
            "max_abs": _worst((m.max_abs for m in measures), max),
            "max_share": _worst((m.max_share for m in measures), max),
            "relative_l2": _worst((m.relative_l2 for m in measures), max),
            "worst_cosine": _worst((m.worst_cosine for m in measures), min),
            "top1_agreement": _worst(agreements, min) if agreements else None,
        }

    @property
    def failures(self) -> list[str]:
        """What failed, a line for each, in words."""
        lines = list(self.problems)
        lines += [f"{r.case} [{r.output}]: {', '.join(r.broken)}" for r in self.results if r.broken]
        lines += [f"all cases [{r.output}]: {r.broken}" for r in self.baselines if r.broken]
        lines += [f"invariance: {r.broken}" for r in self.invariances if r.broken]
        return lines

    def raise_for_failure(self) -> None:
        """Raise GateFailure, naming what failed, unless the gate passed."""
        if not self.passed:
            raise GateFailure("the gate failed:\n  " + "\n  ".join(self.failures or ["nothing was compared"]))

    def to_json(self) -> dict[str, Any]:
        """Return the report as plain JSON values; numbers that JSON lacks are written as text."""
        report = asdict(self)
        return {"passed": self.passed, "worst": _plain(self.worst), **_plain(report)}


def gate(
    candidate: Candidate,
    reference: nn.Module,
    *,
    images: Path | str | None = None,
    buckets: Sequence[Bucket] | None = None,
    dtype: str | None = None,
    outputs: Sequence[str] = ("features",),
    seed: int = 0,
    patch_size: int | None = None,
) -> GateReport:
    """Return how a candidate compares with the untouched eager model, on photos and on generated batches.

    Args:
        candidate: a Runner, or any callable of the model's three inputs that returns what the model does, a tensor, or
            a dict of tensors by output name. Its patches come in `dtype`.
        reference: the original model, in any dtype and mode; a float32 copy in eval mode is used.
        images: a folder of photos; by default the three that ship with the package.
        buckets: what the candidate serves; a Runner's manifest says so itself, and so for the next two.
        dtype: of the candidate; it chooses the limits.
        outputs: names of its outputs, in order.
        seed: of the generated batches.
        patch_size: of the candidate's patches, where it is not the reference's own; a Runner's manifest says so itself,
            and an artifact of several sizes is judged at each.

    Raises:
        RequestError: the reference is vectorized, or an argument is not possible.
    """
    if isinstance(candidate, EntryPoints):
        return merged(
            {
                size: gate(runner, reference, images=images, buckets=buckets, dtype=dtype, seed=seed)
                for size, runner in candidate.runners.items()
            }
        )
    if isinstance(candidate, Runner):
        manifest = candidate.manifest
        buckets, dtype = buckets or manifest.buckets, dtype or manifest.dtype
        outputs = candidate.output_names
        patch_size = patch_size if patch_size is not None else manifest.model.get("patch_size")
    chosen = check_buckets(buckets or [Bucket()])
    photos = load_photos(Path(images) if images is not None else None)
    settings = GateSettings(chosen, dtype or "float32", tuple(outputs), seed, patch_size)
    return judge(candidate, reference, photos, settings)


def judge(candidate: Candidate, reference: nn.Module, photos: Photos, settings: GateSettings) -> GateReport:
    """Return the report of `gate`, for photos already read and settings already chosen."""
    family, outputs = family_of(reference, settings.patch_size), settings.outputs
    limits = LIMITS[settings.dtype]
    torch_dtype = check_dtype(settings.dtype)
    eager = float32_reference(reference)
    encoder, baseline = family.encoder(eager, outputs), baseline_of(family, eager, settings)
    results, problems, invariances = [], [], []
    floors: dict[str, list[float]] = {name: [] for name in outputs}
    for bucket, batch in batches(family, eager, photos, settings):
        inputs = family.layout.arrange(batch)
        with torch.no_grad(), SoundInterpolate():
            expected = dict(zip(outputs, encoder(*inputs), strict=True))
        cast = tuple(tensor.to(torch_dtype) if tensor.is_floating_point() else tensor for tensor in inputs)
        with torch.no_grad():
            given = _named(family.unpack(candidate(*cast)), outputs)
        with torch.no_grad(), SoundInterpolate():
            floor = {} if baseline is None else dict(zip(outputs, baseline(*cast), strict=True))
        for name in outputs:
            valid = _valid_tokens(family, eager, batch) if expected[name].ndim == 3 else None
            fault = _fault(batch, given.get(name), expected[name], valid)
            if fault:
                problems.append(f"{batch.name} [{name}]: {fault}")
                continue
            logits = name == "features" and family.num_classes(eager) > 1
            found = measure(given[name], expected[name], valid, tie=limits.relative_l2 if logits else None)
            results.append(_result(batch, bucket, name, found, limits))
            if floor:
                floors[name].append(measure(floor[name], expected[name], valid).relative_l2)
    if "features" in outputs and not problems:
        for bucket in settings.buckets:
            run = _features(candidate, family, settings)
            width = family.token_width(eager)
            invariances += check_invariances(run, bucket, width, limits.relative_l2, settings.seed)
    return GateReport(
        dtype=settings.dtype,
        limits=limits,
        results=tuple(results),
        problems=tuple(problems),
        invariances=tuple(invariances),
        baselines=tuple(_against_baseline(name, results, floor) for name, floor in floors.items() if floor),
        seed=settings.seed,
        skipped_photos=dict(photos.skipped),
    )


def baseline_of(family: Family, eager: nn.Module, settings: GateSettings) -> nn.Module | None:
    """Return the eager encoder in the candidate's dtype, None for float32, whose floor the limits know."""
    if settings.dtype == "float32":
        return None
    return family.encoder(copy.deepcopy(eager).to(check_dtype(settings.dtype)), settings.outputs)


def _features(candidate: Candidate, family: Family, settings: GateSettings) -> Run:
    """Return the candidate's features of a batch, past a Runner's checks of values."""
    dtype = check_dtype(settings.dtype)

    def run(batch: Batch) -> Tensor:
        inputs = tuple(t.to(dtype) if t.is_floating_point() else t for t in family.layout.arrange(batch))
        with torch.no_grad():
            if isinstance(candidate, Runner):
                given: Any = candidate.execute(tuple(tensor.to(candidate.device) for tensor in inputs))
                return dict(zip(settings.outputs, given, strict=True))["features"]
            return _named(family.unpack(candidate(*inputs)), settings.outputs)["features"]

    return run


def _against_baseline(output: str, results: list[CaseResult], floor: list[float]) -> BaselineResult:
    errors = [result.measures.relative_l2 for result in results if result.output == output]
    return BaselineResult(output, _root_mean_square(errors), _root_mean_square(floor))


def _root_mean_square(values: list[float]) -> float:
    return math.sqrt(sum(value * value for value in values) / len(values))


def merged(reports: Mapping[int, GateReport]) -> GateReport:
    """Return the reports of several patch sizes as one, its cases named after their sizes; passed if all have."""
    first = next(iter(reports.values()))
    results = [(f"patch{size}/", result) for size, report in reports.items() for result in report.results]
    problems = [f"patch{size}/{problem}" for size, report in reports.items() for problem in report.problems]
    return replace(
        first,
        results=tuple(replace(result, case=prefix + result.case) for prefix, result in results),
        problems=tuple(problems),
        invariances=tuple(
            replace(found, name=f"patch{size}/{found.name}")
            for size, report in reports.items()
            for found in report.invariances
        ),
        baselines=tuple(
            replace(found, output=f"patch{size}/{found.output}")
            for size, report in reports.items()
            for found in report.baselines
        ),
    )


def batches(family: Family, model: nn.Module, photos: Photos, settings: GateSettings) -> Iterator[tuple[Bucket, Batch]]:
    """Yield every batch the gate judges on, bucket by bucket."""
    for bucket in settings.buckets:
        made: Iterable[Batch] = photo_batches(photos, family.transform(model, bucket.tokens), bucket)
        yield from ((bucket, batch) for batch in made)
        made = generated_batches(bucket, family.token_width(model), settings.seed)
        yield from ((bucket, batch) for batch in made)


def float32_reference(model: nn.Module) -> nn.Module:
    """Return the model itself if it is in float32 and eval mode on a CPU, else such a copy of it.

    Raises:
        RequestError: it is vectorized, so it would be no reference.
    """
    if family_of(model).is_vectorized(model):
        raise RequestError("the reference is a vectorized model: pass the original, which nothing of ours has touched")
    state = [*model.parameters(), *model.buffers()]
    fit = all(t.device.type == "cpu" and (t.dtype == torch.float32 or not t.is_floating_point()) for t in state)
    if fit and not any(module.training for module in model.modules()):
        return model
    return copy.deepcopy(model).to("cpu", torch.float32).eval()


def _result(batch: Batch, bucket: Bucket, output: str, found: Measures, limits: Limits) -> CaseResult:
    images, tokens = batch.patch_valid.shape
    grids = tuple(str(grid) for grid in batch.grids)
    broken = tuple(limits.broken_by(found))
    return CaseResult(batch.name, output, str(bucket), images, tokens, grids, found, broken)


def _named(given: Any, outputs: tuple[str, ...]) -> dict[str, Tensor]:
    return dict(given) if isinstance(given, dict) else {outputs[0]: given}


def _fault(batch: Batch, given: Tensor | None, expected: Tensor, valid: Tensor | None) -> str:
    """Return why two outputs cannot be compared at all, empty where they can."""
    if given is None:
        return "the candidate has no such output"
    if given.shape != expected.shape:
        return f"the candidate's shape is {list(given.shape)}, the reference's {list(expected.shape)}"
    images_differ = bool((batch.patches != batch.patches[:1]).any())
    nothing = says_nothing(expected, valid, images_differ)
    return f"the reference's output proves nothing: {nothing}" if nothing else ""


def _valid_tokens(family: Family, model: nn.Module, batch: Batch) -> Tensor:
    """Return [B, prefix + N] bool: prefix tokens are always valid."""
    prefix = batch.patch_valid.new_ones(len(batch.patch_valid), family.num_prefix_tokens(model))
    return torch.cat([prefix, batch.patch_valid], dim=1)


def _worst(values: Iterable[float], choose: Callable[[list[float]], float]) -> float | None:
    found = list(values)
    unordered = [value for value in found if math.isnan(value)]
    return unordered[0] if unordered else choose(found) if found else None


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not (abs(value) <= 1e300):
        return str(value)
    return value
