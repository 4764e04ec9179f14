"""The golden photo at an export, which makes it, and before the gate, beside what the library makes of it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from naflex_export.accuracy.photos import load_photos
from naflex_export.accuracy.results import GOLDEN as CASE
from naflex_export.embed import golden
from naflex_export.embed.decode import decoded, opened
from naflex_export.embed.golden import Golden
from naflex_export.embed.preprocess import Preprocessor
from naflex_export.embed.preprocessing import PIL
from naflex_export.errors import NaflexExportError
from naflex_export.grid import Grid
from naflex_export.models.adapter import ModelAdapter
from naflex_export.serving.manifest import Manifest

PICTURE = "chelsea.jpg"
"""Of the photos that ship with the package."""

MOST_TOKENS = 64
"""Of the photo: enough to show any fault, and few bytes."""


@dataclass(frozen=True)
class Judged:
    """What was found of a golden photo.

    Attributes:
        said: in words, for a report.
        problems: what is wrong; empty where nothing is.
    """

    said: str
    problems: tuple[str, ...] = ()


def add(folder: Path, manifest: Manifest) -> None:
    """Write the golden photo into an artifact's folder; nothing where its preprocessing is none that this release has.

    Args:
        folder: the artifact's, its manifest yet to be written.
        manifest: its draft.
    """
    preprocessor = _preprocessor_of(manifest)
    if isinstance(preprocessor, Preprocessor):
        photo = golden.drawn(load_photos().images[PICTURE])
        golden.write(made(photo, preprocessor), folder)


def made(photo: bytes, preprocessor: Preprocessor) -> Golden:
    """Return a photo with what a preprocessor makes of it.

    There are never more tokens than the photo has without being enlarged: with so many it is the same to one that
    enlarges photos, as the library does that it is compared with, and to one that does not.
    """
    sides = zip(golden.SIZE, preprocessor.preprocessing.patch_size, strict=True)
    tokens = min(preprocessor.tokens, MOST_TOKENS, math.prod(max(side // size, 1) for side, size in sides))
    return Golden(photo, *preprocessor.one(photo, tokens), tokens)


def judge(found: Golden | None, manifest: Manifest, adapter: ModelAdapter) -> Judged:
    """Return how an artifact's preprocessing compares with the library's, on its golden photo.

    The library is given the photo as RGB and upright, which is what it takes.

    Args:
        found: the artifact's, as `golden.read` gave it.
        manifest: the artifact's.
        adapter: of the reference, for the artifact's patch size.
    """
    preprocessor = _preprocessor_of(manifest)
    if isinstance(preprocessor, str):
        problem = f"{CASE}: preprocessed as the manifest says, it cannot be: {preprocessor}"
        return Judged(f"not compared: {preprocessor}", () if found is None else (problem,))
    if found is None:
        return Judged("not compared: the artifact has no golden photo")
    upright = decoded(opened(found.photo, preprocessor.policy), preprocessor.policy)
    expected = _of_library(upright, found.tokens, adapter, preprocessor.dtype)
    own = found.difference(*preprocessor.one(found.photo, found.tokens))
    problems = []
    if own:
        problems.append(f"{CASE}: preprocessed as the manifest says, {own} from the artifact's own tensors")
    library = preprocessor.preprocessing.library
    difference = found.difference(*expected)
    if difference and not _is_rounding(found, expected, preprocessor):
        problems.append(f"{CASE}: preprocessed by {library}, {difference} from the artifact's own tensors")
    same = "within one level of" if difference else "bit for bit those of"
    said = f"the golden photo's tensors are {same} {library}"
    return Judged(said if not problems else "the golden photo's tensors are wrong", tuple(problems))


def _preprocessor_of(manifest: Manifest) -> Preprocessor | str:
    """Return the preprocessor that a manifest describes, or why this release has none of its kind."""
    try:
        return Preprocessor.of_manifest(manifest)
    except NaflexExportError as error:
        return str(error)


def _of_library(
    upright: Image.Image, tokens: int, adapter: ModelAdapter, dtype: np.dtype[np.floating]
) -> tuple[np.ndarray, Grid]:
    made = adapter.transform(tokens)(upright)
    height, width = (made["patch_coord"].amax(dim=0) + 1).tolist()
    patches: np.ndarray = made["patches"].numpy().astype(dtype)
    return patches, Grid(height, width)


def _is_rounding(found: Golden, expected: tuple[np.ndarray, Grid], preprocessor: Preprocessor) -> bool:
    """Return whether a library differs by one level of a pixel, on a machine where torchvision rounds otherwise.

    Without AVX2 torch resizes uint8 images by another path.
    """
    patches, grid = expected
    has_avx2 = torch.backends.cpu.get_cpu_capability().startswith("AVX")
    if preprocessor.preprocessing.resizer == PIL or has_avx2 or grid != found.grid:
        return False
    level = preprocessor.preprocessing.rescale / min(preprocessor.preprocessing.std)
    return bool(np.abs(patches.astype(np.float64) - found.patches).max() <= 1.01 * level)
