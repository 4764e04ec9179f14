"""`survey`: what the cases leave open: all the sizes that are served, and how a candidate behaves when it is called.

A candidate that is wrong for a batch of 16, at 128 tokens, for one shape of grid, the second time that an input comes,
after twenty calls or from two threads at once is right in every case. So many small batches are spread over the sizes
(`sampling`), each cheap one is given twice, and the candidate is asked again after all of them. A candidate that has
failed already is not asked: what it does besides would say nothing of use.
"""

from __future__ import annotations

import functools
import math
import sys
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from naflex_export.accuracy.cases import generated_batch, survey_names
from naflex_export.accuracy.comparison import Comparison
from naflex_export.accuracy.efforts import EFFORTS, HOLES, CaseSelection
from naflex_export.accuracy.invariances import Invariance, check_invariances
from naflex_export.accuracy.results import CellCount, Survey
from naflex_export.accuracy.sampling import Sizes, cells_of, covered_by
from naflex_export.accuracy.tally import Tally
from naflex_export.batch import Batch, noise_batch, picked
from naflex_export.grid import Bucket, Grid
from naflex_export.models.encoder_adapter import Outputs
from naflex_export.serving.runner import Runner

CHEAP = 64
"""In images times tokens: batches of up to this size are asked about again, after all others and from threads."""

ALL_TWICE, SOME_TWICE = 16, 128
"""In images times tokens: batches of up to the first are given twice, and of each doubling above it the smallest."""

CALLS = 101
"""Of the candidate, one after the other, at least: what goes wrong every hundredth time has then gone wrong once."""

THREADS, CALLS_OF_A_THREAD = 4, 5

LARGE = 2e4
"""Of values in padding; float16 holds up to 65504."""

HUGE = 1e30
"""Of values in padding whose squares float32 does not hold."""


def survey(
    tally: Tally, buckets: Sequence[Bucket], cases: CaseSelection, passed: bool, announce: Callable[[str], None]
) -> Survey | None:
    """Return what was found beside the cases, and add the batches that failed to the tally.

    Args:
        tally: of the cases, which are covered already.
        buckets: that the candidate serves.
        cases: which were asked for; its effort says how much is looked at.
        passed: whether the candidate has passed so far.
        announce: given what is being looked at.
    """
    if cases.only or not EFFORTS[cases.effort].sampled:
        return None
    if not passed:
        return Survey(fresh_seed=cases.fresh_seed, not_done="the candidate failed before all sizes were looked at")
    surveyor, comparison = _Surveyor(tally, announce), tally.comparison
    for bucket in buckets:
        names = survey_names(bucket, cases)
        names = names if comparison.input_format.masks else [one for one in names if not is_of_holes(one)]
        made = (generated_batch(name, bucket, comparison.reference.token_width) for name in names)
        surveyor.compare(bucket, [comparison.filled(batch) for batch in made])
    announce("survey: the same inputs again, padding, threads")
    surveyor.behave(buckets[-1], cases.seed)
    return Survey(
        batches=surveyor.batches,
        calls=comparison.calls,
        fresh_seed=cases.fresh_seed,
        cells=tuple(cell for bucket in buckets for cell in _cells(tally, bucket, surveyor.sizes[bucket])),
        behaviours=tuple(surveyor.behaviours),
    )


class _Surveyor:
    """Goes through batches, and keeps what is wanted of them."""

    def __init__(self, tally: Tally, announce: Callable[[str], None]) -> None:
        self.tally, self.comparison = tally, tally.comparison
        self.announce = announce
        self.batches = 0
        self.sizes: dict[Bucket, list[Sizes]] = {}
        self.behaviours: list[Invariance] = []
        self._again = _Worst("the same input again", tally.limits.relative_l2)
        self._small: list[tuple[Batch, Outputs]] = []

    def compare(self, bucket: Bucket, batches: Sequence[Batch]) -> None:
        """Compare batches with the reference, and some with what the candidate says of them a second time."""
        self.batches += len(batches)
        self.sizes[bucket] = [Sizes(batch.grids, batch.patch_valid.shape[1]) for batch in batches]
        twice = _twice(batches)
        self.announce(f"survey: eager's answers to {len(batches)} batches in {bucket}")
        pairs = zip(batches, self.comparison.references_of(batches), strict=True)
        for count, (batch, expected) in enumerate(pairs, 1):
            self.announce(f"survey: batch {count} of {len(batches)} in {bucket}")
            checked = not is_of_holes(batch.name)  # no loader makes such a mask, and a Runner refuses it
            given = self.tally.add_if_wrong(bucket, batch, expected, checked=checked)
            if given is None or not checked:
                continue
            if batch.patch_valid.numel() <= CHEAP:
                self._small.append((batch, given))
            if batch.name in twice:
                self._ask_again(self._again, batch, given)

    def behave(self, bucket: Bucket, seed: int) -> None:
        """Ask what no comparison shows, in one bucket."""
        floor, width = self.tally.limits.relative_l2, self.comparison.reference.token_width
        self.behaviours.append(self._again.found)
        self.behaviours += self._padding(bucket, seed)
        if bucket.batch[2] > 1:
            self.behaviours.append(self._leakage(bucket, seed))
        if "tokens" in self.comparison.outputs and self.comparison.input_format.masks:
            run = self.comparison.unchecked("tokens")
            told = check_invariances(run, bucket, width, floor, seed, output="tokens")
            self.behaviours += [replace(found, name=f"{found.name} [tokens]") for found in told]
        last = _Worst("the first inputs again, last", floor)
        longest = self.tally.longest  # one batch of many tokens: what wears off there shows in it as in all
        cheapest = sorted(self._small, key=lambda one: one[0].patch_valid.numel())[:3]
        while cheapest and self.comparison.calls < CALLS and not last.found.failure:
            self._ask_again(last, *cheapest[self.comparison.calls % len(cheapest)])
        for batch, given in [*self._small[:1], *([longest] if longest else [])]:
            self._ask_again(last, batch, given)
        self.behaviours.append(last.found)
        self.behaviours.append(self._threads(bucket))  # behind all that counts calls: a count may be off in threads

    def _ask_again(self, worst: _Worst, batch: Batch, before: Outputs) -> None:
        try:
            worst.add(batch.name, self._apart(batch, before, self.comparison.candidate_of(batch)))
        except Exception as error:  # it has answered the same before
            worst.raised(batch.name, error)

    def _padding(self, bucket: Bucket, seed: int) -> list[Invariance]:
        """Fill padding with what it may hold: anything in a Runner; a plain callable may also say that it is no number.

        In eager a NaN in padding spreads, and in float16 a large value does: that is loud, and the candidate's right.
        """
        side = math.isqrt(min(bucket.tokens // 2, 9))
        if not side or bucket.tokens < 2:
            return []
        count = max(bucket.batch[0], min(2, bucket.batch[2]))
        grids = [Grid(side, side), Grid(1, side)] * count
        width = self.comparison.reference.token_width
        batch = noise_batch(f"padding-seed{seed}", grids[:count], min(bucket.tokens, 2 * side * side + 1), width)
        is_padding = ~batch.patch_valid.unsqueeze(-1)
        noise = torch.randn(batch.patches.shape, generator=torch.Generator().manual_seed(seed)).clamp(-3, 3)
        before, found = functools.cache(lambda: self.comparison.candidate_of(batch)), []
        is_second = (torch.arange(batch.patches.shape[1]) % 2 == 0).unsqueeze(-1)
        for content, values in (
            ("what images hold", torch.where(is_second, -1.0, noise / 3)),
            ("large values", LARGE * noise),
            ("huge values", HUGE * noise),
            ("infinity", torch.full_like(noise, math.inf)),
            ("NaN", torch.full_like(noise, math.nan)),
        ):
            worst = _Worst(f"{content} in padding", self.tally.limits.relative_l2)
            filled = replace(batch, patches=torch.where(is_padding, values, batch.patches))
            try:
                plain, after = before(), self.comparison.candidate_of(filled)
                loud = not isinstance(self.comparison.candidate, Runner) and not _is_finite(batch, after)
                worst.add(batch.name, 0.0 if loud else self._apart(batch, plain, after))
            except Exception as error:  # whatever it raises on a batch that it is to serve, it has failed
                worst.raised(batch.name, error)
            found.append(worst.found)
        return found

    def _leakage(self, bucket: Bucket, seed: int) -> Invariance:
        """Change all images but the first, by much, and look at the first."""
        worst = _Worst("the content of other images", self.tally.limits.relative_l2)
        side = math.isqrt(min(bucket.tokens, 16))
        count = min(bucket.batch[2], max(bucket.batch[0], 3))
        width = self.comparison.reference.token_width
        batch = noise_batch(f"leakage-seed{seed}", [Grid(side, side)] * count, side * side, width)
        others = torch.cat([batch.patches[:1], 30 * batch.patches[1:].flip(1)])
        try:
            before, after = (
                {name: out[:1] for name, out in self.comparison.candidate_of(one).items()}
                for one in (batch, replace(batch, patches=others))
            )
            worst.add(batch.name, self._apart(picked(batch, [0]), before, after))
        except Exception as error:  # whatever it raises on a batch that it is to serve, it has failed
            worst.raised(batch.name, error)
        return worst.found

    def _threads(self, bucket: Bucket) -> Invariance:
        """Call from several threads at once, each with inputs of its own, and compare with what was said alone."""
        worst = _Worst(f"calls from {THREADS} threads at once", self.tally.limits.relative_l2)
        pairs = self._pairs()
        if not pairs:
            return worst.found
        start, lock = threading.Barrier(THREADS), threading.Lock()

        def call(number: int) -> None:
            start.wait()
            for turn in range(CALLS_OF_A_THREAD):
                batch, before = pairs[(number // 2 + turn * THREADS // 2) % len(pairs)][number % 2]
                try:
                    apart = self._apart(batch, before, self.comparison.candidate_of(batch))
                except Exception as error:  # it has answered the same before
                    with lock:
                        worst.raised(batch.name, error)
                    return
                with lock:
                    worst.add(batch.name, apart)

        switching = sys.getswitchinterval()
        threads = [threading.Thread(target=call, args=(number,)) for number in range(THREADS)]
        try:
            sys.setswitchinterval(1e-5)  # so that they meet within a call, and not only between two
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        finally:
            sys.setswitchinterval(switching)
        return worst.found

    def _pairs(self) -> list[tuple[tuple[Batch, Outputs], tuple[Batch, Outputs]]]:
        """Return small batches by twos of one shape, for threads to meet: one, and it with its images turned round."""
        small = sorted(self._small, key=lambda one: one[0].patch_valid.numel())
        turned = [
            (picked(batch, range(len(batch.grids) - 1, -1, -1)), {name: out.flip(0) for name, out in given.items()})
            for batch, given in small
        ]
        pairs = [pair for pair in zip(small, turned, strict=True) if len(pair[0][0].grids) > 1]
        return (pairs or list(zip(small, [*small[1:], *small[:1]], strict=True)))[:THREADS]

    def _apart(self, batch: Batch, before: Outputs, after: Outputs) -> float:
        """Return how far two answers to a batch are apart: the worst image of any output."""
        found = [0.0]
        for name in self.comparison.outputs:
            one, other = (_rows(batch, answer[name], self.comparison) for answer in (before, after))
            if one.shape != other.shape:
                return math.inf
            found += ((other - one).norm(dim=1) / one.norm(dim=1).clamp(min=1e-30)).tolist()
        return math.nan if any(map(math.isnan, found)) else max(found)


def _twice(batches: Sequence[Batch]) -> set[str]:
    """Return the names of the batches that are given twice: the smallest, and one of each doubling above those."""
    sizes = {batch.name: batch.patch_valid.numel() for batch in batches if not is_of_holes(batch.name)}
    found = {name for name, size in sizes.items() if size <= ALL_TWICE}
    least = ALL_TWICE
    while least < SOME_TWICE:
        within = [name for name, size in sizes.items() if least < size <= 2 * least]
        found |= set(sorted(within, key=sizes.__getitem__)[:1])
        least *= 2
    return found


def is_of_holes(name: str) -> bool:
    """Whether a batch of this name has tokens masked amid its images."""
    return name.startswith(HOLES)


class _Worst:
    """The worst of several answers to one question."""

    def __init__(self, name: str, floor: float) -> None:
        self._floor, self.found = floor, Invariance(name, 0.0, "")

    def add(self, batch: str, moved: float) -> None:
        """Add by how much one answer moved where none should."""
        if self.found.failure or moved <= self.found.moved:
            return
        name = self.found.name
        failure = "" if moved <= self._floor else f"{name} moved the outputs of {batch} by {moved:.1e}: expected none"
        self.found = Invariance(name, moved, failure)

    def raised(self, batch: str, error: Exception) -> None:
        """Add that the candidate raised in place of an answer."""
        name = self.found.name
        said = f"{name}: the candidate raised {type(error).__name__} on {batch}: {error}"
        self.found = Invariance(name, math.nan, said)


def _is_finite(batch: Batch, answer: Outputs) -> bool:
    return all(bool(out.isfinite().all()) for out in answer.values() if out.ndim == 2) and all(
        bool(out.isfinite().any()) for out in answer.values()
    )


def _rows(batch: Batch, output: Tensor, comparison: Comparison) -> Tensor:
    """Return an output's values in float64, a row for each image, zero where they are padding's."""
    values = output.detach().cpu().double()
    valid = comparison.valid_in(batch, values)
    if valid is not None and valid.shape == values.shape[:2]:
        values = values.where(valid.unsqueeze(-1), 0)
    return values.flatten(1)


def _cells(tally: Tally, bucket: Bucket, sampled: Sequence[Sizes]) -> tuple[CellCount, ...]:
    """Return how many batches lay in each of a bucket's cells, its cases and those that were sampled."""
    sizes = [*tally.sizes_of(bucket), *sampled]
    counts = Counter(cell for one in sizes for cell in covered_by(bucket, [one]))
    return tuple(CellCount(str(bucket), cell.axes, cell.strata, counts[cell]) for cell in cells_of(bucket))
