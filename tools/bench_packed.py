"""Time an exported encoder on packed tokens beside the same encoder on padded batches, in ONNX Runtime on a CPU.

    python tools/bench_packed.py --padding 0.2 --padding 0.03

Rounds are interleaved, each on a batch of its own; a ratio is the median of the rounds' ratios. A row is added to
`results/bench_packed.csv` for each layout; `error` is its relative L2 distance from eager on the last batch, and
`peak_mib` the most that a fresh process held, over those batches, beyond what it held with the session opened: ONNX
Runtime keeps what it took, so a process that has run before shows nothing.
"""

from __future__ import annotations

import argparse
import itertools
import multiprocessing
import random
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import timm
import torch
from record import ABOUT, RESULTS, about, append, mib, text

from naflex_export.accuracy.case_grids import MAX_ASPECT, naflex_grid
from naflex_export.batch import Batch, noise_batch
from naflex_export.bench.timing import interleave, peak_memory
from naflex_export.graph.build_settings import BuildSettings
from naflex_export.graph.trace import trace
from naflex_export.grid import Bucket, Grid
from naflex_export.models import DEFAULT_MODEL, adapter_of, packed_of
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

Session = tuple[Any, InputFormat]
Feed = dict[str, Any]


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
        layouts = {"padded": adapter, "packed": packed_of(adapter)}
        for layout, made in layouts.items():
            export(made, bucket, Path(folder) / layout)
        sessions = {layout: (_opened(Path(folder) / layout), made.input_format) for layout, made in layouts.items()}
        for share in asked.padding or (0.2, 0.03):
            batches = [drawn(bucket, share, number, adapter.token_width) for number in range(asked.rounds + 1)]
            rows = measured(adapter, sessions, Path(folder), batches)
            append(RESULTS / "bench_packed.csv", FIELDS, [{**row, "model": asked.model} for row in rows])
            for row in rows:
                print(row)


def export(adapter: ModelAdapter, bucket: Bucket, folder: Path) -> None:
    """Write a model's features as an ONNX file into a folder, which is made."""
    folder.mkdir()
    onnx.build(trace(adapter, [bucket]), folder, BuildSettings())


def _opened(folder: Path) -> Any:
    return open_session(folder / FILE, torch.device("cpu"))


def drawn(bucket: Bucket, share: float, seed: int, width: int) -> Batch:
    """Return a batch with a share of padding, within 0.005: one image is full, the others are less."""
    for attempt in itertools.count():
        draw = random.Random(f"{share} {seed} {attempt}")
        grids = [naflex_grid(1.0, bucket.tokens)]
        while len(grids) < bucket.batch[1]:
            budget = round(bucket.tokens * (1 - 2 * share * draw.random()))
            grids.append(naflex_grid(MAX_ASPECT ** draw.uniform(-1, 1), budget))
        padding = 1 - sum(height * width for height, width in grids) / (len(grids) * bucket.tokens)
        if abs(padding - share) <= 0.005:
            return noise_batch(f"{share} {seed}", [Grid(*grid) for grid in grids], bucket.tokens, width)
    raise AssertionError("the attempts have no end")


def peak(folder: Path, feeds: list[Feed]) -> int | None:
    """Return the most bytes that an export's first calls hold at a time beyond what its session held before them.

    Args:
        folder: of the export.
        feeds: what each call is given.
    """
    session = _opened(folder)
    return peak_memory(lambda: [session.run(["features"], feed) for feed in feeds])


def measured(
    adapter: ModelAdapter, sessions: dict[str, Session], folder: Path, batches: list[Batch]
) -> list[dict[str, str]]:
    """Return a row for each layout.

    Args:
        adapter: of the eager model.
        sessions: to time, by layout.
        folder: that holds the folder of each layout's export.
        batches: one for the warmup and one for each round, padded to the same size.
    """
    (images, tokens), rounds = batches[0].patch_valid.shape, len(batches) - 1
    feeds = {layout: [_feed(made, batch) for batch in batches] for layout, (_, made) in sessions.items()}
    current = {layout: of_layout[0] for layout, of_layout in feeds.items()}

    def prepare(number: int) -> None:
        for layout, of_layout in feeds.items():
            current[layout] = of_layout[number]

    def call(layout: str) -> Any:
        return sessions[layout][0].run(["features"], current[layout])

    timings = interleave({layout: lambda layout=layout: call(layout) for layout in sessions}, rounds, prepare=prepare)
    with torch.no_grad():
        wanted = adapter.model(*adapter.input_format.arrange(batches[-1]))
    padding = 1 - sum(float(batch.patch_valid.float().mean()) for batch in batches[1:]) / rounds
    rows = []
    for layout in sessions:
        found = torch.from_numpy(call(layout)[0])
        with multiprocessing.get_context("spawn").Pool(1) as process:
            held = process.apply(peak, (folder / layout, feeds[layout][1:]))
        error = float((found - wanted).norm() / wanted.norm())
        rows.append(
            {
                **about("cpu", PACKAGES),
                "images": str(images),
                "tokens": str(tokens),
                "padding": text(padding, 3),
                "layout": layout,
                "rounds": str(rounds),
                "ms": text(timings[layout].ms, 1),
                "spread": text(timings[layout].spread, 3),
                "speedup": text(timings["padded"].ratio_to(timings[layout]), 3),
                "peak_mib": mib(held),
                "error": f"{error:.1e}",
            }
        )
    return rows


def _feed(format_: InputFormat, batch: Batch) -> Feed:
    named = zip(format_.names, format_.arrange(batch), strict=True)
    return {name: tensor.numpy() for name, tensor in named}


if __name__ == "__main__":
    main()
