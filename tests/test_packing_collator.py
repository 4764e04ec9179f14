"""Samples of timm's loader as packs: first fit, nothing lost, what fits nowhere refused."""

from __future__ import annotations

import pytest
import torch

import naflex_export as nx
from naflex_export.batch import noise_batch
from naflex_export.grid import Grid

GRIDS = (Grid(2, 5), Grid(3, 3), Grid(1, 4), Grid(2, 2), Grid(1, 1))
BATCH = noise_batch("collated", GRIDS, 10, 12)
SAMPLES = [
    ({"patches": BATCH.patches[i], "patch_coord": BATCH.patch_coord[i], "patch_valid": BATCH.patch_valid[i]}, i)
    for i in range(len(GRIDS))
]


def test_each_image_is_in_the_first_pack_with_room() -> None:
    packs = nx.PackingCollator(tokens=14)(SAMPLES)
    assert [targets.tolist() for _, targets in packs] == [[0, 2], [1, 3, 4]]
    assert [pack["offsets"].tolist() for pack, _ in packs] == [[0, 10, 14], [0, 9, 13, 14]]
    for pack, targets in packs:
        padded = nx.unpack(pack, tokens=10)
        assert torch.equal(padded["patches"], BATCH.patches[targets])
        assert torch.equal(padded["patch_coord"], BATCH.patch_coord[targets])


def test_refuses_what_fits_no_pack() -> None:
    with pytest.raises(nx.InputError, match="sample 0 has 10 tokens, more than the 9 of a pack"):
        nx.PackingCollator(tokens=9)(SAMPLES)
    with pytest.raises(nx.RequestError, match="tokens=0: expected an integer of at least 1"):
        nx.PackingCollator(tokens=0)


def test_refuses_what_is_no_sample_of_timm() -> None:
    (image, target), *_ = SAMPLES
    collate = nx.PackingCollator(tokens=14)
    for sample in (image, (image,), ({"patches": image["patches"]}, target), (target, image)):
        with pytest.raises(nx.InputError, match="sample 1 is no .* expected .*patches, patch_coord, patch_valid"):
            collate([SAMPLES[0], sample])
    with pytest.raises(nx.InputError, match="targets of a pack are of dict: expected tensors or numbers"):
        collate([(image, {"label": 1})])
