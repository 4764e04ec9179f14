"""Photos and generated batches."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import nn

import naflex_export as nx
from naflex_export.accuracy.case_grids import naflex_grid, naflex_grids
from naflex_export.accuracy.cases import cases_of, generated_batch
from naflex_export.accuracy.efforts import CaseSelection, difference_from_standard
from naflex_export.accuracy.photos import load_photos, photo_batches
from naflex_export.batch import Batch, noise_batch
from naflex_export.graph.trace import EXAMPLE, EXAMPLE_TOKENS
from naflex_export.grid import Grid
from naflex_export.models import adapter_of


def test_three_photos_of_different_shapes_ship_with_the_package() -> None:
    photos = load_photos()
    assert len(photos.images) == 3 and not photos.skipped
    shapes = [image.height / image.width for image in photos.images.values()]
    assert sorted(shape > 1 for shape in shapes) == [False, False, True] and 1.0 in shapes
    licence = Path(load_photos.__code__.co_filename).parent / "LICENSE"
    assert all(name in licence.read_text() for name in photos.images)


def test_photos_become_padded_batches_by_timms_transform(siglip: nn.Module) -> None:
    transform = adapter_of(siglip).transform(64)
    first, second = photo_batches(load_photos(), transform, nx.Bucket(64, (1, 2, 4)))
    assert [len(first.grids), len(second.grids)] == [2, 1]
    assert first.patches.shape == (2, 64, 48) and first.patches.dtype == torch.float32
    for batch in (first, second):
        assert [grid.tokens for grid in batch.grids] == batch.patch_valid.sum(dim=1).tolist()
        assert -1 <= batch.patches.min() < -0.5 and 0.5 < batch.patches.max() <= 1  # the model's mean and std are 0.5
        assert not batch.patches[~batch.patch_valid].any()


def test_files_that_are_no_images_are_skipped_and_named(tmp_path: Path) -> None:
    Image.new("RGB", (40, 20), "red").save(tmp_path / "good.png")
    Image.new("RGB", (400, 200), "red").save(tmp_path / "half.jpg")
    (tmp_path / "half.jpg").write_bytes((tmp_path / "half.jpg").read_bytes()[:-300])
    (tmp_path / "notes.txt").write_text("no image")
    (tmp_path / ".hidden").write_text("left alone")
    photos = load_photos(tmp_path)
    assert list(photos.images) == ["good.png"]
    assert photos.skipped == {"half.jpg": "truncated image", "notes.txt": "not an image"}


def test_folders_without_an_image_are_refused(tmp_path: Path) -> None:
    with pytest.raises(nx.RequestError, match="holds no image among its 0 files: expected at least one photo"):
        load_photos(tmp_path)
    (tmp_path / "notes.txt").write_text("no image")
    with pytest.raises(nx.RequestError, match="holds no image among its 1 files"):
        load_photos(tmp_path)
    with pytest.raises(nx.RequestError, match=r"nowhere' cannot be read \(it does not exist\): expected a folder"):
        load_photos(tmp_path / "nowhere")
    with pytest.raises(nx.RequestError, match=r"notes.txt' cannot be read \(not a folder\)"):
        load_photos(tmp_path / "notes.txt")


def test_generated_batches_are_seeded_and_differ_from_the_export_example() -> None:
    bucket = nx.Bucket(30, (1, 4, 8))

    def made(seed: int) -> list[Batch]:
        return [generated_batch(name, bucket, 12) for name in cases_of(bucket, CaseSelection(seed), num_photos=0)]

    one, again, other = (made(seed) for seed in (0, 0, 1))
    assert all(torch.equal(a.patches, b.patches) for a, b in zip(one, again, strict=True))
    assert not torch.equal(one[0].patches, other[0].patches)
    shapes = {tuple(batch.patch_valid.shape) for batch in one}
    assert (len(EXAMPLE), EXAMPLE_TOKENS) not in shapes and (1, 30) in shapes
    for batch in one:
        assert all(grid.tokens <= 30 for grid in batch.grids)


def test_efforts_say_what_they_skip_or_add() -> None:
    assert difference_from_standard("standard") == ""
    skipped = "one-row, square, smallest, padding, large-values, largest-batch"
    assert difference_from_standard("quick") == f"without {skipped}; invariances in the largest bucket only"
    assert difference_from_standard("thorough") == "with full-batch, every-grid too; 4 seeds"


def test_efforts_say_which_cases() -> None:
    bucket = nx.Bucket(30, (2, 4, 8))
    quick, standard, thorough = (
        cases_of(bucket, CaseSelection(5, effort), num_photos=5) for effort in ("quick", "standard", "thorough")
    )
    assert quick == ["photos-30-0", "photos-30-1", "mixed-30-seed5", "one-column-30-seed5"]
    assert set(quick) < set(standard) < set(thorough)
    assert {"mixed-30-seed8", "full-batch-30-seed5", "every-grid-0-30-seed5"} <= set(thorough)
    grids = set()
    for name in thorough[2:]:
        batch = generated_batch(name, bucket, 12)
        assert batch.name == name and 2 <= len(batch.grids) <= 8
        assert batch.patch_valid.shape[1] <= 30
        grids |= set(batch.grids) if name.startswith("every-grid") else set()
    assert grids == set(naflex_grids(30)) and len(grids) > 10
    with pytest.raises(nx.RequestError, match="effort 'hard' is unknown: expected one of quick, standard, thorough"):
        CaseSelection(effort="hard")


@pytest.mark.parametrize("seed", [-1, 2**31])
def test_a_seed_that_no_case_can_be_named_by_is_refused(seed: int) -> None:
    with pytest.raises(nx.RequestError, match=f"seed {seed}: expected a whole number from 0 to 2147483647"):
        CaseSelection(seed)


def test_a_case_is_made_again_from_its_name() -> None:
    bucket = nx.Bucket(30, (2, 4, 8))
    only = CaseSelection(only=("every-grid-1-30-seed7", "large-values-30-seed7", "photos-30-1", "mixed-31-seed0"))
    assert cases_of(bucket, only, num_photos=5) == ["photos-30-1", "large-values-30-seed7", "every-grid-1-30-seed7"]
    large = generated_batch("large-values-30-seed7", bucket, 12)
    assert large.patches[large.patch_valid].std() > 8


def test_grids_follow_the_size_rule() -> None:
    assert naflex_grid(1.0, 256) == Grid(16, 16)
    tall, wide = naflex_grid(8.0, 256), naflex_grid(1 / 8, 256)
    assert tall == Grid(wide.width, wide.height)
    assert tall.tokens <= 256 and tall.height >= 40


def test_noise_is_valid_first_and_row_by_row() -> None:
    batch = noise_batch("x", [Grid(2, 3), Grid(1, 1)], 7, 5)
    assert batch.patch_valid.sum(dim=1).tolist() == [6, 1]
    assert batch.patch_coord[0].tolist() == [[0, 0], [0, 1], [0, 2], [1, 0], [1, 1], [1, 2], [0, 0]]
    assert not batch.patches[1, 1:].any() and batch.patches[0, :6].all()
