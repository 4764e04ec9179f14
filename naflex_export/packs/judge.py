"""`judge_answers`: a port's answers beside a pack's, the first stage that deviates, and which typical fault it is."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from naflex_export.accuracy.diagnosis import SCALED, Diagnosis, KnownFault, diagnose
from naflex_export.accuracy.metrics import LIMITS, Measures, measure
from naflex_export.errors import GateFailure
from naflex_export.packs.answers import Answers
from naflex_export.packs.asked import Asked
from naflex_export.packs.opened import Array, Pack

FLOOR_FACTOR = 2.0
"""How many times eager's own error in a low precision a port's may be, over all cases."""


@dataclass(frozen=True)
class Judged:
    """How a port answered one case: its measures, and what exceeds the limits."""

    case: str
    measures: Measures
    exceeded: tuple[str, ...]


@dataclass(frozen=True)
class Verdict:
    """What came of a port's answers.

    Attributes:
        cases: each that was answered.
        problems: what could not be compared, a line each.
        unanswered: cases without an answer.
        stage: the first stage that deviates, in words; empty where none does or none was given.
        fault: name of the typical fault whose fingerprint the answers have; empty where there is none.
        diagnosis: that in words, with what to do.
        origin: where the answers came from.
        dtype: whose limits hold.
        asked: what was asked of the port beside the cases.
        ignored: names of answers that are to no case.
    """

    cases: tuple[Judged, ...]
    problems: tuple[str, ...] = ()
    unanswered: tuple[str, ...] = ()
    stage: str = ""
    fault: str = ""
    diagnosis: str = ""
    origin: str = ""
    dtype: str = "float32"
    asked: tuple[Asked, ...] = ()
    ignored: tuple[str, ...] = ()

    @property
    def failures(self) -> list[str]:
        """What failed, a line each."""
        return [*self.problems, *(f"{one.case}: {', '.join(one.exceeded)}" for one in self.cases if one.exceeded)]

    @property
    def passed(self) -> bool:
        """Whether there are answers, and all are right."""
        return bool(self.cases) and not self.failures

    def raise_for_failure(self) -> None:
        """Raise GateFailure, with what failed and the diagnosis, unless the answers are right."""
        if not self.passed:
            told = self.failures or ["no case was answered"]
            told += [f"first deviation: {self.stage}"] if self.stage else []
            raise GateFailure("\n  ".join(["the answers are wrong:", *told, self.diagnosis]).rstrip())


def judge_answers(pack: Pack, answers: Answers, dtype: str = "float32", normalized: bool = False) -> Verdict:
    """Return whether a port's answers are right, and what is wrong where they are not.

    Args:
        pack: what is right.
        answers: the port's.
        dtype: that it computes in; it chooses the limits.
        normalized: it answers with vectors of length 1, and all that the pack holds is brought to that length.

    Raises:
        RequestError: the dtype is unknown.
    """
    pack.check_dtype(dtype)

    def told(features: Array) -> Array:
        return _unit(features) if normalized else features

    problems, judged, comparable = list(answers.problems), list[Judged](), dict[str, Array]()
    all_wrong = False
    for case, given in answers.features.items():
        wanted = told(pack.expected(case))
        if given.shape != wanted.shape:
            problems.append(f"{case}: the answer's shape is {list(given.shape)}, expected {list(wanted.shape)}")
            continue
        comparable[case] = given.astype(np.float64)
        found = measure(torch.from_numpy(comparable[case]), torch.from_numpy(wanted))
        judged.append(Judged(case, found, tuple(LIMITS[dtype].exceeded_by(found))))
    if dtype != "float32" and judged:
        floors = pack.manifest["noise_floors"][dtype]
        own = math.sqrt(sum(one.measures.relative_l2**2 for one in judged) / len(judged))
        eager = math.sqrt(sum(floors[one.case] ** 2 for one in judged) / len(judged))
        if not own <= FLOOR_FACTOR * eager:
            all_wrong = True
            problems.append(f"all cases: error {own:.2g} is more than {FLOOR_FACTOR:g} times eager's own {eager:.2g}")
    problems += filter(None, (one.failure(LIMITS[dtype].relative_l2) for one in answers.asked))
    failed = bool(problems) or any(one.exceeded for one in judged)
    wrong = [one.case for one in judged if one.exceeded or all_wrong]
    is_low = dtype != "float32"
    diagnosis = _diagnosis(pack, comparable, wrong, is_low, told) if failed and comparable else Diagnosis()
    return Verdict(
        cases=tuple(judged),
        problems=tuple(problems),
        unanswered=tuple(case for case in pack.cases if case not in answers.features),
        stage=_first_stage(pack, answers) if answers.stages else "",
        fault=diagnosis.fault,
        diagnosis=diagnosis.line,
        origin=answers.origin,
        dtype=dtype,
        asked=answers.asked,
        ignored=answers.ignored,
    )


def _unit(vectors: Array) -> Array:
    """Return vectors [n, C] at length 1."""
    found: Array = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return found


def _diagnosis(
    pack: Pack,
    answers: Mapping[str, Array],
    wrong: Sequence[str],
    is_low: bool,
    told: Callable[[Array], Array],
) -> Diagnosis:
    """Return the typical fault that the answers have; `told` makes of features what the port says of them."""

    def fingerprint(name: str) -> Callable[[], dict[str, Array]]:
        return lambda: {case: told(pack.fingerprint(name, case).astype(np.float64)) for case in answers}

    right = {case: told(pack.expected(case).astype(np.float64)) for case in answers}
    faults = pack.manifest["fingerprints"].items()
    known = {name: KnownFault(said["says"], said["remedy"], fingerprint(name)) for name, said in faults}
    found = diagnose(answers, right, known, is_low)
    if found.fault == SCALED:
        return replace(found, line=f"{found.line}, or judge directions alone with --normalized")
    return found if found.fault or not found.line else replace(found, line=f"{found.line}{_hint(pack, wrong, answers)}")


def _hint(pack: Pack, wrong: Sequence[str], answers: Mapping[str, Array]) -> str:
    """Return where to look where no typical fault matches."""
    photos = set(pack.photo_cases)
    if set(wrong) <= photos < set(answers):
        return (
            "; only photos are wrong, and what begins with patches is right: compare what you make of them with "
            "cases/photos/inputs"
        )
    return "; look at the stages" if any(pack.manifest["cases"][case]["stages"] for case in answers) else ""


def _first_stage(pack: Pack, answers: Answers) -> str:
    """Return the first stage that deviates, in words; empty where all are right."""
    for case, given in answers.stages.items():
        valid = _valid(pack.inputs(case))
        for name, wanted in pack.stages(case).items():
            if name not in given:
                continue
            found = given[name]
            if found.shape != wanted.shape:
                return f"{name} of {case}: its shape is {list(found.shape)}, expected {list(wanted.shape)}"
            rows = valid if wanted.shape[:2] == valid.shape else np.ones(wanted.shape[:1], dtype=bool)
            error = float(np.linalg.norm((found - wanted)[rows].astype(np.float64)))
            share = error / float(np.linalg.norm(wanted[rows].astype(np.float64)))
            if not share <= 3 * LIMITS["float32"].relative_l2:
                return f"{name} of {case}, relative L2 {share:.1e}"
    return ""


def _valid(inputs: dict[str, Array]) -> Array:
    masks = [value for name, value in inputs.items() if name in ("patch_valid", "pixel_attention_mask")]
    return masks[0].astype(bool)
