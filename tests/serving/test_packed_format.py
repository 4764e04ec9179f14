"""Packed inputs: made of padded batches and back, and what a Runner refuses of them, each with its message."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import tiny
import torch
from artifacts import manifest
from torch import Tensor, nn

import naflex_export as nx
from naflex_export.batch import Batch, noise_batch
from naflex_export.grid import Grid
from naflex_export.serving.input_formats import TIMM, TRANSFORMERS
from naflex_export.serving.packed_format import PACKED
from naflex_export.serving.packing import padded_rows
from naflex_export.serving.runner import Runner
from naflex_export.serving.signature import TensorSpec

GRIDS = (Grid(3, 4), Grid(1, 1), Grid(2, 5))
BATCH = noise_batch("packed", GRIDS, 14, 48)
BUCKETS = (nx.Bucket(12, (1, 2, 3)),)


def padded(batch: Batch) -> dict[str, Tensor]:
    return dict(zip(TIMM.names, TIMM.arrange(batch), strict=True))


class Checker(Runner):
    """A Runner that checks its inputs and gives back what it was called with."""

    def execute(self, inputs: tuple[Tensor, ...]) -> list[Tensor]:
        return list(inputs)


@pytest.fixture(scope="module")
def checker() -> Checker:
    dtypes = ("float32", "int64", "int64", "int64", "int64")
    dims = [tuple({"values": 48, "axes": 2}.get(dim, dim) for dim in dims) for dims in PACKED.dims]
    specs = tuple(TensorSpec(*spec) for spec in zip(PACKED.names, dtypes, dims, strict=True))
    said = manifest(inputs=specs, outputs=specs, buckets=BUCKETS)
    assert said.packed and not manifest().packed
    return Checker(said, torch.device("cpu"))


def test_a_pack_and_back() -> None:
    other = noise_batch("other", (Grid(2, 2),), 4, 48)
    packed = nx.pack([padded(BATCH), padded(other)])
    assert packed["offsets"].tolist() == [0, 12, 13, 23, 27] and packed["grids"].tolist() == [*map(list, GRIDS), [2, 2]]
    assert len(packed["positions"]) == 12 and len(packed["patches"]) == 27
    assert list(packed) == list(PACKED.names)
    back = nx.unpack(packed, tokens=14)
    for name, tensor in padded(BATCH).items():
        assert torch.equal(back[name][:3], tensor)
    assert nx.unpack(packed)["patches"].shape == (4, 12, 48)
    with pytest.raises(nx.InputError, match="longest image has 12 tokens, and it was to be padded to 11"):
        nx.unpack(packed, tokens=11)


def test_packs_of_every_form_are_the_same() -> None:
    arranged = dict(zip(PACKED.names, PACKED.arrange(BATCH), strict=True))
    transformers = dict(zip(TRANSFORMERS.names, TRANSFORMERS.arrange(BATCH), strict=True))
    for batches in (padded(BATCH), [padded(BATCH)], TIMM.arrange(BATCH), transformers):
        packed = nx.pack(batches)
        assert all(torch.equal(packed[name], arranged[name]) for name in PACKED.names)


@pytest.mark.parametrize("given", [[], {"patches": torch.zeros(1)}, [3]], ids=["none", "a name alone", "a number"])
def test_refuses_what_is_no_batch(given: object) -> None:
    with pytest.raises(nx.InputError, match="expected"):
        nx.pack(given)


def test_rows_go_back_with_prefix_tokens_ahead() -> None:
    valid = torch.tensor([[True, False], [True, True]])
    rows = torch.arange(7.0).unsqueeze(1)  # two prefix tokens an image, then three patches
    assert padded_rows(rows, valid, 2).squeeze(-1).tolist() == [[0, 1, 4, 0], [2, 3, 5, 6]]


def test_positions_may_be_left_out(checker: Checker) -> None:
    packed = nx.pack(padded(BATCH))
    short = {name: tensor for name, tensor in packed.items() if name != "positions"}
    for found in (
        checker(packed),
        checker(short),
        checker(**short),
        checker(*short.values()),
        checker(*packed.values()),
    ):
        assert isinstance(found, dict) and torch.equal(found["positions"], torch.arange(12))


def changed(name: str, change: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
    packed = nx.pack(padded(BATCH))
    return {**packed, name: change(packed[name].clone())}


def put(index: int, value: object) -> Callable[[Tensor], Tensor]:
    def change(tensor: Tensor) -> Tensor:
        tensor[index] = torch.as_tensor(value)
        return tensor

    return change


BAD = {
    "not from 0": (changed("offsets", put(0, 1)), "offsets start at 1: expected 0"),
    "not ascending": (changed("offsets", put(2, 5)), "offsets do not ascend: image 1 starts at 12 and ends at 5"),
    "an empty image": (changed("offsets", put(2, 12)), "offsets give image 1 no token: expected at least one"),
    "not to the end": (changed("offsets", put(3, 22)), "offsets end at 22, and there are 23 patches"),
    "an area": (changed("grids", put(0, [3, 5])), "grids of image 0 is 3x5 = 15 patches, and its offsets give it 12"),
    "no side": (changed("grids", put(2, [0, 5])), "grids of image 2 is [0, 5]: expected a height and a width of at"),
    "a huge side": (changed("grids", put(0, [2**62, 2**62])), "grids of image 0 is"),
    "turned": (changed("grids", put(2, [5, 2])), "patch_coord of image 2 does not go row by row through its grid"),
    "shuffled": (changed("patch_coord", put(3, [2, 2])), "token 3 is at [2, 2], expected [0, 3]"),
    "short positions": (changed("positions", lambda tensor: tensor[:11]), "positions are 11 values"),
    "wrong positions": (changed("positions", put(1, 7)), "expected 0, 1, 2 and so on, 12 of them"),
    "few offsets": (changed("offsets", lambda tensor: tensor[:3]), "offsets has shape [3]: expected images + 1=4"),
}


@pytest.mark.parametrize("name", BAD)
def test_refuses_what_is_no_pack(checker: Checker, name: str) -> None:
    given, message = BAD[name]
    with pytest.raises(nx.InputError, match=re.escape(message)):
        checker(given)


SIZES = {
    "a large image": ((Grid(1, 13),), "an image of 13 tokens is more than any bucket takes (12:1,2,3)"),
    "many images": ((Grid(1, 1),) * 4, "a pack of 4 images with 4 tokens, the longest 1, fits no bucket"),
}


@pytest.mark.parametrize("name", SIZES)
def test_refuses_more_than_its_buckets_take(checker: Checker, name: str) -> None:
    grids, message = SIZES[name]
    with pytest.raises(nx.InputError, match=re.escape(message)):
        checker(nx.pack(padded(noise_batch(name, grids, 13, 48))))


def test_a_manifest_of_packed_inputs_is_read_again(checker: Checker, tmp_path: Path) -> None:
    checker.manifest.write(tmp_path)
    assert type(checker.manifest).read(tmp_path).inputs == checker.manifest.inputs


def test_a_model_that_is_not_known_to_pack_is_refused(classifier: nn.Module) -> None:
    class Holder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = classifier

    with pytest.raises(nx.UnsupportedModelError, match="Holder is no model that takes packs"):
        nx.vectorize(Holder(), packed=True)
    with pytest.raises(nx.UnsupportedModelError, match="attends by a ParallelThingsBlock|cannot be packed"):
        from timm.models.vision_transformer import ParallelThingsBlock

        nx.vectorize(tiny.naflexvit(block_fn=ParallelThingsBlock), packed=True)
