"""Time one bucket against planned ones on a stream of images, through the Batcher and an artifact.

The sizes are drawn like those of photos on web pages: icons, thumbnails, pictures in text, and originals. They are not
enlarged; under the rule that enlarges every image to its budget one bucket pads a few percent, and `naflex-plan` says
that more gain nothing. Both get the same images in the same order and run batches as soon as they are full. Processor
time is told beside the clock's, which means little on a machine that others use.

    python tools/bench_buckets.py ARTIFACT [--images 256] [--rounds 3] [--k 4]

Rows go to tools/results/bench_buckets.csv.
"""

from __future__ import annotations

import argparse
import random
import resource
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from record import ABOUT, RESULTS, about, append

from naflex_export.bench.timing import Timing, interleave
from naflex_export.embed.batcher import Batcher
from naflex_export.embed.plan import plan, token_counts
from naflex_export.embed.preprocess import Patches, Preprocessor
from naflex_export.embed.size_rule import grid_of
from naflex_export.grid import Bucket, Grid
from naflex_export.server.vectors import Embed, open_served

FIELDS = (
    *ABOUT, "onnxruntime-gpu", "artifact", "images", "batch", "tokens", "k", "buckets", "padding", "rounds", "seconds",
    "spread", "images_per_s", "speedup", "cpu_seconds", "cpu_speedup",
)  # fmt: skip

KINDS = (  # share, and the range of an image's longer side in pixels
    (0.08, (24, 64)),
    (0.24, (80, 180)),
    (0.26, (180, 400)),
    (0.42, (400, 4000)),
)
ASPECTS = (1.0, 1.0, 4 / 3, 4 / 3, 3 / 2, 3 / 2, 16 / 9, 2.0)


def main(arguments: list[str] | None = None) -> None:
    """Measure, print and add to the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("artifact", type=Path, help="an ONNX artifact of one bucket, whose budget is planned for")
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--k", type=int, default=4, help="buckets to plan")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=RESULTS / "bench_buckets.csv")
    options = parser.parse_args(arguments)
    served = open_served(options.artifact, "cpu")
    tokens = served.manifest.buckets[-1].tokens
    patch_size = served.preprocessor.preprocessing.patch_size
    draw = random.Random(options.seed)
    sample = token_counts((web_size(draw) for _ in range(20_000)), tokens, upscale=False, patch_size=patch_size[0])
    grids = [grid_of(*web_size(draw), patch_size, tokens, upscale=False) for _ in range(options.images)]
    images = drawn(grids, int(served.manifest.inputs[0].shape[-1]), served.preprocessor)
    plans = {k: plan(sample, k, tokens).buckets for k in (1, options.k)}
    cpu: dict[int, float] = dict.fromkeys(plans, 0.0)

    def timed(k: int) -> Callable[[], None]:
        def call() -> None:
            before = resource.getrusage(resource.RUSAGE_SELF)
            stream(served.embed, images, plans[k], options.batch)
            after = resource.getrusage(resource.RUSAGE_SELF)
            cpu[k] += after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

        return call

    found = interleave({str(k): timed(k) for k in plans}, options.rounds, warmup=0, announce=print)
    for k, buckets in plans.items():
        row = {
            **about("cpu", ("onnxruntime-gpu",)),
            "artifact": options.artifact.name,
            **columns(options, found[str(k)], found["1"]),
            "k": k,
            "tokens": tokens,
            "buckets": " ".join(str(bucket.tokens) for bucket in buckets),
            "padding": f"{padding([grid.tokens for grid in grids], buckets):.3f}",
            "cpu_seconds": f"{cpu[k] / options.rounds:.2f}",
            "cpu_speedup": f"{cpu[1] / cpu[k]:.3f}",
        }
        print(", ".join(f"{name} {value}" for name, value in row.items()))
        append(options.out, FIELDS, [row])


def columns(options: argparse.Namespace, timing: Timing, one: Timing) -> dict[str, object]:
    """Return the columns of what was timed, beside one bucket."""
    return {
        "images": options.images,
        "batch": options.batch,
        "rounds": options.rounds,
        "seconds": f"{timing.ms / 1000:.2f}",
        "spread": f"{timing.spread:.3f}",
        "images_per_s": f"{options.images / (timing.ms / 1000):.2f}",
        "speedup": f"{one.ratio_to(timing):.3f}",
    }


def web_size(draw: random.Random) -> tuple[int, int]:
    """Return the height and width of an image as web pages have them."""
    (_, (low, high)) = draw.choices(KINDS, [share for share, _ in KINDS])[0]
    long = low * (high / low) ** draw.random()
    short = long / draw.choice(ASPECTS)
    sides = (round(long), max(1, round(short)))
    return sides if draw.random() < 0.4 else sides[::-1]


def drawn(grids: Sequence[Grid], width: int, preprocessor: Preprocessor) -> list[Patches]:
    """Return images of noise of these grids: what they show takes no more or less time."""
    noise = np.random.default_rng(0)
    return [(noise.standard_normal((grid.tokens, width)).astype(preprocessor.dtype), grid) for grid in grids]


def stream(embed: Embed, images: Sequence[Patches], buckets: Sequence[Bucket], size: int) -> None:
    """Run all images, in batches as the Batcher gives them."""
    batcher: Batcher[Patches] = Batcher(buckets, size, wait=float("inf"))
    for number, image in enumerate(images, start=1):
        batcher.put(image, image[1].tokens)
        while (batch := batcher.take(at_once=number == len(images))) is not None:
            embed(batch.items, batch.bucket.tokens)


def padding(counts: Sequence[int], buckets: Sequence[Bucket]) -> float:
    """Return which share of the tokens is padding, each image in the smallest bucket that holds it."""
    padded = sum(min(bucket.tokens for bucket in buckets if bucket.tokens >= count) for count in counts)
    return 1 - sum(counts) / padded


if __name__ == "__main__":
    main()
