"""What the kernels for a GPU compute, on a CPU: `TRITON_INTERPRET=1 pytest tests/resample/interpreted_kernels.py`.

Triton reads the variable when it is imported, so that `test_resample/gpu.py` runs this file in a process of its own.
"""

from __future__ import annotations

import pytest
import torch
from evaluations import each_pair_of_ways_to_read
from test_resample_cpu import coordinates
from torch import Tensor

from naflex_export.resample import add as rule
from naflex_export.resample import gpu as resample_gpu
from naflex_export.resample import weights as resample
from naflex_export.resample.coordinates import grids_of
from naflex_export.resample.graph_form import resample_at
from naflex_export.resample.weights import Resampling


@pytest.fixture(autouse=True)
def _float32_products(monkeypatch: pytest.MonkeyPatch) -> None:
    """Triton's interpreter has no other, and computes them as they are."""
    monkeypatch.setattr(resample_gpu, "precision", lambda dtype: "ieee")


def read(
    grid: Tensor, coord: Tensor, resampling: Resampling, x: Tensor, flow: Tensor, *, fill: bool = False
) -> tuple[Tensor, Tensor]:
    """Return the sum and the grid's gradient."""
    grid_reader = resample_gpu.grid_reader((grid.shape[0], grid.shape[1]), coord, grids_of(coord), resampling, fill)
    found = x.clone()
    grid_reader.add_to_(found, grid)
    return found, grid_reader.gradient(flow, (grid.shape[0], grid.shape[1]))


@each_pair_of_ways_to_read
def test_values_and_gradients_are_those_of_the_graph(
    resampling: Resampling, cells: int, kind: str, fill: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resample, "DENSE_CELLS", cells)
    coord, draw = coordinates(kind)[:4], torch.Generator().manual_seed(0)
    grid = torch.randn(9, 19, 70, generator=draw).requires_grad_()  # neither fits a block
    flow, x = (torch.randn(*coord.shape[:2], 70, generator=draw) for _ in range(2))
    pos = resample_at(grid, coord, resampling, fill_padding=fill)
    pos.backward(flow)
    assert grid.grad is not None
    value, gradient = read(grid.detach(), coord, resampling, x, flow, fill=fill)
    assert (value - x - pos.detach()).abs().max() <= 1e-6 * pos.abs().max()
    assert (gradient - grid.grad).abs().max() <= 2e-6 * grid.grad.abs().max()


def test_a_source_too_large_to_hold_is_read_token_by_token(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of lines of three blocks of cells, the last of them in part, where two blocks are the most to be held."""
    monkeypatch.setattr(resample_gpu, "LONGEST_LINE", 64)
    coord, draw = coordinates("loader")[:2], torch.Generator().manual_seed(0)
    grid = torch.randn(2, resample_gpu.LONGEST_LINE + 1, 8, generator=draw).requires_grad_()
    flow, x = (torch.randn(*coord.shape[:2], 8, generator=draw) for _ in range(2))
    pos = resample_at(grid, coord, Resampling())
    pos.backward(flow)
    assert grid.grad is not None
    value, gradient = read(grid.detach(), coord, Resampling(), x, flow)
    assert (value - x - pos.detach()).abs().max() <= 1e-6 * pos.abs().max()
    assert (gradient - grid.grad).abs().max() <= 2e-6 * grid.grad.abs().max()


@pytest.mark.parametrize("cells", [1024, 1], ids=["rows", "few-cells"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float64], ids=str)
def test_sums_are_rounded_as_torch_rounds_them(dtype: torch.dtype, cells: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resample, "DENSE_CELLS", cells)
    coord, resampling, draw = coordinates("loader"), Resampling(antialias=False), torch.Generator().manual_seed(0)
    grid = torch.randn(9, 7, 8, generator=draw)
    x, flow = (torch.randn(*coord.shape[:2], 8, generator=draw, dtype=torch.float64).to(dtype) for _ in range(2))
    expected = x + resample_at(grid, coord, resampling).to(dtype)
    found, gradient = read(grid, coord, resampling, x, flow)
    assert (found - expected).abs().max() <= (1e-6 if dtype is torch.float64 else 2e-3)
    assert (found != expected).float().mean() <= (1 if dtype is torch.float64 else 0.01)
    assert gradient.dtype is torch.float32


def test_sums_of_several_parts_are_those_of_one(monkeypatch: pytest.MonkeyPatch) -> None:
    coord, draw = coordinates("loader").repeat(4, 1, 1), torch.Generator().manual_seed(0)
    grid, x = torch.randn(9, 7, 8, generator=draw), torch.zeros(*coord.shape[:2], 8)
    flow = torch.randn(x.shape, generator=draw)
    _, several = read(grid, coord, Resampling(), x, flow)
    monkeypatch.setattr(resample_gpu, "PARTIAL_BYTES", 0)
    _, one = read(grid, coord, Resampling(), x, flow)
    assert not torch.equal(several, one)  # in another order
    assert (several - one).abs().max() <= 1e-6 * one.abs().max()


def test_the_operator_reaches_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """Autograd, second derivatives and the operator are the CPU's; here a CPU's tensors go through the kernels."""
    monkeypatch.setattr(rule.resample_cpu, "grid_reader", resample_gpu.grid_reader)
    coord, resampling = coordinates("loader"), Resampling()
    grid, other = (torch.randn(9, 7, 8, generator=torch.Generator().manual_seed(seed)) for seed in (1, 2))
    grid.requires_grad_()
    flow = torch.zeros(*coord.shape[:2], 8, requires_grad=True)
    out = rule.add_resampled(torch.zeros(flow.shape), grid, coord, resampling)
    assert (out - resample_at(grid, coord, resampling)).abs().max() <= 1e-6 * grid.abs().max()
    (gradient,) = torch.autograd.grad(out, grid, flow, create_graph=True)
    (second,) = torch.autograd.grad(gradient, flow, other)
    assert (second - resample_at(other, coord, resampling)).abs().max() <= 1e-6 * other.abs().max()
