"""Train a small NaFlexVit on handwritten digits, export it to each target and dtype, and see what each artifact reads.

    python tools/digits.py                      # every target and dtype, and write tools/results/digits.csv
    python tools/digits.py --target onnx        # one target, printed only

The digits are scikit-learn's: 1797 images of 8x8 pixels. Each is laid out anew in a grid of its own, from 3x4 to 8x4
patches of 2x2 pixels, stretched to fit. So a model reads them only if its position embedding, of 8x8 cells, is resized
for each image as it was in training.

Training is on the untouched timm model, and so is the accuracy that the artifacts' are compared with: a fault of
ours would show. Artifacts are made by the command line, from a safetensors file.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from functools import cache
from pathlib import Path
from typing import Any

import markdown_text
import record
import timm
import torch
from click.testing import CliRunner
from markdown_text import section
from PIL import Image
from rich.console import Console
from safetensors.torch import save_file
from sklearn.datasets import load_digits
from timm.data.naflex_dataset import NaFlexCollator
from timm.data.naflex_transforms import patchify_image
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.lr_scheduler import OneCycleLR

from naflex_export.accuracy.metrics import LIMITS
from naflex_export.batch import Batch
from naflex_export.cli.export import export_command
from naflex_export.grid import Bucket, Grid
from naflex_export.precision import DTYPES, Precision
from naflex_export.serving.load import load
from naflex_export.serving.manifest import Manifest
from naflex_export.targets import NAMES, target_named

RESULTS = record.RESULTS / "digits.csv"
PACKAGES = ("torch", "timm", "onnxruntime-gpu", "tensorrt-rtx", "scikit-learn")
DOCS = record.ROOT / "docs" / "gate.md"

PATCH = 2
BUCKET = Bucket(36, (1, 8, 200))
GRIDS = tuple(Grid(height, width) for height in range(3, 9) for width in range(3, 9) if height * width <= BUCKET.tokens)
MARGIN = {"float32": 0, "float16": 2, "bfloat16": 6}
"""How many of the 597 test images an artifact may take for another digit than eager does, right or wrong.

None in float32, and 1 % in bfloat16: in bfloat16 eager itself takes up to 2 for another than in float32, in float16
none. Each of them must be one whose two highest classes tie.
"""

NUM_TRAINED_ON = 1200
STEPS = 700
BATCH = 32


def untrained() -> nn.Module:
    """Return the model before training: 64 wide, 2 blocks, a register, masked average pooling, 10 classes."""
    torch.manual_seed(0)
    return timm.create_model(
        "naflexvit_base_patch16_gap",
        patch_size=PATCH,
        embed_dim=64,
        depth=2,
        num_heads=2,
        mlp_ratio=2.0,
        reg_tokens=1,
        init_values=None,  # a layer scale of 1e-5 would take longer to grow than there is time
        pos_embed_grid_size=(8, 8),
        num_classes=10,
    )


def trained(seed: int = 0) -> nn.Module:
    """Return the model after 700 steps of 32 digits, in eval mode: it reads about 95 % of digits never seen."""
    model, (digits, labels) = untrained().train(), _split()[0]
    draw = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3, weight_decay=0.05)
    schedule = OneCycleLR(optimizer, max_lr=4e-3, total_steps=STEPS, pct_start=0.2)
    for _ in range(STEPS):
        picked = torch.randint(len(digits), (BATCH,), generator=draw)
        batch = laid_out("train", digits[picked], draw)
        logits = model(batch.patches, batch.patch_coord, batch.patch_valid)
        optimizer.zero_grad()
        F.cross_entropy(logits, labels[picked], label_smoothing=0.05).backward()
        optimizer.step()
        schedule.step()
    return model.eval()


@cache
def test_set() -> tuple[tuple[Batch, ...], Tensor]:
    """Return the 597 digits never trained on, each laid out in a grid of its own, in 3 batches, and their labels."""
    digits, labels = _split()[1]
    draw = torch.Generator().manual_seed(1)
    batches = [laid_out(f"digits-{number}", part, draw) for number, part in enumerate(digits.split(199))]
    return tuple(batches), labels


def laid_out(name: str, digits: Tensor, draw: torch.Generator) -> Batch:
    """Return digits [B, 8, 8] as a batch padded to the bucket, each stretched to one of `GRIDS` drawn for it."""
    grids = [GRIDS[int(torch.randint(len(GRIDS), (), generator=draw))] for _ in digits]
    items = []
    for digit, grid in zip(digits, grids, strict=True):
        patches, coord, valid = patchify_image(_stretched(digit, grid).expand(3, -1, -1), (PATCH, PATCH))
        items.append(({"patches": patches, "patch_coord": coord, "patch_valid": valid}, 0))
    collated, _ = NaFlexCollator(max_seq_len=BUCKET.tokens)(items)
    return Batch(name, collated["patches"], collated["patch_coord"], collated["patch_valid"], tuple(grids))


def write_photos(folder: Path, count: int = 8) -> None:
    """Write digits as PNG files of varied aspect ratios, for the gate to judge on."""
    folder.mkdir()
    digits, grids = _split()[1][0][:count], test_set()[0][0].grids[:count]
    for number, (digit, grid) in enumerate(zip(digits, grids, strict=True)):
        pixels = ((_stretched(digit, grid) + 1) * 127.5).round().to(torch.uint8)
        Image.fromarray(pixels.numpy()).save(folder / f"digit{number}.png")


def _stretched(digit: Tensor, grid: Grid) -> Tensor:
    """Return a digit [8, 8] as pixels of a grid's height and width."""
    size = (PATCH * grid.height, PATCH * grid.width)
    return F.interpolate(digit[None, None], size, mode="bilinear", antialias=True)[0, 0]


@cache
def _split() -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Return images [_, 8, 8] from -1 to 1 and labels, to train on and to test on, in an order drawn once."""
    found = load_digits()
    order = torch.randperm(len(found.target), generator=torch.Generator().manual_seed(0))
    digits, labels = torch.tensor(found.images, dtype=torch.float32)[order] / 8 - 1, torch.tensor(found.target)[order]
    count = NUM_TRAINED_ON
    return (digits[:count], labels[:count]), (digits[count:], labels[count:])


def logits_of(call: Callable[..., Any], dtype: str = "float32") -> Tensor:
    """Return the logits [597, 10], in float32, of a model or Runner for the test set; its patches come in a dtype."""
    found = []
    for batch in test_set()[0]:
        with torch.no_grad():
            found.append(
                call(batch.patches.to(Precision(dtype).torch_dtype), batch.patch_coord, batch.patch_valid).float()
            )
    return torch.cat(found)


def num_right(logits: Tensor) -> int:
    """Return how many of the test set's digits are read right."""
    return int((logits.argmax(dim=1) == test_set()[1]).sum())


def ties(logits: Tensor, dtype: str) -> Tensor:
    """Return [B] bool, the images whose two highest classes tie in a dtype: rounding may put either on top.

    The gate's own rule for `top1_agreement`: they differ by no more than three times what the difference of two classes
    is off by, where every value is off by what `relative_l2` allows.
    """
    first_B, second_B = logits.topk(2, dim=1).values.unbind(1)
    return first_B - second_B <= LIMITS[dtype].tie * logits.square().mean().sqrt()


@dataclass(frozen=True)
class Reading:
    """What an artifact reads of the test set, beside the untouched eager model in float32.

    Attributes:
        target, dtype: the artifact's.
        judged: what ran.
        images: digits in the test set.
        eager_right: how many of them eager reads right.
        right: how many the artifact does.
        changed: images that the artifact takes for another digit than eager does, right or wrong.
        changed_untied: those of them whose two highest classes do not tie for eager; none is allowed.
        tied: images whose two highest classes tie.
        relative_l2: error of the logits.
    """

    target: str
    dtype: str
    judged: str
    images: int
    eager_right: int
    right: int
    changed: int
    changed_untied: int
    tied: int
    relative_l2: float

    @classmethod
    def of(cls, logits: Tensor, expected: Tensor, target: str, dtype: str, judged: str) -> Reading:
        """Return the reading for an artifact's logits and eager's, both [597, 10]."""
        changed_B, tied_B = logits.argmax(dim=1) != expected.argmax(dim=1), ties(expected, dtype)
        return cls(
            target=target,
            dtype=dtype,
            judged=judged,
            images=len(logits),
            eager_right=num_right(expected),
            right=num_right(logits),
            changed=int(changed_B.sum()),
            changed_untied=int((changed_B & ~tied_B).sum()),
            tied=int(tied_B.sum()),
            relative_l2=float((logits - expected).norm() / expected.norm()),
        )

    @property
    def holds(self) -> bool:
        """Whether the artifact reads what eager does, but for ties, and no more of them than the margin."""
        return self.changed_untied == 0 and self.changed <= MARGIN[self.dtype]

    @property
    def line(self) -> str:
        """The reading in a line."""
        return (
            f"{self.target} {self.dtype}: {self.right} of {self.images} right ({self.right / self.images:.1%}), eager "
            f"{self.eager_right}; {self.changed} read otherwise, {self.tied} tie; judged: {self.judged}"
        )


def export(target: str, dtype: str, weights: Path, photos: Path, out: Path) -> None:
    """Export the trained model by the command line.

    Raises:
        RuntimeError: the command failed; the message is what it printed.
    """
    arguments = ["digits:untrained", "--weights", weights, "--target", target, "--dtype", dtype]
    arguments += ["--bucket", BUCKET, "--images", photos, "--out", out]
    done = CliRunner().invoke(export_command, [str(argument) for argument in arguments])
    if done.exit_code != 0:
        raise RuntimeError(f"naflex-export ended with {done.exit_code}: {done.output}") from done.exception


def opened(artifact: Path) -> tuple[Callable[..., Any], str]:
    """Return what can be run of an artifact on this machine, and what that is, as its manifest says it."""
    manifest = Manifest.read(artifact)
    replacement = target_named(manifest.target).stand_in(artifact, manifest)
    return load(artifact) if replacement is None else replacement.runner, manifest.gate["judged"]


def read(artifact: Path, expected: Tensor) -> Reading:
    """Return what an artifact reads, beside eager's logits."""
    run, judged = opened(artifact)
    manifest = Manifest.read(artifact)
    return Reading.of(logits_of(run, manifest.dtype), expected, manifest.target, manifest.dtype, judged)


def main() -> None:
    """Train, export to the targets and dtypes asked for, print what each artifact reads, and write it for all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", action="append", choices=NAMES, help="only this one; may be repeated")
    parser.add_argument("--dtype", action="append", choices=tuple(DTYPES), help="only this one; may be repeated")
    asked = parser.parse_args()
    console = Console()
    model = trained()
    expected = logits_of(model)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        weights, photos = folder / "digits.safetensors", folder / "photos"
        save_file(model.state_dict(), weights)
        write_photos(photos)
        readings = []
        for target in asked.target or NAMES:
            for dtype in asked.dtype or DTYPES:
                export(target, dtype, weights, photos, folder / f"{target}-{dtype}")
                readings.append(read(folder / f"{target}-{dtype}", expected))
                console.print(readings[-1].line, highlight=False, soft_wrap=True)
    if not asked.target and not asked.dtype:
        write(readings)


def write(readings: Sequence[Reading]) -> None:
    """Add the readings to `tools/results/digits.csv`, and put them into docs/gate.md as a table."""
    about = record.about("cpu", PACKAGES)
    rows = [{**about, **asdict(reading), "relative_l2": f"{reading.relative_l2:.2e}"} for reading in readings]
    record.append(RESULTS, (*about, *(field.name for field in fields(Reading))), rows)
    DOCS.write_text(section(DOCS.read_text(), "<!-- digits -->", "<!-- end of digits -->", table(readings)))


def table(readings: Sequence[Reading]) -> str:
    """Return the readings as a Markdown table, eager's own first."""
    first = readings[0]
    rows = [("eager", "float32", str(first.eager_right), f"{first.eager_right / first.images:.1%}", "", "", "")]
    for reading in readings:
        share, error = f"{reading.right / reading.images:.1%}", f"{reading.relative_l2:.1e}"
        counts = str(reading.right), share, str(reading.changed), error
        rows.append((reading.target, reading.dtype, *counts, reading.judged))
    head = ("target", "dtype", f"right of {first.images}", "accuracy", "read otherwise", "error of logits", "what ran")
    return markdown_text.table(head, rows)


if __name__ == "__main__":
    main()
