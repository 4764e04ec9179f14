"""What a pack says to someone who ports the model to another language."""

from __future__ import annotations

from typing import Any

from naflex_export.accuracy.faults import patch_side, pixel_statistics
from naflex_export.embed.preprocessing import PIL, TORCHVISION, Preprocessing
from naflex_export.errors import NaflexExportError


def readme_of(manifest: dict[str, Any]) -> str:
    """Return the README of a pack, from its manifest."""
    model, preprocessing = manifest["model"], manifest["preprocessing"]
    limits = manifest["limits"]["float32"]
    cases = "\n".join(
        f"| `{name}` | {len(case['grids'])} | {case['tokens']} | "
        f"{', '.join('x'.join(map(str, grid)) for grid in case['grids'][:6])} | {'yes' if case['stages'] else ''} |"
        for name, case in manifest["cases"].items()
    )
    faults = "\n".join(f"- `{name}`: {found['says']}" for name, found in manifest["fingerprints"].items())
    title = model["name"] or model.get("architecture") or "a NaFlex vision transformer"
    names = ", ".join(f"`{name}`" for name in manifest["inputs"])
    l2, share = limits["relative_l2"], limits["max_share"]
    side, (mean, deviation) = patch_side(preprocessing), pixel_statistics(preprocessing)
    resize = _resize_of(preprocessing)
    mode = model.get("pos_embed_mode", "bilinear")
    return f"""# Golden pack: {title}

Inputs and right answers of one model, computed by the untouched model in float32 on a CPU. Nothing in here is code. Use
it to see whether an implementation in any language gives the same numbers, and if not, where and why.

## What is in it

- `cases/<case>/inputs/*.npy`: {names}. All arrays are little-endian .npy files in C order.
- `cases/<case>/expected/features.npy`: [images, features] float32.
- `cases/<case>/expected/stages/<module>.npy`: what each module gives, in the order of `cases.<case>.stages` of the
  manifest: the embedding that the first block gets, each block with its attention and its MLP, the last norm, pooling.
- `photos/`: the photos that the cases `photos` and `turned-photo` were made of, in the order that the manifest says.
  The second lies on its side, and its EXIF data say so.
- `fingerprints/<fault>/<case>.npy`: the features that a typical fault gives in place of the right ones.
- `manifest.json`: the model, its preprocessing, the limits and why, eager's own error in float16 and bfloat16 (noise
  floors), versions, and size and sha256 of every file.

| case | images | tokens | grids (height x width, in patches) | stages |
|---|---|---|---|---|
{cases}

## The inputs

A patch is {side} pixels a side, flattened by row, column, channel (red, green, blue). Pixels are scaled to 0 to 1, less
the mean {mean}, divided by {deviation}. Tokens go row by row through an image's grid. Padding comes behind them, holds
zeros, and must change nothing.

## From a photo to patches

Turn a photo upright, as its EXIF data say. Its grid is the largest that keeps its shape within 256 patches: with a
ratio r, height = ceil(H * r / {side}) and width = ceil(W * r / {side}) for a photo of H x W pixels, where r is found by
bisection from 1e-6 to 100 until the interval is below 1e-5, and its lower end taken. The photo is resized to
height * {side} by width * {side} pixels{resize}. Then it is cut into patches.

## Positions

The learned position embedding is resized to each image's own grid, which is where most ports go wrong. The manifest has
this model's options ({mode}). With antialias a target position i reads the source around
(i + 0.5) * source / target with a triangle (bilinear) or Keys' cubic with a = -0.5 (bicubic), widened by
source / target where the target is smaller, and the weights are divided by their sum. Without antialias torch's cubic
has a = -0.75.

## What to answer

Write `ANSWERS/<case>.npy` with the features of each case that you can run, or one .safetensors file with a tensor for
each case. `ANSWERS/<case>/stages/<module>.npy` with the names above lets the judge say where you first deviate. Then

    naflex-gate judge PACK ANSWERS
    naflex-gate judge PACK --onnx model.onnx
    naflex-gate judge PACK --command "./my_port {{photo}}"
    naflex-gate judge PACK --url http://localhost:8000/v1/embeddings
    naflex-gate judge PACK --url http://localhost:8000/v2/models/NAME

or compare yourself: the norm of the difference over the norm of what is expected may be {l2:g} for each
case, and the largest difference {share:g} of the largest value. A photo that you resize yourself may be off by
more, for libraries resize differently: the answers to the other cases do not depend on that.

## Faults that it knows

{faults}
"""


def _resize_of(preprocessing: dict[str, Any]) -> str:
    """Return by what a photo is resized, in words; nothing where this release does not know it."""
    try:
        said = Preprocessing.of(preprocessing)
    except NaflexExportError:
        return ""
    by = {PIL: "Pillow's `Image.resize`", TORCHVISION: "torchvision's resize of uint8 tensors, antialiased"}[
        said.resizer
    ]
    return f" by {by}, {said.interpolation}, and rounded to 8 bits"
