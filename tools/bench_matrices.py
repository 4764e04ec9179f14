"""Time a base model's embedding on ONNX Runtime with its resampling matrices stored in the graph, and computed by it.

Both graphs run in one process, taking turns, on the same batches of mixed grids; each is compared with eager.

    python tools/bench_matrices.py [--rounds 30] [--out tools/results/matrices.csv]
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import timm
import torch
from record import ABOUT, RESULTS, about, append

from naflex_export.accuracy.reference import SoundInterpolate
from naflex_export.batch import Batch, noise_batch
from naflex_export.bench.timing import interleave
from naflex_export.graph.build_settings import BuildSettings
from naflex_export.graph.onnx_translate import FILE, write_onnx
from naflex_export.graph.trace import capture, example_inputs
from naflex_export.grid import MATRICES, Bucket, Grid
from naflex_export.models import adapter_of
from naflex_export.models.adapter import ModelAdapter
from naflex_export.models.model_sources import randomize
from naflex_export.precision import FLOAT32
from naflex_export.resample.stored import StoredMatrices
from naflex_export.serving.onnx_runner import open_session
from naflex_export.targets.onnx import OPSET

PACKAGES = ("torch", "timm", "onnxruntime-gpu")
COLUMNS = [
    *ABOUT, *PACKAGES, "tokens", "images", "matrices", "nodes", "graph_mib", "median_ms", "q1_ms", "q3_ms", "rounds",
    "ratio_to_computed", "max_error",
]  # fmt: skip
IMAGES = 8


def session_of(adapter: ModelAdapter, tokens: int, matrices: str, folder: Path) -> tuple[Any, int, int]:
    """Return a session of the embedding's graph, its number of nodes, and its size in bytes.

    Args:
        adapter: of the model.
        tokens: of the bucket.
        matrices: "stored" or "computed".
        folder: to write the graph to.
    """
    vectorized = adapter.vectorized()
    example = dict(zip(adapter.input_format.names, example_inputs(adapter, torch.float32), strict=True))
    program = capture(
        vectorized.embedding().eval(),
        example,
        open_dims=adapter.input_format.open_dims,
        buckets=[Bucket(tokens, (1, IMAGES, IMAGES))],
        precision=FLOAT32,
        outputs=["tokens"],
        ignored=("patch_valid",),
        stored=StoredMatrices.of(adapter.position_axes, tokens) if matrices == "stored" else None,
    )
    written = write_onnx(program, folder, BuildSettings(), OPSET)
    return open_session(folder / FILE, torch.device("cpu")), written["nodes"], (folder / FILE).stat().st_size


def measure(adapter: ModelAdapter, tokens: int, rounds: int) -> list[dict[str, Any]]:
    """Return a row for each kind of matrices at a number of tokens."""
    side = int(tokens**0.5)
    grids = [Grid(side, side), Grid(side // 2, side), Grid(1, tokens), Grid(tokens // 3, 3)]
    batch = noise_batch("matrices", grids * (IMAGES // len(grids)), tokens, adapter.token_width)
    with torch.no_grad(), SoundInterpolate():
        (expected,) = adapter.embedding()(*adapter.input_format.arrange(batch))
    rows: list[dict[str, Any]] = []
    runs: dict[str, Callable[[], Any]] = {}
    for matrices in MATRICES:
        with tempfile.TemporaryDirectory() as folder:
            session, nodes, size = session_of(adapter, tokens, matrices, Path(folder))
        feeds = _feeds(session, batch)
        runs[matrices] = lambda session=session, feeds=feeds: session.run(None, feeds)
        found = torch.from_numpy(runs[matrices]()[0])
        error = (found - expected)[batch.patch_valid].abs().max() / expected[batch.patch_valid].abs().max()
        rows.append(
            {"matrices": matrices, "nodes": nodes, "graph_mib": f"{size / 2**20:.1f}", "max_error": f"{error:.1e}"}
        )
    timings = interleave(runs, rounds, warmup=3)
    for row in rows:
        timing = timings[row["matrices"]]
        first, median, third = timing.quartiles_ms
        row |= {"median_ms": f"{median:.2f}", "q1_ms": f"{first:.2f}", "q3_ms": f"{third:.2f}"}
        row |= {"ratio_to_computed": f"{timing.ratio_to(timings['computed']):.2f}", "tokens": tokens, "images": IMAGES}
    return rows


def _feeds(session: Any, batch: Batch) -> dict[str, Any]:
    given = {"patches": batch.patches, "patch_coord": batch.patch_coord, "patch_valid": batch.patch_valid}
    return {value.name: given[value.name].numpy() for value in session.get_inputs()}


def main() -> None:
    """Measure, print, and add the rows to the table."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--rounds", default=30, type=int)
    options.add_argument("--out", default=RESULTS / "matrices.csv", type=Path)
    chosen = options.parse_args()
    model = timm.create_model("naflexvit_base_patch16_siglip", depth=0).eval()
    randomize(model, seed=0)
    adapter = adapter_of(model)
    common = {**about("cpu", PACKAGES), "rounds": chosen.rounds}
    rows = [common | row for tokens in (256, 576, 1024) for row in measure(adapter, tokens, chosen.rounds)]
    append(chosen.out, COLUMNS, rows)
    for row in rows:
        print({name: row[name] for name in COLUMNS[4:]})


if __name__ == "__main__":
    main()
