"""`search`: the cheapest parts of a model to keep in float32 so that the gate passes, found by trial.

It starts with nothing kept, adds what the report of a failure points to (modules whose values leave the range, and the
first that deviates), and once the gate passes takes away again what it passes without, the dearest first. Where no
report points anywhere it goes through the presets, and then the blocks, twice as many each time.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from naflex_export.accuracy.advice import BY_NAME, is_output, to_keep
from naflex_export.accuracy.results import GateReport, PrecisionSearch, SearchStep, Tap
from naflex_export.models.kept_parts import PartsByName

PRESETS_IN_TURN = (("residual", "norm"), ("softmax",), ("pooling",), ("embedding",))
"""What is tried where a failure points nowhere, the cheapest first."""

RANGE = 0.25
"""Share of the dtype's range from which a module's values are too large: those inside of an operator are larger."""

Names = tuple[str, ...]


def search(
    judged: Callable[[Names], GateReport],
    cost: Callable[[Names], float],
    blocks: Sequence[str],
    tried: Callable[[SearchStep], None] = lambda step: None,
    parts: PartsByName = BY_NAME,
) -> tuple[PrecisionSearch, GateReport]:
    """Return the steps of a search, and the last report that decided: of what was found, or of all kept that failed.

    Args:
        judged: returns the gate's report on the model with these names kept in float32.
        cost: returns what that costs, as a multiple of nothing kept.
        blocks: names of the model's blocks.
        tried: is told each step.
        parts: what is known of the model's parts.
    """
    trials = _Trials(judged, cost, tried)
    wanted: Names = ()  # it only grows, so there is an end
    names: Names = ()
    report = trials.report(names, "nothing is kept")
    while not report.passed:
        more, why = _pointed_to(report, wanted, parts)
        if not more:
            more, why = _next_in_turn(wanted, blocks), "no report points further"
        if not more:
            return PrecisionSearch(tuple(trials.steps), None), report
        wanted = tuple(dict.fromkeys((*wanted, *more)))
        with_more = parts.adding(joined(wanted, (), blocks))
        if with_more != names:
            names = with_more
            report = trials.report(names, why)
    for name in sorted(names, key=lambda name: -cost((name,))):
        fewer = tuple(other for other in names if other != name)
        without = trials.report(fewer, f"is {name} needed?") if fewer else None
        if without is not None and without.passed:
            names, report = fewer, without
    return PrecisionSearch(tuple(trials.steps), names), report


class _Trials:
    """Judges each set of names once, and keeps the steps in order."""

    def __init__(
        self,
        judged: Callable[[Names], GateReport],
        cost: Callable[[Names], float],
        tried: Callable[[SearchStep], None],
    ) -> None:
        self.steps: list[SearchStep] = []
        self._judged, self._cost, self._tried = judged, cost, tried

    def report(self, names: Names, why: str) -> GateReport:
        """Return the gate's report with these names kept.

        Args:
            names: to be kept.
            why: they are tried.
        """
        found = self._judged(names)
        error = found.worst["relative_l2"]
        step = SearchStep(names, found.passed, math.nan if error is None else error, self._cost(names), why)
        self.steps.append(step)
        self._tried(step)
        return found


def joined(names: Names, more: Names, blocks: Sequence[str]) -> Names:
    """Return names with further ones, without those that are part of another.

    Args:
        names: that are kept.
        more: to be kept as well.
        blocks: names of the model's blocks.
    """
    every = tuple(dict.fromkeys((*names, *more)))
    if {*blocks, "pooling", "embedding"} <= set(every):
        every = tuple(name for name in every if name != "norm")  # all of them are kept by then
    return tuple(name for name in every if not any(name.startswith(f"{other}.") for other in every))


def _pointed_to(report: GateReport, names: Names, parts: PartsByName) -> tuple[Names, str]:
    """Return what a failure's own report says to keep besides, and why; nothing where it says nothing new."""
    location = report.location
    if location is None or not location.taps:
        return (), ""
    large = [tap for tap in location.taps if not is_output(tap.module) and _reach(tap) >= RANGE * tap.dtype_max]
    inner = [tap for tap in large if not any(other.module.startswith(f"{tap.module}.") for other in large)]
    streams = [tap for tap in large if tap.reference_max_abs >= RANGE * tap.dtype_max]
    found = [name for tap in (*inner, *streams) for name in _of_range(tap, names, parts, is_inner=tap in inner)]
    why = f"values up to {max((_reach(tap) for tap in large), default=0):.1e} in {len(inner)} modules"
    if not found and location.first is not None and not is_output(location.first.module):
        found = list(to_keep(location.first, names, is_coarse=report.is_coarse, parts=parts))
        why = f"{location.first.module} deviates first"
    return tuple(dict.fromkeys(found)), why


def _of_range(tap: Tap, names: Names, parts: PartsByName, *, is_inner: bool) -> Names:
    """Return what to keep on account of a module's range; of one that holds others, what concerns the stream alone."""
    wanted = to_keep(tap, names, parts=parts)
    return wanted if is_inner else tuple(name for name in wanted if name != tap.module)


def _reach(tap: Tap) -> float:
    return max((value for value in (tap.reference_max_abs, tap.inside_max_abs) if math.isfinite(value)), default=0.0)


def _next_in_turn(names: Names, blocks: Sequence[str]) -> Names:
    """Return what to keep next where nothing points anywhere: a preset, then blocks, as many again as there are."""
    if {*blocks, "residual", "pooling", "embedding"} <= set(names):
        return ()  # that is all there is
    for preset in PRESETS_IN_TURN:
        if not set(preset) <= set(names):
            return preset
    missing = tuple(block for block in blocks if block not in names)
    return missing[: max(1, len(blocks) - len(missing))]
