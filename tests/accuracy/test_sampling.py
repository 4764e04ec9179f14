"""The sample of all sizes: which faults it strikes, what it covers, and what it costs."""

from __future__ import annotations

import pytest
import sized_faults
from sized_faults import BUCKET, NAMED, VARIANTS, found_by

import naflex_export as nx
from naflex_export.accuracy.case_grids import sizes_of_cases
from naflex_export.accuracy.cases import cases_of, generated_batch, survey_names
from naflex_export.accuracy.efforts import EFFORTS, LARGER, CaseSelection
from naflex_export.accuracy.sampling import (
    ARRANGEMENTS,
    arrangements_of,
    cells_of,
    covered_by,
    sample,
    shape_of,
    strata,
    stratum_of,
)
from naflex_export.grid import Grid

pytestmark = pytest.mark.usefixtures("survey")

BY_CASES_TOO = (
    *("batch of 2", "squares below 16", "two rows", "2 to 8 tokens", "122 to 254 tokens", "even tokens below 256"),
    "grids of 10 to 200 patches",
)
"""Of `NAMED`: cases have several sizes, so that they strike what needs no sample."""


@pytest.mark.parametrize("seed", [0, 7])
@pytest.mark.parametrize("name", NAMED)
def test_a_fault_at_some_sizes_is_struck(name: str, seed: int) -> None:
    """By the fixed sample alone, without what is drawn anew."""
    selection = CaseSelection(seed, fresh_seed=seed)
    names = [found for found in survey_names(BUCKET, selection) if found.startswith("sampled")]
    assert found_by(NAMED[name], names)
    if name not in BY_CASES_TOO:
        cases_before = [one for one in cases_of(BUCKET, selection, num_photos=0) if not one.startswith(LARGER)]
        assert not found_by(NAMED[name], cases_before)


def test_nearly_all_variants_of_those_faults_are_struck() -> None:
    """By other seeds some miss one or two: a pair of sizes that costs too much, or a narrow shape."""
    names = [name for name in survey_names(BUCKET, CaseSelection(fresh_seed=0)) if name.startswith("sampled")]
    missed = [name for name, fault in VARIANTS.items() if not found_by(fault, names)]
    assert not missed


def test_cases_and_sample_strike_faults_that_were_written_later() -> None:
    for seed in (0, 1):
        selection = CaseSelection(seed, fresh_seed=0)
        names = [name for name in survey_names(BUCKET, selection) if name.startswith("sampled")]
        names += cases_of(BUCKET, selection, num_photos=0)
        faults = sized_faults.LATER | sized_faults.TILED
        missed = [name for name, fault in faults.items() if not found_by(fault, names)]
        assert not missed


@pytest.mark.parametrize("seed", [0, 1, 2, 3])
def test_every_remainder_and_every_arrangement_is_met(seed: int) -> None:
    """Of tokens by 16 above 16 and by 8 above 64, of images by 8; sizes between the turning points, and orders too."""
    others = sizes_of_cases(BUCKET, seed)
    sizes = [*others, *sample(BUCKET, seed, EFFORTS["standard"].sampled, others)]
    assert {one.tokens % 16 for one in sizes if one.tokens > 16} == set(range(16))
    assert {one.tokens % 8 for one in sizes if one.tokens > 64} == set(range(8))
    assert {len(one.grids) % 8 for one in sizes} == set(range(8))
    assert any(10 <= len(one.grids) <= 14 for one in sizes) and any(18 <= len(one.grids) <= 30 for one in sizes)
    assert {name for one in sizes for name in arrangements_of(one.grids)} == set(ARRANGEMENTS)


def test_the_sample_is_the_same_for_a_seed_and_stays_within_its_cost() -> None:
    selection = CaseSelection(3, fresh_seed=9)
    assert survey_names(BUCKET, selection) == survey_names(BUCKET, CaseSelection(3, fresh_seed=9))
    assert survey_names(BUCKET, selection) != survey_names(BUCKET, CaseSelection(3, fresh_seed=10))
    tokens = [generated_batch(name, BUCKET, 1).patch_valid.numel() for name in survey_names(BUCKET, selection)]
    assert sum(tokens) < 3200 and max(tokens) <= 640  # as many as the cases themselves have
    thorough = survey_names(BUCKET, CaseSelection(3, "thorough", fresh_seed=9))
    assert set(survey_names(BUCKET, selection)) < set(thorough)
    assert not survey_names(BUCKET, CaseSelection(effort="quick"))


def test_buckets_of_one_size_are_sampled_too() -> None:
    for bucket in (nx.Bucket(1, (1, 1, 1)), nx.Bucket(16, (2, 2, 2)), nx.Bucket(5, (3, 4, 7))):
        smallest, _, largest = bucket.batch
        for name in survey_names(bucket, CaseSelection(fresh_seed=1)):
            images, tokens = generated_batch(name, bucket, 1).patch_valid.shape
            assert smallest <= images <= largest and 1 <= tokens <= bucket.tokens


def test_strata_go_up_to_each_power_of_two() -> None:
    assert strata(1, 32) == ["1", "2", "3 to 4", "5 to 8", "9 to 16", "17 to 32"]
    assert strata(3, 20) == ["3 to 4", "5 to 8", "9 to 16", "17 to 20"]
    assert strata(6, 6) == ["6"]
    for smallest, largest in ((1, 32), (3, 20), (6, 6), (1, 1), (2, 300)):
        assert {stratum_of(size, smallest, largest) for size in range(smallest, largest + 1)} == set(
            strata(smallest, largest)
        )


def test_every_grid_has_a_shape_and_every_cell_can_be_covered() -> None:
    shapes = {
        "one patch": (1, 1),
        "one row": (1, 5),
        "one column": (5, 1),
        "square": (3, 3),
        "nearly square": (2, 4),
        "wide": (2, 5),
        "tall": (16, 2),
        "very wide": (2, 17),
        "very tall": (17, 2),
    }
    assert {name: shape_of(Grid(*grid)) for name, grid in shapes.items()} == {name: name for name in shapes}
    from naflex_export.accuracy.sampling import Sizes

    bucket = nx.Bucket(20, (1, 2, 4))
    everything = [
        Sizes((Grid(height, width),) * images, tokens)
        for tokens in range(1, 21)
        for height in range(1, tokens + 1)
        for width in range(1, tokens // height + 1)
        for images in range(1, 5)
    ]
    assert covered_by(bucket, everything) == set(cells_of(bucket))
