"""Train a small SigLIP 2 on drawn shapes and their captions, export both towers, and classify drawings never seen.

    python tools/zero_shot.py                    # train, export, and write tools/results/zero_shot.csv
    python tools/zero_shot.py --target onnx      # one target, printed only

A drawing shows one of 4 shapes in one of 6 colours somewhere on a noisy ground, in a picture of an aspect ratio of its
own; its caption says which, in one of a few ways. Nothing but the pairs teaches the model, by SigLIP's own loss, so
what it says of a drawing and the 24 captions is zero-shot classification as it is with photos.

Training is on the untouched transformers model, and so is the accuracy that the artifacts' are compared with. Artifacts
are made by the command line from a folder that holds model, image processor and a tokenizer that is trained here too.
"""

from __future__ import annotations

import argparse
import itertools
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import markdown_text
import numpy as np
import record
import torch
from click.testing import CliRunner
from markdown_text import section
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from rich.console import Console
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from torch import Tensor
from torch.nn import functional as F
from torch.optim.lr_scheduler import OneCycleLR
from transformers import PreTrainedTokenizerFast, Siglip2Config, Siglip2ImageProcessor, Siglip2Model

from naflex_export.cli.export import export_command
from naflex_export.embed.classify import Classifier
from naflex_export.grid import Bucket

RESULTS = record.RESULTS / "zero_shot.csv"
PACKAGES = ("torch", "transformers", "tokenizers", "onnxruntime-gpu")
DOCS = record.ROOT / "docs" / "zero_shot.md"
BEGIN, END = "<!-- zero_shot -->", "<!-- /zero_shot -->"

RUNS = (("onnx", "float32"), ("onnx", "float16"), ("aot", "float32"), ("compile", "float32"))
"""Targets and dtypes that a CPU runs itself."""

COLOURS = {
    "red": (214, 40, 40),
    "green": (42, 157, 73),
    "blue": (38, 84, 214),
    "yellow": (240, 205, 30),
    "purple": (130, 50, 170),
    "white": (245, 245, 245),
}
SHAPES = ("square", "cross", "ring", "ladder")
PAIRS = tuple(itertools.product(COLOURS, SHAPES))
"""Colour and shape of each of the 24 captions."""

WAYS = ("a photo of a {}", "a drawing of a {}", "there is a {} on a grey ground", "{}", "a picture that shows a {}")
"""How a caption may say it. The one that is asked with, `TEMPLATE`, is among them."""

TEMPLATE = "a photo of a {}"

PATCH, LENGTH, TOKENS = 8, 16, 200
BUCKET = Bucket(48, (1, 8, 32))
STEPS, BATCH, WARM = 1500, 32, 0.15
NUM_TESTED = 480


def drawing(pair: tuple[str, str], draw: np.random.Generator) -> Image.Image:
    """Return a picture of a shape in a colour, of a size, place and aspect ratio drawn for it."""
    colour, shape = pair
    width, height = (int(side) for side in draw.integers(40, 97, 2))
    ground = draw.normal(draw.uniform(70, 130), 18, (height, width, 3)).clip(0, 255).astype(np.uint8)
    picture = Image.fromarray(ground)
    size = float(draw.uniform(0.7, 0.95)) * min(width, height)
    left, top = float(draw.uniform(0, width - size)), float(draw.uniform(0, height - size))
    right, bottom, pen = left + size, top + size, ImageDraw.Draw(picture)
    noise = draw.integers(-12, 13, 3)
    fill = tuple(int(value) for value in (np.array(COLOURS[colour]) + noise).clip(0, 255))
    third, fifth = size / 3, size / 5
    if shape == "square":
        pen.rectangle((left, top, right, bottom), fill=fill)
    elif shape == "cross":
        pen.rectangle((left + third, top, right - third, bottom), fill=fill)
        pen.rectangle((left, top + third, right, bottom - third), fill=fill)
    elif shape == "ring":
        pen.ellipse((left, top, right, bottom), outline=fill, width=round(fifth))
    else:
        for step in (0, 2, 4):
            pen.rectangle((left, top + step * fifth, right, top + (step + 1) * fifth), fill=fill)
    return picture


def tokenizer() -> PreTrainedTokenizerFast:
    """Return a tokenizer that is trained on the captions."""
    return tokenizer_of([way.format(f"{colour} {shape}") for way in WAYS for colour, shape in PAIRS], TOKENS)


def tokenizer_of(texts: Sequence[str], tokens: int, names: Sequence[str] = ("input_ids",)) -> PreTrainedTokenizerFast:
    """Return a tokenizer like SigLIP 2's: lower case, pairs of bytes, an end token, padding on the right.

    Args:
        texts: that it is trained on.
        tokens: that the model has.
        names: of what it makes of a text.
    """
    made = Tokenizer(models.BPE(unk_token="<unk>"))
    made.normalizer = normalizers.Sequence([normalizers.Lowercase(), normalizers.Replace(" ", "▁")])
    made.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
    made.decoder = decoders.Replace("▁", " ")
    special = ["<pad>", "<eos>", "<bos>", "<unk>"]
    trainer = trainers.BpeTrainer(vocab_size=tokens - 10, special_tokens=special, show_progress=False)
    made.train_from_iterator(texts, trainer)
    made.post_processor = processors.TemplateProcessing(single="$A <eos>", special_tokens=[("<eos>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=made,
        pad_token="<pad>",
        eos_token="<eos>",
        bos_token="<bos>",
        unk_token="<unk>",
        padding_side="right",
        model_input_names=list(names),
    )


def untrained() -> Siglip2Model:
    """Return the model before training: both towers 96 wide, of 2 blocks, with patches of 8 pixels."""
    torch.manual_seed(0)
    shared = {"hidden_size": 96, "intermediate_size": 192, "num_hidden_layers": 2, "num_attention_heads": 4}
    text = {"max_position_embeddings": LENGTH, "vocab_size": TOKENS, "pad_token_id": 0, "eos_token_id": 1}
    vision = {**shared, "patch_size": PATCH, "num_patches": 36}
    model = Siglip2Model(Siglip2Config(vision_config=vision, text_config={**shared, **text, "bos_token_id": 2}))
    with torch.no_grad():
        model.logit_scale.fill_(2.3)  # as SigLIP begins: logits of 10 times the cosine; less 5, for batches are small
        model.logit_bias.fill_(-5.0)
    return model


def images_of(pictures: Sequence[Image.Image]) -> dict[str, Tensor]:
    """Return pictures as the model's inputs, by transformers' own processor."""
    made = Siglip2ImageProcessor()(
        images=list(pictures), patch_size=PATCH, max_num_patches=BUCKET.tokens, return_tensors="pt"
    )
    return dict(made)


def tokens_of(made: PreTrainedTokenizerFast, texts: Sequence[str]) -> Tensor:
    """Return texts as the text tower's input, by transformers' own call."""
    return made(list(texts), padding="max_length", truncation=True, max_length=LENGTH, return_tensors="pt")["input_ids"]


def trained(steps: int = STEPS, seed: int = 0) -> Siglip2Model:
    """Return the model after as many steps of 32 pairs by SigLIP's loss, in eval mode.

    Args:
        steps: of training.
        seed: of drawings and captions.
    """
    model, words = untrained().train(), tokenizer()
    draw = np.random.default_rng(seed)
    numbers = [model.logit_scale, model.logit_bias]  # of their own size, and slow to move at the rate of weights
    weights = [one for one in model.parameters() if all(one is not number for number in numbers)]
    groups = [{"params": weights}, {"params": numbers, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=2e-3, weight_decay=0.01)
    schedule = OneCycleLR(optimizer, max_lr=[2e-3, 3e-2], total_steps=steps, pct_start=WARM)
    for _ in range(steps):
        picked = draw.integers(0, len(PAIRS), BATCH)
        images = images_of([drawing(PAIRS[one], draw) for one in picked])
        ways = draw.integers(0, len(WAYS), BATCH)
        texts = [WAYS[way].format(" ".join(PAIRS[one])) for way, one in zip(ways, picked, strict=True)]
        logits = model(**images, input_ids=tokens_of(words, texts)).logits_per_text
        same = torch.from_numpy(picked[:, None] == picked[None])  # several pictures of a batch may show the same
        optimizer.zero_grad()
        (-F.logsigmoid(torch.where(same, logits, -logits)).sum(dim=1).mean()).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    return model.eval()


def test_set(count: int = NUM_TESTED) -> tuple[list[Image.Image], NDArray[np.int64]]:
    """Return drawings never trained on, as many of each pair, and which pair each shows."""
    draw = np.random.default_rng(10_000)
    shown = np.arange(count) % len(PAIRS)
    return [drawing(PAIRS[one], draw) for one in shown], shown


LABELS = tuple(" ".join(pair) for pair in PAIRS)


def eager_logits(model: Siglip2Model, pictures: Sequence[Image.Image]) -> NDArray[np.float64]:
    """Return the logits [pictures, 24] that the untouched model gives, by its own call."""
    ids, found = tokens_of(tokenizer(), [TEMPLATE.format(label) for label in LABELS]), []
    with torch.no_grad():
        for start in range(0, len(pictures), 32):
            given = model(**images_of(pictures[start : start + 32]), input_ids=ids)
            found.append(given.logits_per_image.double().numpy())
    return np.concatenate(found)


def save(model: Siglip2Model, folder: Path) -> None:
    """Write model, tokenizer and image processor as transformers saves them."""
    model.save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    Siglip2ImageProcessor().save_pretrained(folder)


def export(folder: Path, target: str, dtype: str, photos: Path, out: Path) -> None:
    """Export the saved model with both towers by the command line.

    Args:
        folder: of the model.
        target: to build for.
        dtype: to compute in.
        photos: to judge on.
        out: of the artifact.

    Raises:
        RuntimeError: the command failed; the message is what it printed.
    """
    arguments = [f"hf:{folder}", "--tower", "image,text", "--target", target, "--dtype", dtype]
    arguments += ["--bucket", str(BUCKET), "--images", str(photos), "--out", str(out), "--quick"]
    done = CliRunner().invoke(export_command, arguments)
    if done.exit_code != 0:
        raise RuntimeError(f"naflex-export ended with {done.exit_code}: {done.output}") from done.exception


@dataclass(frozen=True)
class Reading:
    """What an artifact says of the test set, beside the untouched eager model in float32.

    Attributes:
        target, dtype: the artifact's.
        images: drawings in the test set.
        eager_right: of how many of them eager's likeliest caption is the right one.
        right: of how many the artifact's is.
        changed: drawings for which the artifact's likeliest caption is another than eager's, right or wrong.
        largest: the largest difference of any probability.
    """

    target: str
    dtype: str
    images: int
    eager_right: int
    right: int
    changed: int
    largest: float

    @property
    def line(self) -> str:
        """The reading in a line."""
        return (
            f"{self.target} {self.dtype}: {self.right} of {self.images} right, eager {self.eager_right}; "
            f"{self.changed} read otherwise, probabilities within {self.largest:.1e}"
        )


def read(artifact: Path, target: str, dtype: str, pictures: Sequence[Image.Image], expected: Any) -> Reading:
    """Return what an artifact says of drawings, as `naflex-classify` has it, beside eager's logits.

    Args:
        artifact: its folder.
        target: it is for.
        dtype: it computes in.
        pictures: the drawings.
        expected: eager's logits [pictures, 24].
    """
    _, shown = test_set(len(pictures))
    found, probabilities = [], 1 / (1 + np.exp(-expected))
    largest = 0.0
    for row, labels in enumerate(Classifier(artifact, LABELS, TEMPLATE)(list(pictures))):
        if not isinstance(labels, list):
            raise labels
        found.append(LABELS.index(labels[0].label))
        differences = [abs(one.probability - probabilities[row, LABELS.index(one.label)]) for one in labels]
        largest = max(largest, *differences)
    chosen, eager = np.array(found), expected.argmax(axis=1)
    right, eager_right = int((chosen == shown).sum()), int((eager == shown).sum())
    return Reading(target, dtype, len(shown), eager_right, right, int((chosen != eager).sum()), largest)


def main() -> None:
    """Train, export to the targets asked for, print what each artifact reads, and write it for all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", action="append", choices=sorted({target for target, _ in RUNS}))
    parser.add_argument("--steps", type=int, default=STEPS, help="of training")
    asked = parser.parse_args()
    console = Console()
    model = trained(asked.steps)
    pictures, _ = test_set()
    expected = eager_logits(model, pictures)
    readings = []
    with tempfile.TemporaryDirectory() as name:
        folder, photos = Path(name), Path(name) / "photos"
        save(model, folder / "shapes")
        write_photos(pictures, photos)
        for target, dtype in RUNS:
            if asked.target and target not in asked.target:
                continue
            export(folder / "shapes", target, dtype, photos, folder / f"{target}-{dtype}")
            readings.append(read(folder / f"{target}-{dtype}", target, dtype, pictures, expected))
            console.print(readings[-1].line, highlight=False, soft_wrap=True)
    if not asked.target and asked.steps == STEPS:
        write(readings)


def write_photos(pictures: Sequence[Image.Image], folder: Path, count: int = 6) -> None:
    """Write the first drawings as PNG files, for the gate to judge on.

    Args:
        pictures: the drawings.
        folder: to be made.
        count: how many.
    """
    folder.mkdir()
    for number, picture in enumerate(pictures[:count]):
        picture.save(folder / f"drawing{number}.png")


def write(readings: Sequence[Reading]) -> None:
    """Add the readings to `tools/results/zero_shot.csv`, and put them into docs/zero_shot.md as a table."""
    about = record.about("cpu", PACKAGES)
    rows = [{**about, **asdict(reading), "largest": f"{reading.largest:.2e}"} for reading in readings]
    record.append(RESULTS, (*about, *(field.name for field in fields(Reading))), rows)
    DOCS.write_text(section(DOCS.read_text(), BEGIN, END, table(record.read(RESULTS)[-len(readings) :])))


def table(rows: Sequence[dict[str, str]]) -> str:
    """Return rows of the results as a Markdown table, eager's own first."""
    first = rows[0]
    cells = [("eager", "float32", first["eager_right"], _percent(first["eager_right"], first["images"]), "", "")]
    for row in rows:
        share, largest = _percent(row["right"], row["images"]), f"{float(row['largest']):.0e}"
        cells.append((row["target"], row["dtype"], row["right"], share, row["changed"], largest))
    head = ("what ran", "dtype", f"right of {first['images']}", "accuracy", "read otherwise", "probabilities within")
    return markdown_text.table(head, cells)


def _percent(part: str, whole: str) -> str:
    return f"{int(part) / int(whole):.1%}"


if __name__ == "__main__":
    main()
