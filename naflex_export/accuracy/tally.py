"""`Tally`: compares reference and candidate batch by batch, and adds up what is wanted over all of them."""

from __future__ import annotations

import math
import tempfile
from collections import defaultdict
from collections.abc import Sequence

import torch
from torch import Tensor

from naflex_export.accuracy.comparison import Comparison
from naflex_export.accuracy.metrics import DECADES, measure_images, spread_of, why_uninformative
from naflex_export.accuracy.results import BaselineResult, CaseResult, Distribution, GateReport
from naflex_export.accuracy.sampling import Sizes
from naflex_export.batch import Batch
from naflex_export.errors import RequestError, tells_of_a_full_disk
from naflex_export.grid import Bucket, Grid
from naflex_export.models.encoder_adapter import Outputs

NARROWLY = 2.0
"""How many times a limit of low precision a case may exceed for eager to be asked again, on moved inputs."""


class Tally:
    """Compares reference and candidate batch by batch, and adds up what is wanted over all of them.

    Attributes:
        dtype: of the candidate, or what its layers are quantized to, in words.
        limits: the worst measures that pass.
        comparison: what is compared.
        problems: what could not be compared, a line each.
        longest: the batch of most tokens, of several the one of fewest images, and what the candidate answered.
    """

    def __init__(self, comparison: Comparison) -> None:
        self.dtype, self.limits, self.comparison = comparison.precision.name, comparison.limits, comparison
        self.problems: list[str] = []
        self.longest: tuple[Batch, Outputs] | None = None
        self._dtypes: dict[str, str] = {}
        self._results: list[CaseResult] = []
        self._spreads: dict[tuple[str, str], list[Tensor]] = defaultdict(list)

    def add(self, bucket: Bucket, batch: Batch) -> None:
        """Run reference, candidate and baseline on a batch and compare each output."""
        expected, floor = self.comparison.eager_of(batch)
        given = self._answer(batch, checked=True)
        if given is None:
            return
        for name, wanted in expected.items():
            valid = self.comparison.valid_in(batch, wanted)
            if fault := _fault(batch, given.get(name), wanted, valid):
                self.problems.append(f"{batch.name} [{name}]: {fault}")
                continue
            result = self._compare(bucket, batch, name, (given[name], wanted, floor.get(name)), valid)
            self._spreads[name, "candidate"].append(spread_of(given[name], wanted, valid))
            if result.baseline is not None:
                self._spreads[name, "baseline"].append(spread_of(floor[name], wanted, valid))
            self._results.append(result)

    def add_if_wrong(self, bucket: Bucket, batch: Batch, expected: Outputs, checked: bool = True) -> Outputs | None:
        """Compare each output of a batch, and add those to the results that exceed a limit.

        Eager in the candidate's dtype is run only where a limit might give way to it.

        Args:
            bucket: that the batch is of.
            batch: to run the candidate on.
            expected: what the reference gives for it.
            checked: with a Runner's checks of what it is given.

        Returns:
            what the candidate answered; None where it raised.
        """
        given = self._answer(batch, checked)
        if given is None:
            return None
        floor: Outputs | None = None
        for name, wanted in expected.items():
            valid = self.comparison.valid_in(batch, wanted)
            shape = None if name not in given else given[name].shape
            if shape != wanted.shape:
                self.problems.append(f"{batch.name} [{name}]: {_fault(batch, given.get(name), wanted, valid)}")
                continue
            if why_uninformative(wanted, valid):
                continue  # of such outputs the cases say enough
            result = self._compare(bucket, batch, name, (given[name], wanted, None), valid)
            if result.exceeded and self.comparison.precision.is_low:
                floor = floor or self.comparison.baseline_of(batch)
                result = self._compare(bucket, batch, name, (given[name], wanted, floor[name]), valid)
            if result.exceeded:
                self._results.append(result)
        return given

    def sizes_of(self, bucket: Bucket) -> list[Sizes]:
        """Return the sizes of the batches that are among the results of a bucket."""
        cases = {found.case: found for found in self._results if found.bucket == str(bucket)}
        return [Sizes(tuple(map(_grid, found.grids)), found.tokens) for found in cases.values()]

    def _answer(self, batch: Batch, checked: bool) -> Outputs | None:
        """Return what the candidate answers, or None where it raises; a dtype that is not asked for is a problem."""
        try:
            given = self.comparison.candidate_of(batch, checked)
        except Exception as error:  # whatever it raises on a batch that it is to serve, it has failed
            if tells_of_a_full_disk(error):  # of no candidate's making
                raise RequestError(
                    f"the candidate cannot be run on {batch.name}: a disk is full, that of temporary files "
                    f"({tempfile.gettempdir()}) or of torch's compiled code; make room, or set TMPDIR"
                ) from error
            self.problems.append(f"{batch.name}: the candidate raised {type(error).__name__}: {error}")
            return None
        if self.longest is None or _length(batch) > _length(self.longest[0]):
            self.longest = batch, given
        asked, expected = self.comparison.precision.torch_dtype, self.comparison.precision.dtype
        for name in self.comparison.outputs:
            if name in given and given[name].dtype != asked:
                said = str(given[name].dtype).removeprefix("torch.")
                self._dtypes.setdefault(
                    name, f"{batch.name} [{name}]: the candidate's dtype is {said}, expected {expected}"
                )
        return given

    def report(self) -> GateReport:
        """Return what was found so far."""
        return GateReport(
            dtype=self.dtype,
            keep_float32=self.comparison.precision.keep_float32,
            keep_unquantized=self.comparison.precision.keep_unquantized,
            limits=self.limits,
            results=tuple(self._results),
            problems=(*self.problems, *self._dtypes.values()),
            baselines=self._against_baseline(),
            distributions=tuple(
                Distribution(name, side, self.dtype, tuple(DECADES), tuple(torch.stack(counts).sum(dim=0).tolist()))
                for (name, side), counts in self._spreads.items()
            ),
        )

    def _compare(
        self,
        bucket: Bucket,
        batch: Batch,
        output: str,
        values: tuple[Tensor, Tensor, Tensor | None],
        valid: Tensor | None,
    ) -> CaseResult:
        """Return how the candidate's output compares with the reference's, beside the baseline's if there is one."""
        given, wanted, floor = values
        measures, baseline, limits = self.comparison.compared(batch, output, given, wanted, floor)
        if floor is not None and limits.exceeded_by(measures) and not limits.times(NARROWLY).exceeded_by(measures):
            for moved in self.comparison.moved_baselines_of(batch):
                again, _, wider = self.comparison.compared(batch, output, given, wanted, moved[output])
                if not wider.exceeded_by(again):
                    measures, limits = again, wider
                    break
        images, tokens = batch.patch_valid.shape
        return CaseResult(
            case=batch.name,
            output=output,
            bucket=str(bucket),
            images=images,
            tokens=tokens,
            grids=tuple(str(grid) for grid in batch.grids),
            measures=measures,
            per_image=measure_images(given, wanted, batch.grids, valid),
            exceeded=tuple(limits.exceeded_by(measures)),
            baseline=baseline,
        )

    def _against_baseline(self) -> tuple[BaselineResult, ...]:
        pairs: dict[str, list[tuple[float, float]]] = defaultdict(list)
        for result in self._results:
            if result.baseline is not None:
                pairs[result.output].append((result.measures.relative_l2, result.baseline.relative_l2))
        return tuple(
            BaselineResult(
                output,
                candidate=_root_mean_square([candidate for candidate, _ in found]),
                baseline=_root_mean_square([baseline for _, baseline in found]),
                limit=self.limits.relative_l2,
            )
            for output, found in pairs.items()
        )


def _length(batch: Batch) -> tuple[int, int]:
    images, tokens = batch.patch_valid.shape
    return tokens, -images


def _root_mean_square(values: Sequence[float]) -> float:
    return math.sqrt(sum(value * value for value in values) / len(values))


def _fault(batch: Batch, given: Tensor | None, expected: Tensor, valid: Tensor | None) -> str:
    """Return why two outputs cannot be compared at all, empty where they can."""
    if given is None:
        return "the candidate has no such output"
    if given.shape != expected.shape:
        return f"the candidate's shape is {list(given.shape)}, the reference's {list(expected.shape)}"
    images_differ = bool((batch.patches != batch.patches[:1]).any())
    nothing = why_uninformative(expected, valid, images_differ)
    return f"the reference's output proves nothing: {nothing}" if nothing else ""


def _grid(text: str) -> Grid:
    height, width = map(int, text.split("x"))
    return Grid(height, width)
