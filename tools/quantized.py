"""Quantize the digits model, plain and with outliers planted in it, and see what each artifact reads and finds.

    python tools/quantized.py           # writes tools/results/quantized.csv and docs/precision.md

The outliers are one channel of the input of a block's MLP, 300 times as large, behind a weight that is as much smaller:
the model computes what it did before, and a single scale for that input has nothing left for the other channels.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import digits
import markdown_text
import record
import torch
from rich.console import Console
from torch import nn

import naflex_export as nx
from naflex_export.accuracy.results import GateReport
from naflex_export.export_request import ExportRequest
from naflex_export.exporter import Exporter
from naflex_export.precision import Precision
from naflex_export.progress import Observer

RESULTS = record.RESULTS / "quantized.csv"
DOCS = record.ROOT / "docs" / "precision.md"
PACKAGES = ("torch", "timm", "onnxruntime-gpu", "tensorrt-rtx", "nvidia-modelopt", "scikit-learn")
KEY = ("model", "target", "dtype", "keep_unquantized")

NUM_PHOTOS = 64
OUTLIER = 300.0
PLANTED = "blocks.1.mlp.fc1"

PLAIN, PLANTED_IN = "digits", "digits with outliers"
TRIED = (
    (PLAIN, "onnx", "int8", ""),
    (PLAIN, "onnx", "fp8", ""),
    (PLAIN, "trt", "int8", ""),
    (PLAIN, "trt", "fp8", ""),
    (PLANTED_IN, "onnx", "int8", ""),
    (PLANTED_IN, "onnx", "int8", PLANTED),
    (PLANTED_IN, "trt", "fp8", ""),
)


@dataclass(frozen=True)
class Row:
    """What came of one export.

    Attributes:
        model: `PLAIN` or `PLANTED_IN`.
        target, dtype, keep_unquantized: of the export.
        passed: whether the gate passed.
        images: digits in the test set.
        eager_right: how many of them eager reads right, in float32.
        right: how many the artifact does; none where it was rejected.
        relative_l2: the worst of the gate's cases.
        recall: of neighbours, by the gate.
        advice: what the gate said to keep, where it failed.
        judged: what ran.
    """

    model: str
    target: str
    dtype: str
    keep_unquantized: str
    passed: bool
    images: int
    eager_right: int
    right: int | None
    relative_l2: float
    recall: float
    advice: str
    judged: str


def plant(model: nn.Module) -> nn.Module:
    """Plant outliers in a model, in place: it computes the same."""
    block: Any = model.blocks[1]  # type: ignore[index]
    with torch.no_grad():
        block.norm2.weight[3] *= OUTLIER
        block.norm2.bias[3] *= OUTLIER
        block.mlp.fc1.weight[:, 3] /= OUTLIER
    return model


class _Heard(Observer):
    """Keeps the report that the gate gave last."""

    report: GateReport

    def judged(self, report: GateReport) -> None:
        self.report = report


def row_of(model: nn.Module, tried: tuple[str, str, str, str], photos: Path, out: Path) -> Row:
    """Return what comes of an export of a trained model."""
    _, target, dtype, kept = tried
    heard, expected = _Heard(), digits.logits_of(model)
    precision = Precision.of(dtype, keep_unquantized=kept)
    request = ExportRequest(target, out, (digits.BUCKET,), precision, images=photos)
    right = None
    try:
        Exporter(model, request, heard).run()
        run, _ = digits.opened(out)
        right = digits.num_right(digits.logits_of(run, request.precision.dtype))
    except nx.GateFailure:
        pass
    report = heard.report
    error, location, found = report.worst["relative_l2"], report.location, report.neighbours
    assert error is not None and found is not None  # there are cases, and photos enough
    return Row(
        *tried,
        passed=report.passed,
        images=len(expected),
        eager_right=digits.num_right(expected),
        right=right,
        relative_l2=float(f"{error:.2g}"),
        recall=round(found.recall, 3),
        advice="" if location is None or report.passed else location.advice.rpartition("(")[2].rstrip(")"),
        judged=report.judged,
    )


def table(rows: Sequence[dict[str, str]]) -> str:
    """Return rows as a Markdown table."""
    head = ("model", "target", "dtype", "right of 597", "error", "recall", "gate", "what ran")
    cells = [
        (
            row["model"],
            row["target"],
            row["dtype"] + (f" without {row['keep_unquantized']}" if row["keep_unquantized"] else ""),
            f"{row['right'] or '-'} (eager {row['eager_right']})",
            row["relative_l2"],
            row["recall"],
            "passes" if row["passed"] == "True" else f"refuses, advises `{row['advice']}`",
            row["judged"],
        )
        for row in rows
    ]
    return markdown_text.table(head, cells)


def main() -> None:
    """Train, export each of `TRIED`, and write what came of it."""
    console, rows = Console(), []
    with tempfile.TemporaryDirectory() as name:
        photos = Path(name) / "photos"
        digits.write_photos(photos, NUM_PHOTOS)
        models = {PLAIN: digits.trained()}
        models[PLANTED_IN] = digits.untrained().eval()
        models[PLANTED_IN].load_state_dict(models[PLAIN].state_dict())
        plant(models[PLANTED_IN])
        for number, tried in enumerate(TRIED):
            rows.append(row_of(models[tried[0]], tried, photos, Path(name) / str(number)))
            console.print(rows[-1], highlight=False, soft_wrap=True)
    about = record.about("cpu", PACKAGES)
    written = [{**about, **asdict(row)} for row in rows]
    record.append(RESULTS, (*about, *(field.name for field in fields(Row))), written)
    newest = record.newest(record.read(RESULTS), KEY)
    DOCS.write_text(
        markdown_text.section(DOCS.read_text(), "<!-- quantized -->", "<!-- end of quantized -->", table(newest))
    )


if __name__ == "__main__":
    main()
