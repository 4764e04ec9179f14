"""The gate on a text tower: the same measures and limits as for images, on texts through the model's own tokenizer.

The reference is the model's text tower in float32, as it is. The artifact's tokenizer is held to the library's, number
by number: a text that is cut or padded otherwise is another text.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from naflex_export.accuracy.comparison import Comparison, EagerOutputs
from naflex_export.accuracy.efforts import CaseSelection
from naflex_export.accuracy.gate import GateSettings
from naflex_export.accuracy.invariances import Invariance
from naflex_export.accuracy.locate import first_deviation
from naflex_export.accuracy.results import GateReport
from naflex_export.accuracy.tally import Tally
from naflex_export.accuracy.text_cases import ALL_TEXTS, batch_of, text_batch, text_cases
from naflex_export.batch import Batch, picked
from naflex_export.errors import InputError, RequestError
from naflex_export.grid import Bucket
from naflex_export.models.model_sources import weights_sha256
from naflex_export.models.rounding import stored_precision
from naflex_export.models.text_tower import TextTower
from naflex_export.serving.runner import Runner
from naflex_export.serving.text import TokenMaker

PREFIX = "text"
"""What stands before the names of cases of the text tower, with a slash, in the report of an artifact with both."""

TOKENS = "tokenizer"
"""What problems with an artifact's tokenizer begin with: no case to be run again, for it is judged each time."""


def judge_text(
    candidate: Runner,
    reference: TextTower,
    settings: GateSettings,
    tokenizer: TokenMaker | None = None,
    eager: EagerOutputs | None = None,
) -> GateReport:
    """Return the report of the gate on a text tower.

    Args:
        candidate: runs the tower on tokens.
        reference: the model's own.
        settings: what the candidate serves, and what to judge it on.
        tokenizer: the artifact's, which must make the same tokens of texts; None where it is not judged.
        eager: where what the reference gives is kept, for another form of the artifact; None where there is none.

    Raises:
        RequestError: a case asked for does not exist.
    """
    names, bucket = text_cases(settings.cases), settings.buckets[-1]
    for asked in settings.cases.only:
        if asked not in names:
            known = ", ".join(text_cases(CaseSelection()))
            raise RequestError(f"case {PREFIX}/{asked!s} does not exist: expected {PREFIX}/ and one of {known}")
    comparison = Comparison(candidate, reference, settings.outputs, settings.precision)
    comparison.eager = eager
    tally = Tally(comparison)
    for count, name in enumerate(names, 1):
        settings.announce(f"case {count} of {len(names)}: {PREFIX}/{name}")
        tally.add(bucket, text_batch(name, bucket, reference))
    checks = []
    if not settings.cases.only and not tally.problems:
        checks = _invariances(comparison, reference, bucket, tally.limits.relative_l2)
    found = tally.report()
    model = comparison.reference.model
    report = replace(
        found,
        results=tuple(replace(result, output=f"{PREFIX}/{result.output}") for result in found.results),
        problems=(*found.problems, *([] if tokenizer is None else differing_tokens(tokenizer, reference))),
        invariances=tuple(checks),
        judged=settings.judged,
        seed=settings.cases.seed,
        effort=settings.cases.effort,
        only=settings.cases.only,
        reference_sha256=weights_sha256(model),
        reference_precision=stored_precision(model),
    )
    if report.passed and not settings.locate:
        return report
    settings.announce("looking for the first module that deviates")
    return replace(
        report,
        location=first_deviation(comparison, report, lambda name: (bucket, text_batch(name, bucket, reference))),
    )


def differing_tokens(tokenizer: TokenMaker, reference: TextTower) -> list[str]:
    """Return the first text of which an artifact's tokenizer makes other tokens than the library's; none if none is.

    Args:
        tokenizer: the artifact's.
        reference: with the library's.
    """
    for text in ALL_TEXTS:
        expected = dict(zip(("input_ids", "attention_mask"), reference.tokens([text]), strict=True))
        try:
            found = tokenizer([text])
        except InputError:  # of a text without a token
            continue
        for spec, given in zip(tokenizer.manifest.inputs, found, strict=True):
            if given.tolist() != expected[spec.name].tolist():
                return [
                    f"{TOKENS}: of {text[:60]!r} it makes the {spec.name} {_few(given[0].tolist())}, and "
                    f"{reference.package}'s own {_few(expected[spec.name][0].tolist())}"
                ]
    return []


def _few(numbers: Sequence[int]) -> str:
    return f"[{', '.join(map(str, numbers[:8]))}, ...]"


def _invariances(comparison: Comparison, reference: TextTower, bucket: Bucket, floor: float) -> list[Invariance]:
    """Return what must not move a text's vector: other texts, their order, and being asked again."""
    count = min(bucket.batch[2], max(bucket.batch[0], 4))
    batch = batch_of("invariances", ALL_TEXTS[:count], reference)
    run = comparison.unchecked("features")
    other = replace(batch, patches=batch.patches.clone(), name="invariances-others")
    other.patches[1:] = batch.patches[1:].flip(1)
    rows = list(range(count))
    checks: dict[str, Callable[[], float]] = {
        "the same texts again": lambda: _moved(run, batch, batch, rows, rows),
        "order in the batch": lambda: _moved(run, batch, picked(batch, rows[::-1]), rows, rows[::-1]),
    }
    if count > 1:
        checks["the content of other texts"] = lambda: _moved(run, batch, other, [0], [0])
    found = []
    for name, check in checks.items():
        try:
            moved = check()
            failure = "" if moved <= floor else f"{name} moved the features by {moved:.1e}: expected none"
            found.append(Invariance(name, moved, failure, str(bucket)))
        except Exception as error:  # whatever it raises on a batch that it is to serve, it has failed
            found.append(Invariance(name, float("nan"), f"{name}: the candidate raised {error}", str(bucket)))
    return found


def _moved(run: Callable[[Batch], object], one: Batch, other: Batch, here: list[int], there: list[int]) -> float:
    """Return by how much rows of two answers differ, as a share of their size."""
    before, after = run(one), run(other)
    first, second = before[here].double().cpu(), after[there].double().cpu()  # type: ignore[index]
    return float((first - second).norm() / first.norm())
