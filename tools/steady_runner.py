"""Calls a runner many times with batches of varying shapes, and writes how memory and latency develop.

    python tools/steady_runner.py --target onnx --count 20000

It adds a row to tools/results/steady_runner.csv for each tenth of the calls: the process's memory at its end, and the
median time of a call. Both are flat where nothing is kept from call to call.
"""

from __future__ import annotations

import csv
import random
import statistics
import tempfile
import time
from pathlib import Path

import click
import torch
from fuzz_requests import BUCKET, artifact

from naflex_export.batch import noise_batch
from naflex_export.grid import Grid

RESULTS = Path(__file__).parent / "results" / "steady_runner.csv"
COLUMNS = ("target", "torch", "calls", "of", "memory_mib", "median_ms")


def memory_mib() -> float:
    """Return the memory that the process holds."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096 / 2**20


@click.command()
@click.option("--target", type=click.Choice(["onnx", "compile", "aot"]), default="onnx")
@click.option("--count", default=20_000, help="Calls in all.")
def main(target: str, count: int) -> None:
    """Call, and add rows."""
    draw, exists = random.Random(0), RESULTS.exists()
    with tempfile.TemporaryDirectory() as folder, RESULTS.open("a", newline="") as file:
        _, runner = artifact(target, Path(folder))
        writer = csv.writer(file)
        if not exists:
            writer.writerow(COLUMNS)
        for tenth in range(1, 11):
            times = []
            for _ in range(count // 10):
                tokens = draw.randint(1, BUCKET.tokens)
                grids = [Grid(1, draw.randint(1, tokens)) for _ in range(draw.randint(1, BUCKET.batch[2]))]
                batch = noise_batch("steady", grids, tokens, 48)
                start = time.perf_counter()
                runner(batch.patches, batch.patch_coord, batch.patch_valid)
                times.append(1000 * (time.perf_counter() - start))
            figures = (f"{memory_mib():.0f}", f"{statistics.median(times):.2f}")
            writer.writerow([target, torch.__version__, count * tenth // 10, count, *figures])
            file.flush()
            print(f"{target}: {count * tenth // 10} calls, {figures[0]} MiB, {figures[1]} ms a call", flush=True)


if __name__ == "__main__":
    main()
