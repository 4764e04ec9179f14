"""`fault_of`: which typical fault a candidate that failed has, on the worst images of its worst case."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from naflex_export.accuracy.comparison import Comparison
from naflex_export.accuracy.diagnosis import Array, Diagnosis, KnownFault, diagnose
from naflex_export.accuracy.faults import FAULTS, TypicalFault
from naflex_export.accuracy.locate import worst_images, worst_result
from naflex_export.accuracy.results import GateReport
from naflex_export.batch import Batch
from naflex_export.grid import Bucket
from naflex_export.models.adapter import ModelAdapter

IMAGES = 2
"""That are looked at: each fault is a run of the reference on them."""

CASE = "worst"


def fault_of(comparison: Comparison, report: GateReport, case_of: Callable[[str], tuple[Bucket, Batch]]) -> Diagnosis:
    """Return which typical fault a candidate has that failed by its features; none where it failed otherwise.

    Args:
        comparison: what was compared.
        report: what came of it.
        case_of: returns the bucket and batch of a case by its name.
    """
    worst = worst_result(report)
    model = comparison.reference
    if worst is None or not worst.exceeded or worst.output != "features" or not isinstance(model, ModelAdapter):
        return Diagnosis()
    bucket, batch = case_of(worst.case)
    part = worst_images(worst, batch, max(IMAGES, bucket.batch[0]))
    try:
        given, right = (
            {CASE: _array(found["features"])}
            for found in (comparison.candidate_of(part, checked=False), comparison.reference_of(part))
        )

        def known(fault: TypicalFault) -> KnownFault:
            return KnownFault(fault.says, fault.remedy, lambda: {CASE: _array(fault.run(model, part))})

        faults = {name: known(fault) for name, fault in FAULTS.items()}
        return diagnose(given, right, faults, is_low=comparison.precision.is_low)
    except Exception as error:  # whatever it is, the gate's own verdict stands and must be told
        return Diagnosis("", f"diagnosis: not known: looking for it raised {type(error).__name__}: {error}")


def _array(features: Tensor) -> Array:
    array: Array = features.detach().cpu().double().numpy()
    return array
