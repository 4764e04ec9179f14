"""Resampling weights against `F.interpolate`."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
import torch
from conftest import MIXED
from evaluations import EVALUATIONS
from reference import axis_matrix, position_embedding
from torch import Tensor

from naflex_export.batch import noise_batch
from naflex_export.errors import RequestError
from naflex_export.grid import Grid
from naflex_export.resample.weights import Resampling, axis_weights, resampling_matrix

KINDS = [
    pytest.param(Resampling(mode, antialias, corners), id=f"{mode}{'-aa' * antialias}{'-ac' * corners}")
    for mode, antialias, corners in itertools.product(("bilinear", "bicubic"), (True, False), (False, True))
]
SOURCES = (7, 14, 16, 24, 32)


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("resampling", KINDS)
def test_matrices_are_those_of_interpolate(resampling: Resampling, source: int) -> None:
    """Every target length 1..128, both axes.

    Against float64, 6e-8 is the rounding of the stored float32. Against float32 the bound is torch's own: it computes
    positions near 32 in float32, whose step there is 4e-6, and reaches 3.5e-6.
    """
    for target, axis in itertools.product(range(1, 129), (0, 1)):
        ours = resampling_matrix(source, target, resampling)
        assert ours.dtype == torch.float32
        exact = axis_matrix(source, target, resampling, torch.float64, axis)
        assert (ours - exact).abs().max() <= 6.1e-8, (target, axis)
        single = axis_matrix(source, target, resampling, torch.float32, axis)
        assert (ours - single).abs().max() <= 4e-6, (target, axis)


@pytest.mark.parametrize("resampling", KINDS)
def test_weights_computed_in_float32_are_within_3e_7(resampling: Resampling) -> None:
    """The run-time path: numerators are exact, so only the division and the kernel round."""
    for source, target in itertools.product((7, 16, 32, 128), (1, 2, 5, 16, 31, 97, 128, 500, 1024)):
        position = torch.arange(target, dtype=torch.float32)
        weights = axis_weights(position, torch.full_like(position, target), source, resampling)
        assert (weights - resampling_matrix(source, target, resampling)).abs().max() <= 3e-7, (source, target)
        assert (weights.sum(-1) - 1).abs().max() <= 5e-7, (source, target)


@pytest.mark.parametrize("resampling", KINDS)
def test_same_length_is_the_identity(resampling: Resampling) -> None:
    """Timm takes the grid as it is when the sizes agree; the weights must say the same, exactly."""
    for length in (1, 2, 7, 16):
        assert torch.equal(resampling_matrix(length, length, resampling), torch.eye(length))


@pytest.mark.parametrize("square", [False, True], ids=["free", "aspect-preserving"])
@pytest.mark.parametrize("resampling", KINDS)
@pytest.mark.parametrize("source", [(7, 7), (16, 16), (5, 9)], ids=lambda s: f"g{s[0]}x{s[1]}")
@pytest.mark.parametrize("evaluate", EVALUATIONS)
def test_tokens_read_the_resized_grid(
    evaluate: Callable[..., Tensor], resampling: Resampling, source: tuple[int, int], square: bool
) -> None:
    grid = torch.randn(*source, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    batch = noise_batch("resample", MIXED, tokens=26, token_width=1)
    lengths = torch.tensor([[max(g)] * 2 for g in MIXED]) if square else None
    ours = evaluate(grid.float(), batch.patch_coord, resampling, lengths)
    expected = position_embedding(grid, MIXED, 26, resampling, square)
    assert (ours - expected).abs().max() <= 1e-6 * grid.abs().max()
    assert not ours[~batch.patch_valid].any()


@pytest.mark.parametrize("evaluate", EVALUATIONS)
def test_swapped_axes_would_be_seen(evaluate: Callable[..., Tensor]) -> None:
    """The comparison above can fail: (x, y) in place of (y, x) is far outside its bound."""
    grid = torch.randn(7, 7, 8, generator=torch.Generator().manual_seed(0))
    batch = noise_batch("resample", [Grid(3, 7)], tokens=21, token_width=1)
    swapped = evaluate(grid, batch.patch_coord.flip(-1), Resampling())
    assert (swapped - position_embedding(grid, [Grid(3, 7)], 21, Resampling())).abs().max() > 0.1


@pytest.mark.parametrize("evaluate", EVALUATIONS)
def test_autocast_leaves_the_resample_in_float32(evaluate: Callable[..., Tensor]) -> None:
    grid = torch.randn(7, 7, 8, generator=torch.Generator().manual_seed(0))
    coord = noise_batch("resample", MIXED, tokens=26, token_width=1).patch_coord
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = evaluate(grid, coord, Resampling())
    assert torch.equal(cast, evaluate(grid, coord, Resampling()))


def test_impossible_requests_are_refused() -> None:
    with pytest.raises(RequestError, match="'nearest' is not supported: expected 'bilinear' or 'bicubic'"):
        Resampling("nearest")  # type: ignore[arg-type]
    with pytest.raises(RequestError, match="cannot resample 0 samples to 4"):
        resampling_matrix(0, 4)
