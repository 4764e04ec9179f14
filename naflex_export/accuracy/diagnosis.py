"""`diagnose`: which typical fault wrong answers have, by what a model with each of the faults answers."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from naflex_export.accuracy.faults import ROUNDING

Array = NDArray[Any]
Features = Mapping[str, Array]
"""[images, features] by case."""

MATCHES = 0.2
"""How near to a fingerprint answers must be, as a share of how far they are from what is right, to have that fault."""

ALIKE = 0.6
"""The least correlation of two errors that come from rounding the same values in other sums."""

HARDLY_ALIKE = 0.3
"""The least correlation with which an error of the size of rounding is taken for it: other faults have up to 0.2."""

SOME = 0.8
"""Below this share of what is wrong left over, the nearest fault that does not match is named as near."""


@dataclass(frozen=True)
class Diagnosis:
    """Which typical fault wrong answers have.

    Attributes:
        fault: its name; empty where none matches.
        line: that in words, with what to do; empty where there is nothing wrong to explain.
    """

    fault: str = ""
    line: str = ""


@dataclass(frozen=True)
class KnownFault:
    """A fault to look for: what is wrong, what to do, and what a model with it answers."""

    says: str
    remedy: str
    answers: Callable[[], Features]


def diagnose(given: Features, right: Features, known: Mapping[str, KnownFault], is_low: bool = False) -> Diagnosis:
    """Return which fault wrong answers have.

    Args:
        given: the answers.
        right: what they ought to be, of at least the same cases.
        known: the faults to look for, by name.
        is_low: the answers are meant to be of 16 bits, and rounding is no fault.
    """
    if not all(np.isfinite(answer).all() for answer in given.values()):
        return Diagnosis(
            "", "diagnosis: the answers hold values that are not finite: look for an overflow, or for a row of padding"
        )
    error = _errors(given, right)
    size = _norm(error)
    if not size:
        return Diagnosis()
    left, alike = dict[str, float](), dict[str, float]()
    sizes = dict[str, float]()
    for name, fault in known.items():
        expected = _errors(fault.answers(), right, list(given))
        if name in ROUNDING:
            sizes[name] = _norm(expected)
            alike[name] = float(error @ expected) / (size * sizes[name]) if sizes[name] else 0.0
        else:
            left[name] = _norm(error - expected) / size
    best = min(left, key=lambda name: left[name], default="")
    plain = min(_plain(given, right, error), key=lambda fault: fault.left, default=None)
    if plain is not None and plain.left < min(MATCHES, left.get(best, math.inf)):
        return Diagnosis(plain.name, f"diagnosis: {plain.name}: {plain.says}")
    if best and left[best] < MATCHES:
        return Diagnosis(best, _said(best, known))
    if not is_low and (rounded := _rounding(size, sizes, alike)):
        name, how = rounded
        return Diagnosis(name, _said(name, known, how))
    closest = f"; the nearest, {best}, explains {1 - left[best]:.0%} of it" if best and left[best] < SOME else ""
    return Diagnosis("", f"diagnosis: none of the {len(known)} typical faults gives these answers{closest}")


SCALED = "scaled"


class PlainFault(NamedTuple):
    """A fault that needs no model to be seen.

    Attributes:
        name: as a report gives it.
        says: what is wrong, and what to do.
        left: which share of the error it does not explain.
    """

    name: str
    says: str
    left: float


def _plain(given: Features, right: Features, error: Array) -> list[PlainFault]:
    """Return what right vectors become when they are scaled, rounded, or given in another order, each as a fault."""
    found = [_scaled(given, right, error), _in_another_order(given, right, error)]
    found += [_rounded(dtype, given, right, error) for dtype in (torch.float16, torch.bfloat16)]
    return [fault for fault in found if fault is not None and math.isfinite(fault.left)]


def _scaled(given: Features, right: Features, error: Array) -> PlainFault | None:
    """Return the fault of vectors that have the right direction and another length; None where one points away."""
    factors = {case: _factors(given[case], right[case]) for case in given}
    if not all((factor > 0).all() for factor in factors.values()):
        return None
    scaled = {case: right[case] * factors[case] for case in given}
    lengths = np.concatenate([np.linalg.norm(answer, axis=-1).ravel() for answer in given.values()])
    shares = np.concatenate([factor.ravel() for factor in factors.values()])
    what = f"between {shares.min():.3g} and {shares.max():.3g} times the right one"
    if np.ptp(shares) <= 1e-3 * shares.max():
        what = f"all {shares.mean():.6g} times the right one"
    if np.abs(lengths - 1).max() < 1e-2:
        what = "all 1"
    says = f"each vector has the right direction and another length, {what}; give vectors as the model does"
    return PlainFault(SCALED, says, _left(given, right, scaled, error))


def _factors(given: Array, right: Array) -> Array:
    """Return by what each right vector is to be multiplied to come nearest to the one that is given, [..., 1]."""
    found: Array = (given * right).sum(axis=-1, keepdims=True) / (right * right).sum(axis=-1, keepdims=True)
    return found


def _rounded(dtype: torch.dtype, given: Features, right: Features, error: Array) -> PlainFault:
    """Return the fault of right vectors that are rounded to 16 bits before they are given."""
    name = str(dtype).removeprefix("torch.")
    rounded = {case: torch.from_numpy(right[case]).to(dtype).double().numpy() for case in given}
    says = f"vectors are right, and rounded to {name} at the end; answer in float32, or judge with --dtype {name}"
    return PlainFault(f"rounded-to-{name}", says, _left(given, right, rounded, error))


def _left(given: Features, right: Features, faulty: Features, error: Array) -> float:
    """Return which share of an error is left where what is given is explained by what is faulty."""
    return _norm(_errors(given, right) - _errors(faulty, right, list(given))) / _norm(error)


def _in_another_order(given: Features, right: Features, error: Array) -> PlainFault | None:
    """Return the fault of right vectors that stand in other rows of their batch; None where each is in its own."""
    moved, told = dict[str, Array](), ""
    for case, answer in given.items():
        apart = np.linalg.norm(answer[:, None] - right[case][None], axis=-1)
        nearest = apart.argmin(axis=1)
        moved[case] = right[case][nearest]
        others = np.flatnonzero(nearest != np.arange(len(nearest)))
        if len(others) and not told:
            told = f"row {others[0]} of {case} is that of image {nearest[others[0]]}"
    if not told:
        return None
    says = f"vectors are right, but of other images of their batch: {told}; answer images in the order that they have"
    return PlainFault("other-order", says, _left(given, right, moved, error))


def _said(name: str, known: Mapping[str, KnownFault], how: str = "") -> str:
    return f"diagnosis: {name}: {known[name].says}{how}; {known[name].remedy}"


def _rounding(size: float, sizes: Mapping[str, float], alike: Mapping[str, float]) -> tuple[str, str] | None:
    """Return which rounding explains an error, and by what it is told; None where none does.

    Two implementations round the same values, but not all of them: their errors are alike and not the same. Where
    they are hardly alike, an error of the size that a whole model in 16 bits has is taken for that.
    """
    near = [name for name, expected in sizes.items() if expected / 2 < size < 2 * expected]
    best = max(near, key=lambda name: alike[name], default="")
    if best and alike[best] > ALIKE:
        return best, ""
    whole = [name for name in near if name in WHOLE and alike[name] > HARDLY_ALIKE]
    if not whole:
        return None
    return min(whole, key=lambda name: abs(math.log(size / sizes[name]))), ", by the size of its error"


WHOLE = ("float16", "bfloat16")
"""Those of `ROUNDING` that are of all that a model computes."""


def _errors(given: Features, right: Features, cases: Sequence[str] = ()) -> Array:
    """Return how far answers are off, all in a row; of each case as a share of its size, so that all count alike."""
    cases = cases or list(given)
    parts = [
        ((given[case] - right[case]) / (np.linalg.norm(right[case]) * math.sqrt(len(cases)))).ravel() for case in cases
    ]
    return np.concatenate(parts).astype(np.float64)


def _norm(error: Array) -> float:
    return float(np.linalg.norm(error))
