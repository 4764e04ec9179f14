"""Time the sha256 of photos, which naflex-embed notes, beside the least that is done with them: decoding and resizing.

Photos are JPEGs of grain on a gradient, of a web page's and of a phone's size. Each round hashes one and prepares one,
from the disk's cache, on one thread. What an encoder takes comes on top of it.

    python tools/digest_cost.py        # a minute

Rows go to tools/results/digest_cost.csv, and the newest of them into docs/zero_shot.md.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import torch
from markdown_text import percent, section, table
from PIL import Image
from record import ABOUT, RESULTS, ROOT, about, append, newest, read

from naflex_export.bench.timing import interleave
from naflex_export.embed.photo_digest import digest_of
from naflex_export.embed.preprocess import Preprocessor
from naflex_export.embed.preprocessing import Preprocessing

ROWS, PAGE = RESULTS / "digest_cost.csv", ROOT / "docs" / "zero_shot.md"
FIELDS = (*ABOUT, "torch", "timm", "photo", "kilobytes", "tokens", "sha256_ms", "prepare_ms", "ratio")
BEGIN, END = "<!-- digest_cost -->", "<!-- /digest_cost -->"
SIZES = ((1024, 768), (4032, 3024))
TOKENS, ROUNDS = 256, 25


def main() -> None:
    """Measure, add the rows and write the page."""
    torch.set_num_threads(1)
    said = Preprocessing("timm.data.create_transform", (16, 16), (0.5,) * 3, (0.5,) * 3, "bicubic")
    prepare = Preprocessor(said, ("patches", "patch_coord", "patch_valid"), "float32", TOKENS)
    with tempfile.TemporaryDirectory() as folder:
        for width, height in SIZES:
            path = Path(folder) / f"{width}.jpg"
            photo(width, height).save(path, quality=90)
            append(ROWS, FIELDS, [measured(prepare, path)])
    PAGE.write_text(section(PAGE.read_text(encoding="utf-8"), BEGIN, END, told()), encoding="utf-8")


def measured(prepare: Preprocessor, path: Path) -> dict[str, object]:
    """Return the row of a photo."""
    times = interleave({"sha256": lambda: digest_of(path), "prepare": lambda: prepare.one(path)}, ROUNDS)
    with Image.open(path) as image:
        width, height = image.size
    return {
        **about("cpu"),
        "photo": f"{width}x{height}",
        "kilobytes": path.stat().st_size // 1000,
        "tokens": TOKENS,
        "sha256_ms": f"{times['sha256'].ms:.2f}",
        "prepare_ms": f"{times['prepare'].ms:.1f}",
        "ratio": f"{times['sha256'].ratio_to(times['prepare']):.4f}",
    }


def photo(width: int, height: int) -> Image.Image:
    """Return a picture that compresses about as a photo does."""
    draw = np.random.default_rng(0)
    slope = np.linspace(0, 200, width)[None, :, None] * np.linspace(0.2, 1, height)[:, None, None]
    grain = draw.normal(0, 6, (height, width, 3))
    return Image.fromarray((slope + grain + 20).clip(0, 255).astype(np.uint8))


def told() -> str:
    """Return what the page says of the newest rows."""
    head = ["photo", "its sha256", "decoding and resizing it to 256 tokens", "ratio"]
    rows = newest(read(ROWS), ("device", "threads", "photo"))
    return table(
        head,
        [
            [
                f"{row['photo']}, {int(row['kilobytes']) / 1000:.1f} MB",
                f"{float(row['sha256_ms']):.1f} ms",
                f"{float(row['prepare_ms']):.0f} ms",
                percent(row["ratio"]),
            ]
            for row in rows
        ],
    )


if __name__ == "__main__":
    main()
