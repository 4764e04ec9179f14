"""Packed inputs: made of padded batches and back, and what a Runner refuses of them, each with its message."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
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
    "a negative place": (changed("patch_coord", put(13, [0, -1])), "patch_coord of token 13 is [0, -1], of image 2"),
    "outside": (changed("patch_coord", put(22, [2, 0])), "token 22 is at [2, 0], expected [1, 4]"),
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


@pytest.mark.parametrize("name", BAD)
def test_a_pack_is_checked_where_it_is_undone(name: str) -> None:
    given, message = BAD[name]
    with pytest.raises(nx.InputError, match=re.escape(message)):
        nx.unpack(given)


NO_PACK: dict[str, tuple[dict[str, object], str]] = {
    "a list": ({"offsets": [0, 12, 13, 23]}, "offsets is a list: expected a tensor or an array"),
    "an array": ({"offsets": np.array([0, 12, 13, 23])}, "offsets is a ndarray: expected a torch.Tensor, as torch.fr"),
    "fractions": ({"grids": torch.ones(3, 2)}, "grids is float32: expected whole numbers, int64"),
    "a line of grids": ({"grids": torch.ones(3).long()}, "grids has shape [3]: expected 2 axes, [images, axes]"),
    "three sides": ({"grids": torch.ones(3, 3).long()}, "grids has shape [3, 3]: expected axes=2, [images, axes]"),
    "no image": ({"grids": torch.ones(0, 2).long()}, "grids has shape [0, 2]: expected images=at least 1"),
    "left out": ({"grids": None}, "grids is missing of the pack: expected patches, patch_coord, grids, offsets, posi"),
    "negative": ({"grids": torch.tensor([[-3, -4], [1, 1], [2, 5]])}, "grids of image 0 is [-3, -4]: expected a heig"),
}


@pytest.mark.parametrize("name", NO_PACK)
def test_a_live_model_and_unpack_refuse_what_is_no_pack(name: str, packs: nn.Module) -> None:
    changes, message = NO_PACK[name]
    given = {**nx.pack(padded(BATCH)), **changes}
    for call in (
        nx.unpack,
        packs,
        lambda pack: packs(pack["patches"], **{k: v for k, v in pack.items() if k != "patches"}),
    ):
        with pytest.raises(nx.InputError, match=re.escape(message)):
            call(dict(given))


@pytest.fixture(scope="module")
def packs() -> nn.Module:
    return nx.vectorize(tiny.naflexvit(), packed=True, strict=True)


@pytest.mark.parametrize("name", BAD)
def test_a_live_model_refuses_what_is_no_pack(name: str, packs: nn.Module) -> None:
    given, message = BAD[name]
    with pytest.raises(nx.InputError, match=re.escape(message)):
        packs(given)


def test_a_live_model_takes_images_that_lack_tokens_unless_it_is_strict() -> None:
    """As a padded one does, whose mask may have gaps: the gate masks tokens."""
    lenient = nx.vectorize(tiny.naflexvit(), packed=True)
    lenient(changed("grids", put(0, [3, 5])))
    with pytest.raises(nx.InputError, match="offsets do not ascend"):
        lenient(changed("offsets", put(2, 5)))
    with pytest.raises(nx.InputError, match=r"token 16 is at \[0, 3\], outside the grid of image 2, 4x3: expected"):
        lenient(changed("grids", put(2, [4, 3])))


def test_a_live_model_finds_positions_by_itself(packs: nn.Module) -> None:
    packed = nx.pack(padded(BATCH))
    wanted = packs(packed)
    del packed["positions"]
    assert torch.equal(packs(packed), wanted)


def batch_with(name: str, change: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
    return {**padded(BATCH), name: change(padded(BATCH)[name].clone())}


def hf_with(index: int, shape: list[int], count: int) -> dict[str, Tensor]:
    """A batch of transformers' whose mask marks so many tokens of an image of this shape."""
    given = dict(zip(TRANSFORMERS.names, (tensor.clone() for tensor in TRANSFORMERS.arrange(BATCH)), strict=True))
    given["spatial_shapes"][index] = torch.tensor(shape)
    given["pixel_attention_mask"][index] = (torch.arange(14) < count).int()
    return given


NO_BATCH = {
    "arrays": (
        {name: tensor.numpy() for name, tensor in padded(BATCH).items()},
        "patches is a ndarray: expected a torch.",
    ),
    "fractions": (batch_with("patch_coord", lambda tensor: tensor + 0.5), "patch_coord is float32: expected whole num"),
    "no token": (batch_with("patch_valid", put(1, False)), "offsets give image 1 no token"),
    "negative": (
        batch_with("patch_coord", lambda tensor: tensor - 1),
        "patch_coord of token 0 is [-1, -1], of image 0: ex",
    ),
    "not row by row": (batch_with("patch_coord", lambda tensor: tensor.flip(-1)), "patch_coord of image 0 does not go"),
    "half a row": (batch_with("patch_valid", lambda valid: valid & (torch.arange(14) < 11)), "grids of image 0 is 3x4"),
    "other images": (
        batch_with("patch_valid", lambda tensor: tensor[:2]),
        "patch_valid has shape [2, 14]: expected ba",
    ),
    "flat patches": (
        batch_with("patches", lambda tensor: tensor[0]),
        "patches has shape [14, 48]: expected [batch, to",
    ),
    "a row too few": (hf_with(0, [3, 4], 8), "image 0 is 3x4 = 12 patches, and its pixel_attention_mask marks 8"),
    "an empty shape": (hf_with(2, [0, 5], 10), "spatial_shapes of image 2 is [0, 5]: expected a height and a width"),
    "a string": ("patches", "a str cannot be packed"),
}


@pytest.mark.parametrize("name", NO_BATCH)
def test_refuses_a_batch_that_contradicts_itself(name: str) -> None:
    given, message = NO_BATCH[name]
    with pytest.raises(nx.InputError, match=re.escape(message)):
        nx.pack(given)


def test_refuses_batches_of_patches_of_several_sizes() -> None:
    with pytest.raises(nx.InputError, match="patches have 27 values in one batch and 48 in another"):
        nx.pack([padded(BATCH), padded(noise_batch("small", GRIDS, 14, 27))])


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
