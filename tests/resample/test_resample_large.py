"""Reading large source grids: few cells and blocks say what the weights of every cell say."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
import torch
from conftest import MIXED
from evaluations import EVALUATIONS
from reference import position_embedding
from torch import Tensor

from naflex_export.batch import noise_batch
from naflex_export.errors import RequestError
from naflex_export.resample import weights as resample
from naflex_export.resample.graph_form import resample_axes_at
from naflex_export.resample.weights import Resampling, axis_samples, axis_weights, reads_few_cells

SPARSE = [
    pytest.param(Resampling(mode, antialias=False, align_corners=corners), id=f"{mode}{'-ac' * corners}")
    for mode, corners in itertools.product(("bilinear", "bicubic"), (False, True))
]


@pytest.mark.parametrize("source", [1, 2, 3, 7, 16, 128])
@pytest.mark.parametrize("resampling", SPARSE)
def test_the_few_samples_have_the_weights_that_are_not_zero(resampling: Resampling, source: int) -> None:
    """Scattered back, in float32, where a position within a rounding of a sample may be either side of it."""
    for target in (1, 2, 3, 5, 16, 31, 97, 128, 500, 1024):
        position = torch.arange(target, dtype=torch.float32)
        length = torch.full_like(position, target)
        index, weight = axis_samples(position, length, source, resampling)
        assert index.dtype == torch.int64 and index.shape == weight.shape == (target, 2 * resampling.radius)
        assert index.min() >= 0 and index.max() < source
        scattered = torch.zeros(target, source).scatter_add_(1, index, weight)
        assert (scattered - axis_weights(position, length, source, resampling)).abs().max() <= 5e-7, target


def test_an_antialiased_resize_reads_no_few_samples() -> None:
    position = torch.zeros(1)
    with pytest.raises(RequestError, match="an antialiased resize reads no fixed number of samples: use axis_weights"):
        axis_samples(position, position + 1, 4, Resampling())


@pytest.mark.parametrize("fill", [False, True], ids=["zeros", "filled"])
@pytest.mark.parametrize("antialias", [True, False], ids=["aa-blocks", "noaa-few-cells"])
@pytest.mark.parametrize("cells", [1, 20, 62, 63, 1024], ids=lambda n: f"upto{n}")
@pytest.mark.parametrize("evaluate", EVALUATIONS)
def test_every_way_to_read_a_grid_gives_the_same(
    evaluate: Callable[..., Tensor], cells: int, antialias: bool, fill: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A 9x7 grid: as a whole, in blocks of two rows and a last one of one, row by row, and by few cells."""
    grid = torch.randn(9, 7, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    batch = noise_batch("large", MIXED, tokens=26, token_width=1)
    resampling = Resampling(antialias=antialias)
    monkeypatch.setattr(resample, "DENSE_CELLS", cells)
    assert reads_few_cells((9, 7), resampling) == (not antialias and cells < 63)
    found = evaluate(grid.float(), batch.patch_coord, resampling, fill_padding=fill)
    expected = position_embedding(grid, MIXED, 26, resampling)
    assert (found - expected)[batch.patch_valid].abs().max() <= 1e-6 * grid.abs().max()
    first = found[:, :1] if fill else torch.zeros(1)
    assert torch.equal(found[~batch.patch_valid], first.expand_as(found)[~batch.patch_valid])


@pytest.mark.parametrize("square", [False, True], ids=["free", "aspect-preserving"])
def test_factorized_tables_are_resized_each_along_its_axis(square: bool) -> None:
    draw = torch.Generator().manual_seed(0)
    rows, columns = (torch.randn(n, 8, generator=draw, dtype=torch.float64) for n in (9, 7))
    batch = noise_batch("factorized", MIXED, tokens=26, token_width=1)
    resampling = Resampling("bilinear", antialias=False)
    lengths = torch.tensor([[max(g)] * 2 for g in MIXED]) if square else None
    found = resample_axes_at(rows.float(), columns.float(), batch.patch_coord, resampling, lengths)
    grid = rows.unsqueeze(1) + columns.unsqueeze(0)  # linear along each axis, so the sum may be resized instead
    expected = position_embedding(grid, MIXED, 26, resampling, square)
    assert (found - expected).abs().max() <= 1e-6 * grid.abs().max()
    assert not found[~batch.patch_valid].any()
