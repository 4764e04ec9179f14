"""`Preprocessor`: photos in, an artifact's input tensors out, bit for bit those of its model's own library.

Shape legend: B images, N tokens, D values in a flattened patch.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from naflex_export.embed import golden
from naflex_export.embed.decode import Photo, decoded, opened, upright_size
from naflex_export.embed.preprocessing import PIL, Preprocessing
from naflex_export.embed.size_rule import grid_of
from naflex_export.embed.uint8_resize import resize
from naflex_export.errors import ArtifactError, InputError, PhotoError, RequestError
from naflex_export.grid import Grid
from naflex_export.serving.manifest import Manifest, refuse_text_tower
from naflex_export.serving.packed_format import PACKED

Array = NDArray[Any]
Patches = tuple[Array, Grid]
"""A photo's patches [n, D], row by row, and its grid."""

_RESAMPLING = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
    "box": Image.Resampling.BOX,
    "hamming": Image.Resampling.HAMMING,
}


class Preprocessor:
    """Makes an artifact's inputs of photos, with numpy and PIL alone. It may be used by several threads at once.

    Args:
        preprocessing: what the artifact's manifest says.
        inputs: the names of the artifact's inputs.
        dtype: of the patches. numpy has no bfloat16: for such an artifact they are float32, to be rounded by torch.
        tokens: what batches are padded to where a call does not say.
        policy: for photos that are no plain RGB images, and what `Preprocessor.of` says of it.

    Attributes:
        preprocessing: as given.
        policy: what is done with photos that are no plain RGB images.
        tokens: as given.
    """

    def __init__(
        self, preprocessing: Preprocessing, inputs: Sequence[str], dtype: str, tokens: int, **policy: Any
    ) -> None:
        preprocessing.check()
        self.preprocessing, self.tokens = preprocessing, tokens
        self.policy = preprocessing.policy(**policy)
        self.inputs = tuple(inputs)
        self.dtype = np.dtype("float16" if dtype == "float16" else "float32")
        table = preprocessing.table().astype(self.dtype)
        self._table = table[:, 0] if bool((table == table[:, :1]).all()) else table

    @classmethod
    def of(cls, path: Path | str, *, patch_size: int | None = None, **policy: Any) -> Preprocessor:
        """Return the preprocessor of an artifact.

        Args:
            path: the artifact's folder.
            patch_size: which one, of an artifact of several.
            policy: attributes of `Policy` to have in place of the artifact's own: `exif="ignore"` takes photos as they
                are stored, `fast_jpeg=True` decodes large JPEGs at part of their size, `most_pixels` limits a photo.

        Raises:
            ArtifactError: the folder is no artifact, or does not say how photos are preprocessed, or its golden photo
                becomes other tensors on this machine.
            RequestError: its preprocessing is none that this release can do, or an argument is not possible.
        """
        folder = Path(path)
        manifest = Manifest.read(folder)
        made = cls.of_manifest(manifest, patch_size=patch_size, **policy)
        if patch_size in manifest.by_patch_size:
            folder = folder / manifest.by_patch_size[patch_size]
            manifest = Manifest.read(folder)
        found = golden.read(folder, manifest)
        if found is not None:
            found.check(*cls.of_manifest(manifest).one(found.photo, found.tokens))
        return made

    @classmethod
    def of_manifest(cls, manifest: Manifest, *, patch_size: int | None = None, **policy: Any) -> Preprocessor:
        """Return the preprocessor that a manifest describes.

        Args:
            manifest: an artifact's.
            patch_size: as for `of`.
            policy: as for `of`.

        Raises:
            ArtifactError, RequestError: as `of`.
        """
        refuse_text_tower(manifest)
        sizes = manifest.by_patch_size
        if sizes and patch_size not in sizes:
            raise RequestError(
                f"patch_size={patch_size!r}: expected one of the artifact's, {', '.join(map(str, sizes))}"
            )
        fields = manifest.preprocessing
        if sizes:
            fields = {**fields, "patch_size": patch_size}
        preprocessing = Preprocessing.of(fields)
        if patch_size is not None and preprocessing.patch_size != (patch_size, patch_size):
            height, width = preprocessing.patch_size
            raise RequestError(f"patch_size={patch_size!r}: the artifact's patches are {height}x{width}")
        values, (height, width) = manifest.inputs[0].shape[-1], preprocessing.patch_size
        if not sizes and len(preprocessing.mean) == 3 and values != height * width * 3:
            raise ArtifactError(
                f"the artifact's patches have {values} values, and its manifest prepares photos as patches of "
                f"{height}x{width} pixels of 3 channels: export again"
            )
        names = [spec.name for spec in manifest.inputs]
        most = max(bucket.tokens for bucket in manifest.buckets)
        return cls(preprocessing, names, manifest.dtype, most, **policy)

    def __call__(self, photos: Iterable[Photo], tokens: int | None = None) -> dict[str, Array]:
        """Return photos as one batch of the artifact's inputs, by name: what a Runner takes, with zeros for padding.

        The shapes and dtypes are those of the manifest's `inputs`, with patches of the artifact's dtype (float32 for
        bfloat16, which numpy has not) and all other inputs as integers or bool.

        Args:
            photos: paths, bytes, PIL images or numpy arrays (uint8, [height, width, 3] as RGB, or grey, or RGBA).
            tokens: the most patches of a photo, which all are padded to; the largest bucket's by default.

        Raises:
            PhotoError: one cannot be read; the message says which.
            RequestError: it is a single photo and no list of them.
        """
        if isinstance(photos, str | bytes | os.PathLike | Image.Image):
            raise RequestError("photos is a single one: expected a list, such as [photo]")
        made = []
        for index, photo in enumerate(photos):
            try:
                made.append(self.one(photo, tokens))
            except PhotoError as error:
                raise PhotoError(f"photo {index}: {error}") from error
        return self.collate(made, tokens)

    def size_of(self, photo_size: tuple[int, int], tokens: int | None = None) -> Grid:
        """Return the grid, in patches, of a photo of a height and a width, in pixels.

        Args:
            photo_size: upright height and width.
            tokens: as for a call.
        """
        height, width = photo_size
        own = self.preprocessing
        return grid_of(height, width, own.patch_size, self.tokens if tokens is None else tokens, own.upscale)

    def one(self, photo: Photo, tokens: int | None = None) -> Patches:
        """Return the patches of a photo [n, D], row by row, and its grid.

        Args:
            photo: a path, bytes, a PIL image or a numpy array.
            tokens: the most patches.

        Raises:
            PhotoError: it cannot be read.
        """
        with contextlib.ExitStack() as own:
            image = opened(photo, self.policy)
            if image is not photo:
                own.callback(image.close)
            grid = self.size_of(upright_size(image, self.policy), tokens)
            height, width = (n * size for n, size in zip(grid, self.preprocessing.patch_size, strict=True))
            policy = self.policy if image is not photo else replace(self.policy, fast_jpeg=False)  # it changes an image
            pixels = self._resized(decoded(image, policy, (height, width)), height, width)
        return self._normalized(self._patches(pixels, grid)), grid

    def _resized(self, image: Image.Image, height: int, width: int) -> NDArray[np.uint8]:
        interpolation = self.preprocessing.interpolation
        if self.preprocessing.resizer == PIL:
            if image.size != (width, height):
                image = image.resize((width, height), _RESAMPLING[interpolation])
            return np.asarray(image)
        return resize(image, height, width, interpolation)

    def _patches(self, pixels_HWC: NDArray[np.uint8], grid: Grid) -> NDArray[np.uint8]:
        rows, columns = self.preprocessing.patch_size
        if self.preprocessing.channel_order == "bgr":
            pixels_HWC = pixels_HWC[..., ::-1]
        cut = pixels_HWC.reshape(grid.height, rows, grid.width, columns, 3)
        order = (0, 2, 1, 3, 4) if self.preprocessing.channels_last else (0, 2, 4, 1, 3)
        return np.ascontiguousarray(cut.transpose(order)).reshape(grid.tokens, -1)

    def _normalized(self, patches_ND: NDArray[np.uint8]) -> Array:
        if self._table.ndim == 1:
            return self._table[patches_ND]
        pixels = self.preprocessing.patch_size[0] * self.preprocessing.patch_size[1]
        channel_3 = np.arange(3)
        return self._table[
            patches_ND,
            np.tile(channel_3, pixels) if self.preprocessing.channels_last else np.repeat(channel_3, pixels),
        ]

    def collate(self, made: Sequence[Patches], tokens: int | None = None) -> dict[str, Array]:
        """Return what `one` gave of several photos as one batch of the artifact's inputs, padded with zeros.

        A packed artifact gets them one after the other, with no padding.

        Args:
            made: patches and grid of each.
            tokens: what they are padded to; the largest bucket's by default.

        Raises:
            InputError: there is none, or one has more patches.
        """
        tokens = self.tokens if tokens is None else tokens
        if not made:
            raise InputError("there is no photo: expected at least one")
        for index, (_, grid) in enumerate(made):
            if grid.tokens > tokens:
                raise InputError(f"photo {index} has {grid.tokens} patches: expected at most {tokens}, as asked for")
        if self.inputs == PACKED.names:
            return PACKED.of_images(made, self.dtype)
        patches_BND = np.zeros((len(made), tokens, made[0][0].shape[1]), self.dtype)
        valid_BN = np.zeros((len(made), tokens), bool)
        for row, (patches, grid) in enumerate(made):
            patches_BND[row, : grid.tokens] = patches
            valid_BN[row, : grid.tokens] = True
        if self.inputs[0] == "pixel_values":
            grid_B2 = np.array([grid for _, grid in made], np.int64)
            return dict(zip(self.inputs, (patches_BND, valid_BN.astype(np.int32), grid_B2), strict=True))
        coord_BN2 = np.zeros((len(made), tokens, 2), np.int64)
        for row, (_, grid) in enumerate(made):
            coord_BN2[row, : grid.tokens] = np.indices(grid).reshape(2, -1).T
        return dict(zip(self.inputs, (patches_BND, coord_BN2, valid_BN), strict=True))
