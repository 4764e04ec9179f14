"""Photos become the patches that each library's own transform makes of them, by settings that these tests choose.

The gate feeds one transform to both sides, so it cannot see a fault in it. Here what is expected comes from numbers.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from PIL import Image
from timm.data import create_transform
from torch import Tensor

from naflex_export.accuracy.photos import load_photos
from naflex_export.models import adapter_of
from naflex_export.models.adapter import ModelAdapter

MEAN, STD = (0.1, 0.2, 0.3), (0.5, 0.25, 0.125)
COLOUR = (51, 102, 204)
NORMALIZED = (0.2, 0.8, 4.0)
"""(COLOUR / 255 - MEAN) / STD"""

RED, BLUE = (255, 0, 0), (0, 0, 255)
TOKENS = 24


def timm_adapter(interpolation: str = "bilinear", **options: Any) -> ModelAdapter:
    """Return the adapter of a model whose weights were trained with these settings, each different from any default."""
    settings = {"mean": MEAN, "std": STD, "interpolation": interpolation}
    tiny = {"embed_dim": 32, "depth": 1, "num_heads": 2, "patch_size": 4, **options}
    return adapter_of(timm.create_model("naflexvit_base_patch16_gap", pretrained_cfg_overlay=settings, **tiny))


def siglip2_adapter(folder: Path, resample: int) -> ModelAdapter:
    """Return the adapter of a saved model, with a processor of these settings beside it."""
    pytest.importorskip("transformers")
    from siglip2_tiny import vision
    from transformers import Siglip2ImageProcessor, Siglip2VisionModel

    vision().save_pretrained(folder)
    Siglip2ImageProcessor(image_mean=MEAN, image_std=STD, resample=resample).save_pretrained(folder)
    return adapter_of(Siglip2VisionModel.from_pretrained(folder))


@pytest.fixture(params=["timm", "siglip2"])
def adapter(request: pytest.FixtureRequest, tmp_path: Path) -> ModelAdapter:
    return timm_adapter() if request.param == "timm" else siglip2_adapter(tmp_path, resample=2)


def of_two_colours() -> Image.Image:
    """Return an image that is red in its upper half and blue in its lower one."""
    image = Image.new("RGB", (16, 16), BLUE)
    image.paste(RED, (0, 0, 16, 8))
    return image


def test_one_colour_becomes_these_numbers(adapter: ModelAdapter) -> None:
    made = adapter.transform(TOKENS)(Image.new("RGB", (40, 24), COLOUR))
    expected = torch.tensor(NORMALIZED).repeat(16).expand_as(made["patches"])
    assert made["patches"].shape == (TOKENS, 48)  # 4 x 6 of them
    assert (made["patches"] - expected).abs().max() <= 1e-6


def test_rows_of_patches_go_from_top_to_bottom(adapter: ModelAdapter) -> None:
    """Each patch holds its rows of pixels, and each pixel its colours."""
    made = adapter.transform(16)(of_two_colours())
    assert made["patch_coord"].tolist() == [[y, x] for y in range(4) for x in range(4)]
    red, blue = (
        torch.tensor([(value / 255 - mean) / std for value, mean, std in zip(colour, MEAN, STD, strict=True)]).repeat(
            16
        )
        for colour in (RED, BLUE)
    )
    assert (made["patches"][:8] - red).abs().max() <= 1e-5 and (made["patches"][8:] - blue).abs().max() <= 1e-5


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("channels_last", [True, False], ids=["channels-last", "channels-first"])
def test_photos_are_those_of_timms_own_transform(interpolation: str, channels_last: bool) -> None:
    given = timm_adapter(interpolation, patchify_channels_last=channels_last).transform(TOKENS)

    def own(kind: str) -> Any:
        return create_transform(
            naflex=True,
            patchify=True,
            is_training=False,
            max_seq_len=TOKENS,
            patch_size=(4, 4),
            mean=MEAN,
            std=STD,
            interpolation=kind,
            patchify_channels_last=channels_last,
        )

    other = "bicubic" if interpolation == "bilinear" else "bilinear"
    for photo in load_photos().images.values():
        found, expected = given(photo), own(interpolation)(photo)
        assert torch.equal(found["patches"], expected["patches"])
        assert torch.equal(found["patch_coord"], expected["patch_coord"])
        assert share(own(other)(photo)["patches"], expected["patches"]) > 1e-2


@pytest.mark.parametrize("resample", [2, 3], ids=["bilinear", "bicubic"])
def test_photos_are_those_of_transformers_own_processor(tmp_path: Path, resample: int) -> None:
    given = siglip2_adapter(tmp_path, resample).transform(TOKENS)
    from transformers import Siglip2ImageProcessor

    def own(photo: Image.Image, kind: int) -> dict[str, Tensor]:
        processor = Siglip2ImageProcessor(image_mean=MEAN, image_std=STD, resample=kind, patch_size=4)
        return processor(images=photo, max_num_patches=TOKENS, return_tensors="pt")

    for photo in load_photos().images.values():
        found, expected = given(photo), own(photo, resample)
        count = int(expected["pixel_attention_mask"].sum())
        assert torch.equal(found["patches"], expected["pixel_values"][0, :count])
        assert (found["patch_coord"].amax(dim=0) + 1).tolist() == expected["spatial_shapes"][0].tolist()
        assert share(own(photo, 5 - resample)["pixel_values"], expected["pixel_values"]) > 1e-2


def share(found: Tensor, expected: Tensor) -> float:
    """Return the largest difference as a share of the largest value."""
    return float((found - expected).abs().max() / expected.abs().max())
