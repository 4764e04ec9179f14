"""Photos of a user's folder: in folders of their classes, too many for memory, damaged in any way."""

from __future__ import annotations

import random
import struct
import weakref
from pathlib import Path

import fuzz_artifacts as fuzz
import pytest
from PIL import Image

import naflex_export as nx
from naflex_export.accuracy import photos as module
from naflex_export.accuracy.photos import load_photos


def save(path: Path, **options: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("P" if path.suffix == ".blp" else "RGB", (24, 16), 3).save(path, **options)  # type: ignore[arg-type]
    return path


def test_folders_of_classes_are_looked_into(tmp_path: Path) -> None:
    for name in ("cat/1.png", "dog/1.png", "dog/small/2.jpg", "top.png", ".cache/3.png", "dog/.4.png"):
        save(tmp_path / name)
    photos = load_photos(tmp_path)
    assert list(photos.images) == ["cat/1.png", "dog/1.png", "dog/small/2.jpg", "top.png"] and not photos.skipped


def test_no_photo_is_kept(tmp_path: Path) -> None:
    save(tmp_path / "a.png")
    photos = load_photos(tmp_path)
    kept = weakref.ref(photos.images["a.png"])
    assert kept() is None and photos.images["a.png"].size == (24, 16)
    (tmp_path / "a.png").unlink()
    with pytest.raises(nx.RequestError, match="a.png' cannot be read any more"):
        photos.images["a.png"]


@pytest.mark.parametrize("suffix", ["png", "jpg", "gif", "dds", "blp", "tiff", "webp", "bmp", "tga", "ico", "ppm"])
def test_damaged_photos_are_skipped(suffix: str, tmp_path: Path) -> None:
    content = save(tmp_path / f"true.{suffix}").read_bytes()
    for number in range(15):
        spoiled = fuzz.spoil(content, random.Random(f"{suffix} {number}"))
        (tmp_path / f"spoiled{number}.{suffix}").write_bytes(spoiled)
    photos = load_photos(tmp_path)
    assert f"true.{suffix}" in photos.images and len(photos.images) + len(photos.skipped) == 16


@pytest.mark.parametrize(
    "error", [struct.error("x"), KeyError("x"), RuntimeError("x"), NotImplementedError(), IndexError()]
)
def test_whatever_a_decoder_raises_is_no_image(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path / "a.png")
    save(tmp_path / "b.avif.png")
    true = module._decoded

    def decoded(path: Path) -> Image.Image:
        if "avif" in path.name:
            raise error
        return true(path)

    monkeypatch.setattr(module, "_decoded", decoded)
    assert load_photos(tmp_path).skipped == {"b.avif.png": "not an image"}
