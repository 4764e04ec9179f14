"""Photos become the tensors of the libraries themselves, bit for bit, without them."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from timm.data import create_transform
from timm.data.naflex_dataset import NaFlexCollator

from naflex_export.embed.preprocess import Preprocessor
from naflex_export.embed.preprocessing import FUSED, PIL, TORCHVISION, Preprocessing

MEAN, STD = (0.1, 0.2, 0.3), (0.5, 0.25, 0.125)
TIMM_INPUTS = ("patches", "patch_coord", "patch_valid")
HF_INPUTS = ("pixel_values", "pixel_attention_mask", "spatial_shapes")
SIZES = ((13, 17), (1, 1), (1, 90), (200, 3), (64, 64), (48, 32), (333, 250), (121, 640))
"""Heights and widths."""

TOKENS = 24


def drawn(height: int, width: int, channels: int = 3, hard: bool = False) -> Image.Image:
    """Return an image of noise; with hard contrasts, its values are 0 and 255."""
    noise = np.random.default_rng(height * 1000 + width + channels).integers(0, 256, (height, width, channels))
    values = np.where(noise > 127, 255, 0) if hard else noise
    return Image.fromarray(values.astype(np.uint8))


def timm_preprocessor(interpolation: str = "bicubic", channels_last: bool = True, **options: Any) -> Preprocessor:
    said = Preprocessing("timm", (4, 4), MEAN, STD, interpolation, channels_last=channels_last)
    return Preprocessor(said, TIMM_INPUTS, "float32", TOKENS, **options)


def of_timm(photos: list[Image.Image], interpolation: str = "bicubic", channels_last: bool = True) -> dict[str, Any]:
    """Return what timm's own transform and collator make of photos, as its datasets convert them."""
    transform = create_transform(
        is_training=False,
        naflex=True,
        patchify=True,
        max_seq_len=TOKENS,
        patch_size=(4, 4),
        mean=MEAN,
        std=STD,
        interpolation=interpolation,
        patchify_channels_last=channels_last,
    )
    made, _ = NaFlexCollator(max_seq_len=TOKENS)([(transform(photo.convert("RGB")), 0) for photo in photos])
    return dict(made)


def transformers_preprocessor(resizer: str, interpolation: str) -> Preprocessor:
    how = {"normalize": FUSED} if resizer == TORCHVISION else {}
    said = Preprocessing("transformers", (4, 4), MEAN, STD, interpolation, resizer, alpha="white", **how)
    return Preprocessor(said, HF_INPUTS, "float32", TOKENS)


def of_transformers(photos: list[Image.Image], resizer: str, interpolation: str) -> dict[str, Any]:
    """Return what the image processor of a resizer makes of photos."""
    pytest.importorskip("transformers")
    from transformers import Siglip2ImageProcessor
    from transformers.models.siglip2.image_processing_pil_siglip2 import Siglip2ImageProcessorPil

    kind: Any = Siglip2ImageProcessorPil if resizer == PIL else Siglip2ImageProcessor
    processor = kind(image_mean=MEAN, image_std=STD, resample={"bilinear": 2, "bicubic": 3}[interpolation])
    return dict(processor(images=photos, patch_size=4, max_num_patches=TOKENS, return_tensors="pt"))


def assert_same(found: dict[str, NDArray[Any]], expected: dict[str, Any]) -> None:
    """Check that arrays are tensors bit for bit, of the same names, dtypes and shapes."""
    for name, array in found.items():
        tensor = expected[name]
        assert str(array.dtype) == str(tensor.dtype).removeprefix("torch.") and array.shape == tuple(tensor.shape), name
        assert torch.equal(torch.from_numpy(array), tensor), name


@pytest.mark.parametrize("hard", [False, True], ids=["noise", "black-and-white"])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic", "lanczos"])
def test_photos_are_those_of_timms_transform_and_collator(interpolation: str, hard: bool) -> None:
    photos = [drawn(*size, hard=hard) for size in SIZES]
    for channels_last in (True, False):
        found = timm_preprocessor(interpolation, channels_last)(photos)
        assert_same(found, of_timm(photos, interpolation, channels_last))


@pytest.mark.parametrize("hard", [False, True], ids=["noise", "black-and-white"])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("resizer", [PIL, TORCHVISION])
def test_photos_are_those_of_transformers_processors(resizer: str, interpolation: str, hard: bool) -> None:
    photos = [drawn(*size, hard=hard) for size in SIZES]
    found = transformers_preprocessor(resizer, interpolation)(photos)
    assert_same(found, of_transformers(photos, resizer, interpolation))


def test_a_photo_may_be_a_path_bytes_an_image_or_an_array(tmp_path: Any) -> None:
    photo = drawn(30, 50)
    stream = io.BytesIO()
    photo.save(stream, "PNG")
    (tmp_path / "photo.png").write_bytes(stream.getvalue())
    given = [photo, stream.getvalue(), tmp_path / "photo.png", str(tmp_path / "photo.png"), np.asarray(photo)]
    made = timm_preprocessor()(given)
    for row in range(1, len(given)):
        assert (made["patches"][row] == made["patches"][0]).all()
