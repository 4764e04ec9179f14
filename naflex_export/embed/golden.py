"""The golden photo: a photo in the artifact with the tensors that must come of it, on any machine.

It lies on its side, as its EXIF data say, and has colours and detail: a mean for a standard deviation, another resizer,
channels in another order or an orientation that is not heeded each give other tensors. It is a PNG, whose pixels
no decoder rounds.
"""

from __future__ import annotations

import hashlib
import io
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from naflex_export.errors import ArtifactError
from naflex_export.grid import Grid
from naflex_export.serving.manifest import Manifest

PHOTO = "golden/photo.png"
TENSORS = "golden/patches.npz"

SIZE = (197, 127)
"""Upright height and width of the photo, in pixels: primes, for where sides are simple fractions resizers agree."""

_ORIENTATION, _LYING = 0x0112, 6
"""The EXIF tag, and its value for a photo that is to be turned clockwise by a right angle."""


@dataclass(frozen=True)
class Golden:
    """A photo and what it must become.

    Attributes:
        photo: the bytes of an image file.
        patches: [n, D] in the artifact's dtype, or float32 where numpy has none such.
        grid: of the photo.
        tokens: the most that it might have had.
    """

    photo: bytes
    patches: NDArray[np.floating]
    grid: Grid
    tokens: int

    def difference(self, patches: NDArray[np.floating], grid: Grid) -> str:
        """Return how patches of the photo differ from what they must be; empty where they do not.

        Args:
            patches: [n, D] that were made of it.
            grid: that was.
        """
        if grid != self.grid or patches.shape != self.patches.shape:
            return f"its grid is {grid} and not {self.grid}"
        found, expected = patches.astype(np.float64), self.patches.astype(np.float64)
        if patches.dtype != self.patches.dtype:
            return f"its patches are {patches.dtype} and not {self.patches.dtype}"
        differing = float((found != expected).mean())
        if not differing:
            return ""
        return f"{differing:.1%} of its values differ, by up to {np.abs(found - expected).max():.2g}"

    def check(self, patches: NDArray[np.floating], grid: Grid) -> None:
        """Check that patches made of the photo, on this machine, are what it must become.

        Args:
            patches: [n, D] that were made of it.
            grid: that was.

        Raises:
            ArtifactError: they are not.
        """
        found = self.difference(patches, grid)
        if found:
            raise ArtifactError(
                f"the artifact's golden photo becomes other tensors here than where it was made ({found}): is Pillow "
                f"replaced by another build of it, such as pillow-simd? If not, export again"
            )


def drawn(picture: Image.Image) -> bytes:
    """Return a picture as a golden photo: at its size, laid on its side, with the EXIF tag that says so.

    Its lower half becomes noise, black and white in each channel: of a smooth picture any resizer makes the same.
    """
    height, width = SIZE
    upright = np.array(picture.convert("RGB").resize((width, height)))
    noise = np.random.default_rng(0).integers(0, 2, (height // 2, width, 3), dtype=np.uint8)
    upright[-len(noise) :] = 255 * noise
    lying = Image.fromarray(upright).transpose(Image.Transpose.ROTATE_90)
    exif = Image.Exif()
    exif[_ORIENTATION] = _LYING
    stream = io.BytesIO()
    lying.save(stream, "PNG", exif=exif, optimize=True)
    return stream.getvalue()


def write(golden: Golden, folder: Path) -> None:
    """Write a golden photo and its tensors into an artifact's folder."""
    (folder / PHOTO).parent.mkdir(exist_ok=True)
    (folder / PHOTO).write_bytes(golden.photo)
    with (folder / TENSORS).open("wb") as file:
        np.savez_compressed(file, patches=golden.patches, grid=np.array(golden.grid), tokens=np.array(golden.tokens))


def read(folder: Path, manifest: Manifest) -> Golden | None:
    """Return the golden photo of an artifact; None where it has none, as those made by earlier releases.

    Args:
        folder: the artifact's.
        manifest: its own.

    Raises:
        ArtifactError: its files are not what the manifest says.
    """
    if PHOTO not in manifest.files or TENSORS not in manifest.files:
        return None
    photo, tensors = (_verified(folder, name, manifest) for name in (PHOTO, TENSORS))
    try:
        with np.load(io.BytesIO(tensors), allow_pickle=False) as arrays:
            height, width = (int(side) for side in arrays["grid"])
            return Golden(photo, arrays["patches"], Grid(height, width), int(arrays["tokens"]))
    except (KeyError, ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise ArtifactError(f"{TENSORS} cannot be read ({error}): export again") from error


def _verified(folder: Path, name: str, manifest: Manifest) -> bytes:
    try:
        content = (folder / name).read_bytes()
    except OSError as error:
        raise ArtifactError(f"{name!r} is missing from {str(folder)!r}: copy the whole folder again") from error
    if hashlib.sha256(content).hexdigest() != manifest.files[name]["sha256"]:
        raise ArtifactError(f"{name!r} is not the file the manifest lists: its sha256 differs")
    return content
