"""Reports written by hand, with every kind of finding: what no model is needed for."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from naflex_export.accuracy.invariances import Invariance
from naflex_export.accuracy.metrics import DECADES, LIMITS, ImageMeasures, Measures
from naflex_export.accuracy.results import (
    ArtifactSummary,
    BaselineResult,
    CaseResult,
    CellCount,
    Distribution,
    GateReport,
    Location,
    Neighbours,
    PrecisionSearch,
    SearchStep,
    Survey,
    Tap,
)

SUBJECT = ArtifactSummary(
    "naflexvit_base_patch16_siglip", "pretrained", 16 * "5eed", "onnx", {"python": "3.11.9", "torch": "2.14.0"}
)


def case(
    name: str, errors: dict[str, float], dtype: str = "float32", output: str = "features", logits: bool = False
) -> CaseResult:
    """Return the result of a case whose images have these relative L2 errors by grid, broken where the limits say."""
    images = tuple(ImageMeasures(grid, 2 * error, error, 1 - error**2 / 2) for grid, error in errors.items())
    unordered = any(math.isnan(error) for error in errors.values())
    worst = math.nan if unordered else max(errors.values())
    agreement = (1.0, 1.0) if logits else (None, None)
    measures = Measures(2 * worst, worst, worst, 1 - worst**2 / 2, *agreement)
    exceeded = tuple(LIMITS[dtype].exceeded_by(measures))
    eager = None if dtype == "float32" else Measures(1e-3, 5e-4, 5e-4, 1 - 1e-7, *agreement)
    return CaseResult(name, output, "24:1,4,8", len(images), 24, tuple(errors), measures, images, exceeded, eager)


def passing() -> GateReport:
    """Return a float32 report that passed."""
    errors = {"1x24": 2e-7, "24x1": 3e-7, "3x7": 1e-7, "4x6": 0.0}
    return GateReport(
        dtype="float32",
        limits=LIMITS["float32"],
        results=(case("mixed-24-seed0", errors, logits=True), case("one-row-24-seed0", {"1x24": 2.5e-7})),
        invariances=(Invariance("padding's content", 0.0, "", "24:1,4,8"),),
        distributions=(distribution("candidate", "float32", {0: 30, 4: 60, 5: 10}),),
        artifact=SUBJECT,
        judged="the artifact, on cpu",
    )


def failing() -> GateReport:
    """Return a float16 report with something wrong of every kind."""
    errors = {"7x3": 5e-4, "3x7": 0.3, "1x24": 2.0}
    return replace(
        passing(),
        dtype="float16",
        limits=LIMITS["float16"],
        results=(case("mixed-24-seed0", errors, "float16"), case("square-24-seed0", {"4x4": 9e-3}, "float16")),
        problems=("photos-24-0: the candidate raised ValueError: at most 4 images",),
        invariances=(Invariance("padding's content", 0.2, "padding's content moved the features by 2.0e-01", "24"),),
        baselines=(BaselineResult("features", 0.2, 7e-4, 1e-2),),
        distributions=(
            distribution("candidate", "float16", {7: 50, 9: 50}),
            distribution("baseline", "float16", {7: 75, 8: 24, 9: 1}),
        ),
        location=Location("mixed-24-seed0", taps(), "keep blocks.1.attn in float32"),
        survey=survey(Invariance("NaN in padding", 0.5, "NaN in padding moved the outputs of x by 5.0e-01")),
        neighbours=Neighbours(photos=32, count=8, recall=0.5, baseline=0.9, limit=0.85),
        not_run="no GPU is here",
        skipped_photos={"notes.txt": "not an image"},
        search=PrecisionSearch(
            (SearchStep((), False, math.nan, 1.0, "nothing is kept"), SearchStep(("norm",), True, 7e-4, 1.2, "a test")),
            ("norm",),
        ),
    )


def survey(*behaviours: Invariance) -> Survey:
    """Return what was surveyed: two of three cells covered."""
    counts = {("1", "2"): 3, ("1", "3 to 4"): 0, ("2", "2"): 1}
    cells = tuple(CellCount("24:1,4,8", ("batch", "tokens"), strata, count) for strata, count in counts.items())
    return Survey(5, 104, 4711, cells, behaviours)


def taps() -> tuple[Tap, ...]:
    """Return the taps of two blocks, of which the second's attention leaves the floor."""
    errors = {"embeds": 0.0, "blocks.0.attn": 4e-4, "blocks.0": 5e-4, "blocks.1.attn": 0.2, "blocks.1": math.nan}
    return tuple(Tap(module, error, 2e-3, 90.0, 91.0, 65504.0) for module, error in errors.items())


def not_finite() -> GateReport:
    """Return a report in which every measure that can be is not a number, or infinite."""
    errors = {"1x24": math.nan, "24x1": math.inf, "4x6": 2e-7}
    broken = (Tap("embeds", math.nan, math.nan, math.inf, math.nan, 65504.0), Tap("head", math.inf, 0.0, 0, 0, 65504.0))
    return replace(
        failing(),
        results=(case("mixed-24-seed0", errors, "float16"),),
        invariances=(Invariance("order in the batch", math.nan, "order in the batch moved the features by nan"),),
        baselines=(BaselineResult("features", math.nan, math.inf, 1e-2), BaselineResult("tokens", 0.0, 0.0, 1e-2)),
        distributions=(distribution("candidate", "float16", {12: 100}),),
        location=Location("mixed-24-seed0", broken),
    )


def empty() -> GateReport:
    """Return a report for which nothing was compared."""
    return GateReport("float32", LIMITS["float32"], ())


def with_grids(grids: Sequence[str], error: float = 1e-7) -> GateReport:
    """Return a report on these grids."""
    return replace(passing(), results=(case("mixed-24-seed0", dict.fromkeys(grids, error)),))


def distribution(of: str, dtype: str, counts: dict[int, int]) -> Distribution:
    """Return a distribution with these counts by number of the bin."""
    bins = tuple(counts.get(number, 0) for number in range(len(DECADES) + 1))
    return Distribution("features", of, dtype, tuple(DECADES), bins)
