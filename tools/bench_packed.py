"""Time an exported encoder on packed tokens beside the same encoder on padded batches, in ONNX Runtime on a CPU.

    python tools/bench_packed.py --padding 0.2 --padding 0.03

Rounds are interleaved, each on a batch of its own; a ratio is the median of the rounds' ratios. A row is added to
`results/bench_packed.csv` for each layout; `error` is its relative L2 distance from eager on the last batch.
"""

from __future__ import annotations

import argparse
import random
import tempfile
from collections.abc import Sequence
from pathlib import Path

import timm
import torch
from record import ABOUT, RESULTS, about, append, mib, text

from naflex_export.accuracy.cases import MAX_ASPECT, naflex_grid
from naflex_export.batch import Batch, noise_batch
from naflex_export.bench.timing import interleave, peak_memory
from naflex_export.graph.build_settings import BuildSettings
from naflex_export.graph.trace import trace
from naflex_export.grid import Bucket, Grid
from naflex_export.models import DEFAULT_MODEL, adapter_of
from naflex_export.models.adapter import ModelAdapter
from naflex_export.models.model_sources import randomize
from naflex_export.serving.input_formats import InputFormat
from naflex_export.serving.onnx_runner import FILE, open_session
from naflex_export.targets import onnx

PACKAGES = ("torch", "timm", "onnxruntime-gpu")
FIELDS = (
    *(*ABOUT, *PACKAGES, "model", "images", "tokens", "padding", "layout", "rounds", "ms", "spread", "speedup"),
    *("peak_mib", "error"),
)

Session = tuple[object, InputFormat]


def main(arguments: Sequence[str] | None = None) -> None:
    """Add rows for each share of padding."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=DEFAULT_MODEL)
    parser.add_argument("--padding", type=float, action="append", help="share of padded tokens; may be repeated")
    parser.add_argument("--images", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=9)
    asked = parser.parse_args(arguments)
    model = timm.create_model(asked.model)
    randomize(model, seed=0)
    adapter = adapter_of(model.eval())
    bucket = Bucket(asked.tokens, (1, asked.images, asked.images))
    with tempfile.TemporaryDirectory() as folder:
        sessions = {
            layout: exported(made, bucket, Path(folder) / layout)
            for layout, made in (("padded", adapter), ("packed", adapter.packed()))
        }
        for share in asked.padding or (0.2, 0.03):
            rows = measured(adapter, sessions, bucket, share, asked.rounds)
            append(RESULTS / "bench_packed.csv", FIELDS, [{**row, "model": asked.model} for row in rows])
            for row in rows:
                print(row)


def exported(adapter: ModelAdapter, bucket: Bucket, folder: Path) -> Session:
    """Return a session of ONNX Runtime on the features of a model, and the format of its inputs."""
    folder.mkdir()
    onnx.build(trace(adapter, [bucket]), folder, BuildSettings())
    return open_session(folder / FILE, torch.device("cpu")), adapter.input_format


def drawn(bucket: Bucket, share: float, seed: int, width: int) -> Batch:
    """Return a batch with about a share of padding: one image is full, the others have budgets around the rest."""
    draw = random.Random(f"{share} {seed}")
    grids = [naflex_grid(1.0, bucket.tokens)]
    while len(grids) < bucket.batch[1]:
        budget = round(bucket.tokens * (1 - 2 * share * draw.random()))
        grids.append(naflex_grid(MAX_ASPECT ** draw.uniform(-1, 1), budget))
    return noise_batch(f"{share} {seed}", [Grid(*grid) for grid in grids], bucket.tokens, width)


def measured(
    adapter: ModelAdapter, sessions: dict[str, Session], bucket: Bucket, share: float, rounds: int
) -> list[dict[str, str]]:
    """Return a row for each layout.

    Args:
        adapter: of the eager model.
        sessions: to time, by layout.
        bucket: tokens and images of the batches.
        share: of padded tokens that is aimed at; rows say which share there was.
        rounds: that count.
    """
    batches = [drawn(bucket, share, seed, adapter.token_width) for seed in range(rounds + 1)]
    current: dict[str, dict[str, object]] = {}

    def prepare(number: int) -> None:
        for layout, (_, made) in sessions.items():
            named = zip(made.names, made.arrange(batches[number]), strict=True)
            current[layout] = {name: tensor.numpy() for name, tensor in named}

    def call(layout: str) -> object:
        return sessions[layout][0].run(["features"], current[layout])  # type: ignore[attr-defined]

    timings = interleave({layout: lambda layout=layout: call(layout) for layout in sessions}, rounds, prepare=prepare)
    with torch.no_grad():
        wanted = adapter.model(*adapter.input_format.arrange(batches[-1]))
    padding = 1 - sum(float(batch.patch_valid.float().mean()) for batch in batches[1:]) / rounds
    rows = []
    for layout in sessions:
        found = torch.from_numpy(call(layout)[0])  # type: ignore[index]
        error = float((found - wanted).norm() / wanted.norm())
        rows.append(
            {
                **about("cpu", PACKAGES),
                "images": str(bucket.batch[1]),
                "tokens": str(bucket.tokens),
                "padding": text(padding, 3),
                "layout": layout,
                "rounds": str(rounds),
                "ms": text(timings[layout].ms, 1),
                "spread": text(timings[layout].spread, 3),
                "speedup": text(timings["padded"].ratio_to(timings[layout]), 3),
                "peak_mib": mib(peak_memory(lambda layout=layout: call(layout))),
                "error": f"{error:.1e}",
            }
        )
    return rows


if __name__ == "__main__":
    main()
