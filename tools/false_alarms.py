"""Judge true artifacts under many seeds, and write how near they came to each limit: tools/results/false_alarms.csv.

    python tools/false_alarms.py --write                       # 100 seeds of everything
    python tools/false_alarms.py --target aot --write          # of one target
    python tools/false_alarms.py --seeds 5 --target onnx       # a few, printed only

An artifact is exported once, as a user does, and judged again under each seed, which draws all generated batches anew.
The rows of `vectorize` are of no artifact: there the weights are drawn anew as well, a model for each seed.
"""

from __future__ import annotations

import argparse
import copy
import math
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import digits
import markdown_text
import record
import torch
from judge_mutants import INVARIANCES, tiny  # also where the tests' models are
from markdown_text import section
from rich.console import Console
from torch import nn

import naflex_export as nx
from naflex_export.accuracy.invariances import MASKING, MOVED
from naflex_export.accuracy.results import BASELINE_FACTOR, GateReport
from naflex_export.models.model_sources import randomize
from naflex_export.precision import DTYPES, Precision

RESULTS = record.RESULTS / "false_alarms.csv"
PACKAGES = ("torch", "timm", "onnxruntime-gpu")
VECTORIZE = "vectorize"
TINY_BUCKET = nx.Bucket(24, (1, 4, 8))
MODELS: dict[str, tuple[Callable[[], nn.Module], nx.Bucket]] = {
    "tiny siglip": (tiny.siglip, TINY_BUCKET),
    "tiny classifier": (tiny.classifier, TINY_BUCKET),
    "digits": (digits.trained, digits.BUCKET),
}
DTYPES_OF = dict.fromkeys((VECTORIZE, "onnx", "compile", "aot"), tuple(DTYPES))
"""What is judged of each target; an engine would be judged by its ONNX graph, which is `onnx`'s in another opset."""

SHARES = ("max_share", "relative_l2", "worst_cosine", "top1_agreement", "top5_agreement", "baseline")
KIND = ("model", "target", "dtype")
COLUMNS = (*SHARES, *INVARIANCES.values())


@dataclass(frozen=True)
class Row:
    """How a true candidate fared.

    Attributes:
        model, target, dtype: what it was.
        judged: what ran.
        seeds: how many, from 0 on.
        passed: how many of them passed.
        used: for each check the most of its limit that was used under any seed: above 1 it failed. NaN where there is
            no such check, as of logits in a model without classes.
        failures: what failed, a line each.
    """

    model: str
    target: str
    dtype: str
    judged: str
    seeds: int
    passed: int
    used: dict[str, float]
    failures: tuple[str, ...] = ()


def used_of(report: GateReport) -> dict[str, float]:
    """Return for each check the share of its limit that a candidate used, at most over all cases."""
    used = dict.fromkeys(COLUMNS, math.nan)

    def add(name: str, share: float) -> None:
        used[name] = _larger(used[name], share)

    for result in report.results:
        found, limits = result.measures, report.limits.widened_by(result.baseline, BASELINE_FACTOR)
        add("max_share", found.max_share / limits.max_share)
        add("relative_l2", found.relative_l2 / limits.relative_l2)
        add("worst_cosine", (1 - found.worst_cosine) / (1 - limits.worst_cosine))
        for name, agreement in (("top1_agreement", found.top1_agreement), ("top5_agreement", found.top5_agreement)):
            if agreement is not None:
                add(name, _used(1 - agreement, 1 - limits.agreement))
    for baseline in report.baselines:
        add("baseline", baseline.candidate / (BASELINE_FACTOR * baseline.baseline))
    for invariance in report.invariances:
        moved = invariance.moved
        share = MOVED / moved if invariance.name == MASKING else moved / report.limits.relative_l2
        add(INVARIANCES[invariance.name], share)
    return used


def _larger(one: float, other: float) -> float:
    """Return the larger of two shares, of which NaN is none."""
    return other if math.isnan(one) else one if math.isnan(other) else max(one, other)


def _used(missed: float, allowed: float) -> float:
    """Return a share of what is allowed; where nothing is, nothing is used if nothing is missed."""
    return missed / allowed if allowed else math.inf if missed else 0.0


def judged_under(
    seeds: Iterable[int], judge: Callable[[int], GateReport], about: tuple[str, str, str], judged: str
) -> Row:
    """Return the row of a candidate that `judge` judges under a seed; `about` is its model, target and dtype."""
    used, failures, passed, count = dict.fromkeys(COLUMNS, math.nan), [], 0, 0
    for seed in seeds:
        report = judge(seed)
        count += 1
        passed += report.passed
        failures += [f"seed {seed}: {failure}" for failure in report.failures]
        for name, share in used_of(report).items():
            used[name] = _larger(used[name], share)
    return Row(*about, judged, count, passed, used, tuple(failures))


def judge_artifact(artifact: Path, reference: nn.Module, model: str, seeds: Iterable[int]) -> Row:
    """Return how an artifact fares, or what runs in its place on this machine."""
    run, judged = digits.opened(artifact)
    manifest = run.manifest
    about = model, manifest.target, manifest.dtype
    return judged_under(seeds, lambda seed: nx.gate(run, reference, seed=seed), about, judged)


def judge_vectorized(model: str, dtype: str, seeds: Iterable[int]) -> Row:
    """Return how a vectorized model fares whose weights are drawn anew for each seed."""
    make, bucket = MODELS[model]

    def judge(seed: int) -> GateReport:
        reference = make()
        randomize(reference, seed)
        candidate = nx.vectorize(copy.deepcopy(reference)).to(Precision(dtype).torch_dtype)
        return nx.gate(candidate, reference, buckets=[bucket], dtype=dtype, seed=seed)

    return judged_under(seeds, judge, (model, VECTORIZE, dtype), "the vectorized model, its weights drawn anew")


def rows(targets: Sequence[str], models: Sequence[str], seeds: Sequence[int]) -> Iterator[Row]:
    """Yield the row of each target, model and dtype."""
    for model in models:
        make, bucket = MODELS[model]
        reference = make()
        for target in targets:
            for dtype in DTYPES_OF[target]:
                if target != VECTORIZE:
                    with tempfile.TemporaryDirectory() as folder:
                        artifact = nx.export(reference, target, Path(folder) / "a", [bucket], dtype).path
                        yield judge_artifact(artifact, reference, model, seeds)
                    torch._dynamo.reset()  # the guards of one model's graph would count against the next's
                elif model != "digits":  # to draw the weights anew would be to train anew
                    yield judge_vectorized(model, dtype, seeds)


def main() -> None:
    """Judge what was asked for, print it, and write it if asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=100)
    parser.add_argument("--target", action="append", choices=tuple(DTYPES_OF), help="only this one; may be repeated")
    parser.add_argument("--model", action="append", choices=tuple(MODELS), help="only this one; may be repeated")
    parser.add_argument("--write", action="store_true", help="add the rows to the CSV file, and write the docs' table")
    asked = parser.parse_args()
    about = record.about("cpu", PACKAGES)  # of the code that runs, whatever is committed meanwhile
    console = Console()
    for row in rows(asked.target or tuple(DTYPES_OF), asked.model or tuple(MODELS), range(asked.seeds)):
        tightest = max((name for name in COLUMNS if not math.isnan(row.used[name])), key=lambda name: row.used[name])
        console.print(
            f"{row.model}, {row.target}, {row.dtype}: {row.passed} of {row.seeds} passed; "
            f"nearest to a limit: {tightest}, {row.used[tightest]:.0%} of it",
            highlight=False,
            soft_wrap=True,
        )
        for failure in row.failures:
            console.print(f"  {failure}", highlight=False, soft_wrap=True)
        if asked.write:
            write(row, about)


def write(row: Row, about: dict[str, str]) -> None:
    """Add a row to `tools/results/false_alarms.csv`, and put the newest of each kind into docs/gate.md."""
    shares = {name: "" if math.isnan(share) else f"{share:.3g}" for name, share in row.used.items()}
    kept = {name: str(getattr(row, name)) for name in (*KIND, "judged", "seeds", "passed")}
    record.append(RESULTS, (*about, *kept, *COLUMNS), [{**about, **kept, **shares}])
    text = table(record.newest(record.read(RESULTS), KIND))
    page = digits.DOCS.read_text()
    digits.DOCS.write_text(section(page, "<!-- false alarms -->", "<!-- end of false alarms -->", text))


def table(found: Sequence[dict[str, str]]) -> str:
    """Return a Markdown table with a row for each target and dtype, the worst of all models."""
    shown = ("max_share", "relative_l2", "worst_cosine", "top1_agreement", "top5_agreement", "baseline", "amount")
    lines = []
    for target, dtypes in DTYPES_OF.items():
        for dtype in dtypes:
            rows = [row for row in found if (row["target"], row["dtype"]) == (target, dtype)]
            if not rows:
                continue
            passed, seeds = sum(int(row["passed"]) for row in rows), sum(int(row["seeds"]) for row in rows)
            used = [max((float(row[name]) for row in rows if row[name]), default=math.nan) for name in shown]
            cells = ["" if math.isnan(share) else f"{share:.0%}" for share in used]
            lines.append((target, dtype, str(len(rows)), f"{passed} of {seeds}", *cells))
    return markdown_text.table(("target", "dtype", "models", "passed", *shown), lines)


if __name__ == "__main__":
    torch.set_num_threads(1)  # sums in the same order whatever the machine
    main()
