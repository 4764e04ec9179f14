"""Vectors come in order, each that of its photo, whatever is wrong with its neighbours."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import test_preprocess as shared
import tiny
import torch
from artifacts import WIDTH, fill_pooling, pooled

import naflex_export as nx
from naflex_export.embed.embedder import BATCHES_AHEAD

BUCKETS = [nx.Bucket(6, (2, 3, 4)), nx.Bucket(16, (2, 4, 4))]


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fill_pooling(tmp_path_factory.mktemp("embed") / "a", buckets=tuple(BUCKETS))


PHOTOS: list[Any] = [shared.drawn(3 + 5 * (index % 4), 4 + 3 * (index % 5)) for index in range(43)]
BAD = (0, 7, 8, 20, 42)


def with_bad() -> list[Any]:
    return [b"no photo" if index in BAD else photo for index, photo in enumerate(PHOTOS)]


def test_vectors_are_those_of_each_photo_in_order(artifact: Path) -> None:
    embed = nx.Embedder(artifact)
    found = list(embed(with_bad()))
    wanted = [pooled(embed.preprocessor([photo]))[0] for photo in PHOTOS]
    assert len(found) == len(wanted) and embed.width == WIDTH
    for index, (vector, right) in enumerate(zip(found, wanted, strict=True)):
        if index in BAD:
            assert isinstance(vector, nx.PhotoError) and "8 bytes cannot be read" in str(vector)
        else:
            assert vector.dtype == np.float32 and np.abs(vector - right).max() <= 1e-5 * np.abs(right).max()
    grids = [one.grid for one in embed.results(PHOTOS)]
    assert grids == [embed.preprocessor.size_of((photo.height, photo.width)) for photo in PHOTOS]
    assert len({grid.tokens <= 6 for grid in grids if grid}) == 2


def test_batches_are_of_one_bucket_and_of_sizes_that_it_takes(artifact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    embed = nx.Embedder(artifact)
    ran = []
    run = embed._run
    monkeypatch.setattr(embed, "_run", lambda inputs: ran.append(inputs["patches"].shape[:2]) or run(inputs))
    assert len(list(embed(PHOTOS))) == len(PHOTOS)
    assert {tokens for _, tokens in ran} == {6, 16}
    assert all(2 <= images <= (3 if tokens == 6 else 4) for images, tokens in ran)
    assert sum(images == (3 if tokens == 6 else 4) for images, tokens in ran) >= len(ran) - 4


def test_no_more_photos_are_taken_than_the_window_holds(artifact: Path) -> None:
    taken = 0

    def endless() -> Iterator[Any]:
        nonlocal taken
        while True:
            taken += 1
            yield PHOTOS[taken % len(PHOTOS)] if taken > 1 else PHOTOS[1]

    before = threading.active_count()
    stream = nx.Embedder(artifact, threads=3)(endless())
    for count in range(1, 100):
        next(stream)
        assert taken - count <= BATCHES_AHEAD * 4
    stream.close()  # type: ignore[attr-defined]
    assert threading.active_count() == before


def test_a_photo_of_a_rare_size_waits_no_longer_than_the_window(artifact: Path) -> None:
    small, large = shared.drawn(4, 4), shared.drawn(16, 16)
    taken = []

    def photos() -> Iterator[Any]:
        for index in range(200):
            taken.append(index)
            yield small if index == 0 else large

    stream = nx.Embedder(artifact)(photos())
    assert isinstance(next(stream), np.ndarray) and len(taken) <= BATCHES_AHEAD * 4


def test_what_the_photos_raise_is_raised(artifact: Path) -> None:
    def photos() -> Iterator[Any]:
        yield PHOTOS[0]
        raise OSError("the disk is gone")

    with pytest.raises(OSError, match="the disk is gone"):
        list(nx.Embedder(artifact)(photos()))
    assert list(nx.Embedder(artifact)([])) == []


def test_arguments_that_are_not_possible_are_refused(artifact: Path, tmp_path: Path) -> None:
    with pytest.raises(nx.RequestError, match="tokens=17: expected at most 16"):
        nx.Embedder(artifact, tokens=17)
    with pytest.raises(nx.RequestError, match="threads=0: expected an integer"):
        nx.Embedder(artifact, threads=0)
    with pytest.raises(nx.RequestError, match="exif='no': expected"):
        nx.Embedder(artifact, exif="no")
    with pytest.raises(nx.ArtifactError, match="has no manifest"):
        nx.Embedder(tmp_path)


@pytest.mark.full
@pytest.mark.parametrize(("target", "dtype"), [("compile", "float32"), ("onnx", "bfloat16"), ("compile", "bfloat16")])
def test_other_targets_run_by_torch(tmp_path: Path, target: str, dtype: str) -> None:
    artifact = nx.export(tiny.shallow(), target, tmp_path / "a", [nx.Bucket(16, (1, 2, 4))], dtype, effort="quick").path
    if (target, dtype) == ("onnx", "bfloat16"):
        with pytest.raises(nx.BackendError, match="no bfloat16"):
            nx.Embedder(artifact)
        return
    found, wanted = np.stack(list(nx.Embedder(artifact)(PHOTOS[:6]))), []
    pre = nx.Preprocessor.of(artifact)
    with torch.no_grad():
        for photo in PHOTOS[:6]:
            wanted.append(tiny.shallow()(*map(torch.from_numpy, pre([photo]).values()))[0].numpy())
    share = 1e-5 if dtype == "float32" else 5e-2
    assert np.abs(found - np.stack(wanted)).max() <= share * np.abs(np.stack(wanted)).max()
