"""Photos of all kinds: as the library has them where it takes them, and by a stated policy where it does not."""

from __future__ import annotations

import io
import struct
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import test_preprocess as shared
from artifacts import manifest
from PIL import Image, ImageOps

import naflex_export as nx
from naflex_export.embed.decode import Policy, decoded, opened
from naflex_export.embed.preprocess import Preprocessor
from naflex_export.embed.preprocessing import Preprocessing


def saved(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def with_clear_palette() -> Image.Image:
    image = shared.drawn(20, 30).convert("P")
    return Image.open(io.BytesIO(saved(image, transparency=bytes(range(256)))))


KINDS = {
    "grey": lambda: shared.drawn(20, 30).convert("L"),
    "grey-alpha": lambda: shared.drawn(20, 30, 4).convert("LA"),
    "palette": lambda: shared.drawn(20, 30).convert("P"),
    "clear-palette": with_clear_palette,
    "cmyk": lambda: shared.drawn(20, 30).convert("CMYK"),
    "ycbcr": lambda: shared.drawn(20, 30).convert("YCbCr"),
    "one-bit": lambda: shared.drawn(20, 30).convert("1"),
    "alpha": lambda: shared.drawn(20, 30, 4),
    "jpeg": lambda: Image.open(io.BytesIO(saved(shared.drawn(20, 30), "JPEG", quality=80))),
}


@pytest.mark.filterwarnings("ignore:Palette images with Transparency:UserWarning")  # PIL's, of timm's own conversion
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_as_timms_datasets_convert_it(kind: str) -> None:
    photos = [KINDS[kind]()]
    shared.assert_same(shared.timm_preprocessor()(photos), shared.of_timm(photos))


def test_transparency_is_laid_on_white_as_transformers_does() -> None:
    pytest.importorskip("transformers", minversion="5.23")
    from transformers.image_transforms import convert_to_rgb

    for kind in ("alpha", "grey-alpha", "clear-palette"):
        image = KINDS[kind]()
        expected = convert_to_rgb(image, return_numpy=True)
        assert (np.asarray(decoded(image, Policy(alpha="white"))) == expected).all()
        assert (np.asarray(decoded(image, Policy(alpha="drop"))) != expected).any()


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_photos_are_turned_upright_unless_told_not_to(orientation: int, kind: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    content = saved(shared.drawn(20, 30), kind, exif=exif)
    stored = Image.open(io.BytesIO(content))
    upright = ImageOps.exif_transpose(stored)
    found = shared.timm_preprocessor()([content])
    shared.assert_same(found, shared.of_timm([upright]))
    ignored = shared.timm_preprocessor(exif="ignore")([content])
    shared.assert_same(ignored, shared.of_timm([stored]))
    assert (found["patches"] != ignored["patches"]).any() == (orientation > 1)


def test_sixteen_bits_are_scaled_and_not_clipped() -> None:
    values = np.linspace(0, 65535, 600, dtype=np.uint16).reshape(20, 30)
    content = saved(Image.fromarray(values))
    for given in (content, values):
        scaled = np.asarray(decoded(opened(given, Policy()), Policy()))
        assert (scaled[..., 0] == np.round(values / 257)).all() and (scaled == scaled[..., :1]).all()
    clipping = Policy(sixteen_bit="clip")
    clipped = np.asarray(decoded(opened(content, clipping), clipping))
    assert (clipped == np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))).all() and (
        clipped == 255
    ).mean() > 0.9


def bomb(side: int) -> bytes:
    """Return a PNG of a few bytes that says it has a square of pixels."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 64)) + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize(
    ("photo", "said"),
    [
        ("no/such/photo.jpg", "'no/such/photo.jpg' does not exist"),
        (b"", "a photo of 0 bytes cannot be read as an image"),
        (b"<html>not found</html>", "a photo of 22 bytes cannot be read as an image"),
        (saved(shared.drawn(90, 90), "JPEG")[:900], "cannot be decoded"),
        (bomb(60_000), "cannot be read as an image (Image size (3600000000 pixels)"),
        (bomb(10_000), "has 10000x10000 = 100000000 pixels: expected at most 89478485"),
        (Image.new("F", (4, 4)), "floating-point values"),
        (Image.fromarray(np.full((3, 3), 70_000, np.int32)), "grey values from 70000 to 70000"),
        (np.zeros((4, 4, 3), np.float32), "the array is float32 [4, 4, 3]"),
        (np.zeros((3, 4, 9), np.uint8), "the array is uint8 [3, 4, 9]"),
        (np.zeros((0, 4, 3), np.uint8), "the array is uint8 [0, 4, 3]"),
        (17, "a int is no photo"),
    ],
    ids=[
        *("missing", "empty", "no-image", "cut-short", "bomb", "too-large", "float", "beyond-16-bits"),
        *("float-array", "channels-first", "empty-array", "number"),
    ],
)
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_what_is_no_photo_is_refused(photo: Any, said: str) -> None:
    with pytest.raises(nx.PhotoError) as caught:
        shared.timm_preprocessor().one(photo)
    assert said in str(caught.value) and caught.value.exit_code == 2
    with pytest.raises(nx.PhotoError, match="photo 1: "):
        shared.timm_preprocessor()([shared.drawn(9, 9), photo])


def test_the_limit_of_pixels_can_be_moved() -> None:
    with pytest.raises(nx.PhotoError, match="expected at most 99"):
        shared.timm_preprocessor(most_pixels=99).one(shared.drawn(10, 10))
    shared.timm_preprocessor(most_pixels=100).one(shared.drawn(10, 10))


def test_a_fast_jpeg_is_never_decoded_below_twice_its_target(monkeypatch: pytest.MonkeyPatch) -> None:
    decoded_sizes = []
    resize = Image.Image.resize
    monkeypatch.setattr(
        Image.Image, "resize", lambda self, *a, **k: decoded_sizes.append(self.size) or resize(self, *a, **k)
    )
    exif = Image.Exif()
    exif[0x0112] = 6
    halved = 0
    for height in (40, 60, 79, 80, 81, 97, 160, 250, 400):
        for given in ({}, {"exif": exif}):
            content = saved(shared.drawn(height, height + 37), "JPEG", **given)
            decoded_sizes.clear()
            patches, grid = shared.timm_preprocessor(fast_jpeg=True).one(content)
            width, tall = decoded_sizes[0]
            assert width >= 2 * 4 * grid.width or width in (height, height + 37)
            assert tall >= 2 * 4 * grid.height or tall in (height, height + 37)
            halved += width not in (height, height + 37)
            whole, _ = shared.timm_preprocessor().one(content)
            assert patches.shape == whole.shape
    assert halved >= 8
    photo = Image.open(io.BytesIO(saved(shared.drawn(400, 437), "JPEG")))
    shared.timm_preprocessor(fast_jpeg=True).one(photo)
    assert photo.size == (437, 400)  # the caller's own is left as it is


def test_the_size_rule_is_that_of_the_libraries() -> None:
    from timm.data.naflex_transforms import get_image_size_for_seq

    draw = np.random.default_rng(0)
    for _ in range(400):
        height, width = (int(2 ** draw.uniform(0, 12)) for _ in range(2))
        patch, tokens = int(draw.choice([4, 14, 16, 32])), int(draw.choice([1, 7, 64, 256, 1024]))
        pre = Preprocessor(replace(SAID, patch_size=(patch, patch)), shared.TIMM_INPUTS, "float32", tokens)
        for upscale, ratio in ((True, None), (False, 1.0)):
            pre.preprocessing = replace(pre.preprocessing, upscale=upscale)
            _, expected = get_image_size_for_seq((height, width), patch, tokens, max_ratio=ratio)
            assert tuple(side * patch for side in pre.size_of((height, width))) == expected


SAID = Preprocessing("timm", (4, 4), shared.MEAN, shared.STD, "bicubic")

OLD = {
    "timm": {
        "library": "timm.data.create_transform",
        "mean": [0.1, 0.2, 0.3],
        "std": [0.5, 0.25, 0.125],
        "interpolation": "bicubic",
        "patch_size": [4, 4],
        "channels_last": True,
    },
    "transformers": {
        "library": "transformers.Siglip2ImageProcessor",
        "settings_from": "defaults",
        "do_normalize": True,
        "do_rescale": True,
        "do_resize": True,
        "image_mean": [0.1, 0.2, 0.3],
        "image_std": [0.5, 0.25, 0.125],
        "image_processor_type": "Siglip2ImageProcessor",
        "patch_size": 4,
        "resample": 2,
        "rescale_factor": 1 / 255,
    },
}
"""What manifests said before they said everything."""


def test_old_artifacts_are_understood() -> None:
    photos = [shared.drawn(*size) for size in shared.SIZES]
    found = Preprocessor(Preprocessing.of(OLD["timm"]), shared.TIMM_INPUTS, "float32", shared.TOKENS)(photos)
    shared.assert_same(found, shared.of_timm(photos))
    found = Preprocessor(Preprocessing.of(OLD["transformers"]), shared.HF_INPUTS, "float32", shared.TOKENS)(photos)
    shared.assert_same(found, shared.of_transformers(photos, "torchvision-uint8", "bilinear"))


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({**OLD["transformers"], "resample": 1}, "interpolation 'lanczos'"),
        ({**OLD["transformers"], "do_resize": False}, "rule 'none'"),
        ({**OLD["transformers"], "do_normalize": False}, "normalize 'none'"),
        ({**OLD["timm"], "resizer": "cv2"}, "resizer 'cv2'"),
        ({**OLD["timm"], "interpolation": "random"}, "interpolation 'random'"),
        ({**OLD["timm"], "channel_order": "grb"}, "channel_order 'grb'"),
        ({**OLD["timm"], "mean": [0.5], "std": [0.5]}, "images of 1 channels"),
    ],
    ids=["lanczos", "no-resize", "no-mean", "cv2", "random", "order", "grey"],
)
def test_what_this_release_cannot_do_is_refused_by_name(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(nx.RequestError, match="the artifact's preprocessing ") as caught:
        Preprocessor(Preprocessing.of(fields), shared.TIMM_INPUTS, "float32", 16)
    assert said in str(caught.value)


@pytest.mark.parametrize(
    "wrong",
    [
        {"upscale": "yes"},
        {"channels_last": 1},
        {"rescale": "1/255"},
        {"rescale": 0},
        {"rescale": True},
        {"patch_size": [0, 4]},
        {"patch_size": "4"},
        {"mean": 0.5},
        {"std": [0.5]},
    ],
    ids=str,
)
def test_a_field_of_another_type_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(nx.ArtifactError, match="does not say how photos are preprocessed"):
        Preprocessing.of({**OLD["timm"], **wrong})


def test_patches_that_the_artifact_does_not_take_are_refused() -> None:
    fields = {**SAID.fields(), "patch_size": [8, 8]}
    with pytest.raises(nx.ArtifactError, match="patches have 48 values, and its manifest prepares photos as .* 8x8"):
        Preprocessor.of_manifest(manifest(preprocessing=fields))


def test_a_manifest_that_leaves_photos_to_another_library_says_so() -> None:
    with pytest.raises(nx.RequestError, match="photos are prepared by the model's own processor.*call nx.load"):
        Preprocessing.of({"settings_from": "the model's own processor", "channels": 3})


def test_a_manifest_without_preprocessing_is_refused() -> None:
    with pytest.raises(nx.ArtifactError, match="does not say how photos are preprocessed"):
        Preprocessing.of({"library": "timm", "mean": [0.5] * 3})


@pytest.mark.parametrize("name", ["alpha", "exif", "sixteen_bit", "most_pixels"])
def test_a_policy_that_is_none_is_refused(name: str) -> None:
    with pytest.raises(nx.RequestError, match=f"{name}='other': expected"):
        shared.timm_preprocessor(**{name: "other"})


def test_one_photo_is_no_list_of_photos() -> None:
    with pytest.raises(nx.RequestError, match=r"expected a list, such as \[photo\]"):
        shared.timm_preprocessor()("photo.jpg")
    with pytest.raises(nx.InputError, match="there is no photo"):
        shared.timm_preprocessor()([])


def test_low_precision_is_rounded_as_torch_rounds() -> None:
    import torch

    photos = [shared.drawn(*size) for size in shared.SIZES]
    half = Preprocessor(SAID, shared.TIMM_INPUTS, "float16", shared.TOKENS)(photos)
    expected = shared.of_timm(photos)["patches"].to(torch.float16)
    assert torch.equal(torch.from_numpy(half["patches"]), expected)


def test_a_photo_that_is_refused_does_not_stay_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even while somebody holds the error, as an embedder of many does."""
    shared.drawn(10, 10).save(tmp_path / "large.png")
    images, own = [], Image.open
    monkeypatch.setattr(Image, "open", lambda source: images.append(own(source)) or images[-1])
    with pytest.raises(nx.PhotoError, match="expected at most 99"):
        opened(tmp_path / "large.png", Policy(most_pixels=99))
    (image,) = images
    assert image.fp is None
