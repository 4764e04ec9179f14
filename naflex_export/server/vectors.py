"""An artifact as servers ask for it: the vectors of a batch; of one that fails, those of all images but its fault."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from naflex_export.embed.preprocess import Patches, Preprocessor
from naflex_export.embed.run_arrays import open_run
from naflex_export.errors import NaflexExportError, RequestError
from naflex_export.grid import Bucket
from naflex_export.serving.manifest import Manifest

Vector = NDArray[np.float32]
Embed = Callable[[Sequence[Patches], int], Vector]
"""From images, as patches and grids, and the tokens that they are padded to, to their vectors [images, values]."""


@dataclass(frozen=True)
class Served:
    """An opened artifact.

    Attributes:
        manifest: what it says of itself.
        preprocessor: makes its inputs.
        embed: runs a batch of it.
    """

    manifest: Manifest
    preprocessor: Preprocessor
    embed: Embed


def open_served(
    folder: Path,
    device: str | None = None,
    patch_size: int | None = None,
    most_pixels: int | None = None,
    upscale: bool | None = None,
) -> Served:
    """Return an artifact ready to be served.

    Args:
        folder: the artifact's.
        device: where to run, as for `nx.load`.
        patch_size: which entry point, of an artifact of several patch sizes.
        most_pixels: of a photo; by default as PIL.
        upscale: enlarge photos of fewer patches than the budget; by default as the artifact's own library.

    Raises:
        RequestError: the artifact gives no features, or has several patch sizes and none was chosen.
        ArtifactError: the folder is no artifact, or does not say how photos are preprocessed.
        BackendError: a package or device that it needs is missing.
    """
    manifest = Manifest.read(folder)
    if manifest.by_patch_size and patch_size in manifest.by_patch_size:
        folder, patch_size = folder / manifest.by_patch_size[patch_size], None
        manifest = Manifest.read(folder)
    if manifest.by_patch_size or patch_size is not None:
        sizes = ", ".join(map(str, manifest.by_patch_size)) or "none, for it has one alone"
        raise RequestError(f"patch size {patch_size or 'none'}: expected one of the artifact's, {sizes}")
    limit = {} if most_pixels is None else {"most_pixels": most_pixels}
    preprocessor = Preprocessor.of(folder, **limit)
    if upscale is not None:
        preprocessor.preprocessing = replace(preprocessor.preprocessing, upscale=upscale)
    run = open_run(folder, manifest, device=device)
    return Served(manifest, preprocessor, lambda made, tokens: run(preprocessor.collate(made, tokens)))


def vectors_or_faults(embed: Embed, made: Sequence[Patches], bucket: Bucket) -> list[Vector | str]:
    """Return the vector of each image of a batch, or why it has none; where the batch fails, each is run by itself.

    Args:
        embed: runs a batch.
        made: patches and grid of each image, at most as many as the bucket takes.
        bucket: whose tokens they are padded to. Where they are fewer than its smallest batch, some are run again.
    """

    def run(images: Sequence[Patches]) -> list[Vector | str]:
        count = len(images)
        repeated = [images[number % count] for number in range(max(count, bucket.batch[0]))]
        found = embed(repeated, bucket.tokens)[:count]
        return [vector if np.isfinite(vector).all() else "it gave values that are not finite" for vector in found]

    def alone(image: Patches) -> Vector | str:
        try:
            return run([image])[0]
        except NaflexExportError as error:
            return str(error)
        except Exception as error:  # of any class of the backend's
            return type(error).__name__

    try:
        return run(made)
    except Exception:  # one image may be at fault
        return [alone(image) for image in made]
