"""Inputs of vision towers: what a Runner refuses of them, each with its message, and batches as towers take them."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from artifacts import manifest
from torch import Tensor

import naflex_export as nx
from naflex_export.batch import noise_batch
from naflex_export.grid import Grid
from naflex_export.serving.known_formats import input_format_of
from naflex_export.serving.runner import Runner
from naflex_export.serving.signature import TensorSpec
from naflex_export.serving.tower_format import TowerFormat

FORM = TowerFormat("hidden_states", (6,), merge=2)
GRIDS = (Grid(3, 4), Grid(1, 1), Grid(2, 5))
BUCKETS = (nx.Bucket(12, (1, 2, 3)),)
BATCH = noise_batch("tower", GRIDS, 14, 24)


class Checker(Runner):
    """A Runner that checks its inputs and gives back what it was called with."""

    def execute(self, inputs: tuple[Tensor, ...]) -> list[Tensor]:
        return list(inputs)


@pytest.fixture(scope="module")
def checker() -> Checker:
    shapes = [tuple({"values": 6, "frames and sides": 3}.get(dim, dim) for dim in dims) for dims in FORM.dims]
    dtypes = ("float32", "int64", "int64")
    specs = tuple(TensorSpec(*spec) for spec in zip(FORM.names, dtypes, shapes, strict=True))
    said = manifest(inputs=specs, outputs=specs, buckets=BUCKETS)
    assert said.packed
    return Checker(said, torch.device("cpu"))


def given() -> dict[str, Tensor]:
    return dict(zip(FORM.names, FORM.arrange(BATCH), strict=True))


def changed(name: str, change: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
    return {**given(), name: change(given()[name].clone())}


def put(index: int, value: object) -> Callable[[Tensor], Tensor]:
    def change(tensor: Tensor) -> Tensor:
        tensor[index] = torch.as_tensor(value)
        return tensor

    return change


BAD = {
    "frames": (changed("grid_thw", put(1, [2, 2, 2])), "grid_thw of image 1 is [2, 2, 2], of 2 frames: expected 1"),
    "an empty image": (changed("grid_thw", put(1, [1, 0, 2])), "grid_thw of image 1 is [1, 0, 2], which is empty"),
    "a negative side": (changed("grid_thw", put(0, [1, -6, -8])), "grid_thw of image 0 is [1, -6, -8], which is empty"),
    "no multiple": (changed("grid_thw", put(2, [1, 5, 8])), "image 2 is 5x8 patches, and the model merges 2x2 of them"),
    "another area": (changed("grid_thw", put(0, [1, 6, 10])), "6x10, 2x2, 4x10, 104 patches together, and hidden_stat"),
    "a huge side": (changed("grid_thw", put(0, [1, 2**62, 2**62])), "far more patches together, and hidden_states has"),
    "half a token": (changed("hidden_states", lambda patches: patches[:-1]), "expected a multiple of 4, hidden_states"),
    "missing patches": (changed("hidden_states", lambda patches: patches[:-4]), "92 patches together, and hidden_stat"),
    "short positions": (changed("positions", lambda tensor: tensor[:11]), "positions are 11 values"),
    "wrong positions": (changed("positions", put(1, 7)), "expected 0, 1, 2 and so on, 12 of them"),
    "two sides": (changed("grid_thw", lambda grids: grids[:, 1:]), "grid_thw has shape [3, 2]: expected 3"),
}


@pytest.mark.parametrize("name", BAD)
def test_refuses_what_is_no_pack_of_a_tower(checker: Checker, name: str) -> None:
    inputs, message = BAD[name]
    with pytest.raises(nx.InputError, match=re.escape(message)):
        checker(inputs)


def test_grids_that_nothing_follows_from_are_refused_as_grids(checker: Checker) -> None:
    patches, grids, _ = FORM.arrange(BATCH)
    with pytest.raises(nx.InputError, match="grid_thw is a list: expected a tensor or an array"):
        checker(patches, grids.tolist())
    with pytest.raises(nx.InputError, match="grid_thw is float32: expected int64; cast it"):
        checker(patches, grids.float())
    for wrong in (grids[:, 1:], grids[0]):
        with pytest.raises(
            nx.InputError, match=r"grid_thw has shape \[3(, 2)?\]: expected \[images, 3\]; positions were"
        ):
            checker(patches, wrong)


SIZES = {
    "a large image": ((Grid(1, 13),), "an image of 13 tokens is more than any bucket takes (12:1,2,3)"),
    "many images": ((Grid(1, 1),) * 4, "a pack of 4 images with 4 tokens, the longest 1, fits no bucket"),
}


@pytest.mark.parametrize("name", SIZES)
def test_refuses_more_than_its_buckets_take(checker: Checker, name: str) -> None:
    grids, message = SIZES[name]
    with pytest.raises(nx.InputError, match=re.escape(message)):
        checker(*FORM.arrange(noise_batch(name, grids, 13, 24)))


def test_positions_may_be_left_out(checker: Checker) -> None:
    full = given()
    patches, grids, positions = full.values()
    for found in (
        checker(patches, grids),
        checker(patches, grid_thw=grids),
        checker({"hidden_states": patches, "grid_thw": grids}),
        checker(full),
        checker(patches, grids, positions),
    ):
        assert isinstance(found, dict) and torch.equal(found["positions"], torch.arange(12))
    arrays = FORM.completed((patches.numpy(), grids.numpy()), {})[1]["positions"]
    assert np.array_equal(arrays, np.arange(12))


def test_patches_go_by_tokens_or_by_rows() -> None:
    numbered = torch.arange(8.0).reshape(1, 2, 4)  # an image of 1x2 tokens, of 2x2 patches of one value
    batch = replace(noise_batch("order", (Grid(1, 2),), 2, 4), patches=numbered)
    one, other = TowerFormat("hidden_states", (1,), 2), TowerFormat("pixel_values", (1, 1, 1), 2, by_rows=True)
    assert one.arrange(batch)[0].flatten().tolist() == [0, 1, 2, 3, 4, 5, 6, 7]
    patches, grids, positions = other.arrange(batch)
    assert patches.flatten().tolist() == [0, 1, 4, 5, 2, 3, 6, 7] and patches.shape == (8, 1, 1, 1)
    assert grids.tolist() == [[1, 2, 4]] and positions.tolist() == [0, 1]


def test_a_manifest_says_how_many_patches_are_merged(checker: Checker, tmp_path: Path) -> None:
    checker.manifest.write(tmp_path)
    read = type(checker.manifest).read(tmp_path).inputs
    assert read == checker.manifest.inputs
    form = input_format_of([spec.name for spec in read], read[0].shape)
    assert isinstance(form, TowerFormat) and form.merge == 2 and form.dims == FORM.dims
    assert checker.warmup() is checker


MARKED = TowerFormat("pixel_values", (6,), merge=2, by_rows=True, marks_rows=True)


def test_the_rows_of_a_tower_that_marks_them_may_be_left_out(tmp_path: Path) -> None:
    shapes = [tuple({"values": 6, "frames and sides": 3}.get(dim, dim) for dim in dims) for dims in MARKED.dims]
    dtypes = ("float32", "int64", "int64", "int64")
    specs = tuple(TensorSpec(*spec) for spec in zip(MARKED.names, dtypes, shapes, strict=True))
    manifest(inputs=specs, outputs=specs, buckets=BUCKETS).write(tmp_path)
    runner = Checker(type(manifest()).read(tmp_path), torch.device("cpu"))
    patches, grids, positions, rows = MARKED.arrange(BATCH)
    assert rows.tolist() == list(range(3 + 1 + 2))
    for found in (
        runner(patches, grids),
        runner(patches, grids, positions),
        runner(patches, grid_thw=grids, rows=rows),
    ):
        assert isinstance(found, dict) and torch.equal(found["rows"], rows)
    with pytest.raises(nx.InputError, match="rows are 5 values, .0, 1, 2, 3. and so on: expected 0, 1, 2 and so on, 6"):
        runner(patches, grids, positions, rows[:5])
    with pytest.raises(nx.InputError, match="expected 0, 1, 2 and so on, 6 of them for the rows of tokens"):
        runner(patches, grids, positions, rows.flip(0))


def test_marks_go_beside_the_tokens_that_they_follow() -> None:
    grids = (Grid(2, 2), Grid(1, 1))  # start, two rows of two tokens and an end, end; start, token, end of row, end
    rows = torch.arange(1.0, 13.0).unsqueeze(1)
    assert MARKED.by_token(rows, grids).tolist() == [
        *([2, 0, 1, 0], [3, 4, 0, 0], [5, 0, 0, 0], [6, 7, 0, 8]),
        [10, 11, 9, 12],
    ]
    assert MARKED.by_token(rows[1:], grids) is not None and len(MARKED.by_token(rows[1:], grids)) == 11
