"""The evaluation for a CPU: its gradients, what it does in place, and where it runs at all."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import tiny
import torch
from conftest import MIXED
from evaluations import add_to_zeros, each_way_to_read
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import make_fx

import naflex_export as nx
from naflex_export.batch import noise_batch
from naflex_export.graph.trace import trace
from naflex_export.grid import Grid
from naflex_export.models import adapter_of
from naflex_export.resample import add as rule
from naflex_export.resample import cpu as resample_cpu
from naflex_export.resample import weights as resample
from naflex_export.resample.cpu import _Axes
from naflex_export.resample.graph_form import resample_at
from naflex_export.resample.weights import Resampling

TWICE = (*MIXED, Grid(5, 4), Grid(3, 7))
"""Some grids come twice, so that their gradients are summed."""


def coordinates(kind: str) -> Tensor:
    """Return [8, N, 2] coordinates: as loaders give them, shuffled within each image, or cut off."""
    coord = noise_batch("cpu", TWICE, tokens=26, token_width=1).patch_coord
    if kind == "shuffled":
        draw = torch.Generator().manual_seed(0)
        for image, grid in enumerate(TWICE):
            coord[image, : grid.tokens] = coord[image, torch.randperm(grid.tokens, generator=draw)]
    return coord[:, :19] if kind == "cut" else coord


@each_way_to_read
def test_values_and_gradients_are_those_of_the_graph(
    resampling: Resampling, cells: int, kind: str, fill: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Autograd differentiates the graph's evaluation; here the gradient is written out."""
    monkeypatch.setattr(resample, "DENSE_CELLS", cells)
    draw = torch.Generator().manual_seed(0)
    coord = coordinates(kind)
    flow = torch.randn(*coord.shape[:2], 8, generator=draw)
    found = []
    for evaluate in (resample_at, add_to_zeros):
        grid = torch.randn(9, 7, 8, generator=torch.Generator().manual_seed(1)).requires_grad_()
        out = evaluate(grid, coord, resampling, fill_padding=fill)
        out.backward(flow)
        assert grid.grad is not None
        found.append((out.detach(), grid.grad))
    (value, gradient), (our_value, our_gradient) = found
    assert (our_value - value).abs().max() <= 1e-6 * value.abs().max()
    assert (our_gradient - gradient).abs().max() <= 1e-6 * gradient.abs().max()


@pytest.mark.parametrize("sparse", [0, 1024], ids=["few-cells", "whole"])
@pytest.mark.parametrize("merge", [1, 2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("resampling", [Resampling(), Resampling(antialias=False), Resampling("bilinear", False, True)])
def test_a_pack_is_read_as_in_a_graph(
    resampling: Resampling, dtype: torch.dtype, merge: int, sparse: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its images follow each other, some of one grid, with their tokens in squares or row by row."""
    monkeypatch.setattr(resample_cpu, "SPARSE", sparse)
    grids = [(grid.height * merge, grid.width * merge) for grid in TWICE]
    coord, sides = [], []
    for height, width in grids:
        corners = torch.cartesian_prod(torch.arange(0, height, merge), torch.arange(0, width, merge))
        within = torch.cartesian_prod(torch.arange(merge), torch.arange(merge))
        coord.append((corners.unsqueeze(1) + within).flatten(0, 1))
        sides.append(torch.tensor([[height, width]]).expand(height * width, 2))
    draw = torch.Generator().manual_seed(0)
    source = torch.randn(9, 7, 8, generator=draw).requires_grad_()
    wanted = resample_at(source, torch.cat(coord).unsqueeze(1), resampling, torch.cat(sides), fill_padding=True)
    flow = torch.randn(1, len(wanted), 8, generator=draw).to(dtype)
    (wanted_gradient,) = torch.autograd.grad(wanted, source, flow.float().view(wanted.shape))
    reader = resample_cpu.pack_reader((9, 7), grids, merge, resampling)
    given = torch.zeros(1, len(wanted), 8, dtype=dtype)
    reader.add_to_(given, source.detach())
    scale, step = wanted.detach().abs().max(), 1e-6 if dtype is torch.float32 else 2**-8
    assert (given.view(wanted.shape).float() - wanted.detach()).abs().max() <= step * scale
    gradient = reader.gradient(flow, (9, 7))
    assert (gradient - wanted_gradient).abs().max() <= 2e-6 * wanted_gradient.abs().max()


@pytest.mark.parametrize("values", [2**18, 150, 1], ids=["whole", "parts", "one-by-one"])
def test_both_orders_of_the_axes_are_taken_and_agree(values: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A wide target resizes rows first, a tall one columns; the other order gives the same."""
    monkeypatch.setattr(resample_cpu, "LINES", values)
    draw = torch.Generator().manual_seed(0)
    grid = torch.randn(9, 7, 8, generator=draw)
    orders = []
    for h, w in ((2, 11), (11, 2)):
        rows, columns = torch.randn(h, 9, generator=draw), torch.randn(w, 7, generator=draw)
        target = _Axes(rows, columns)
        orders.append(target.rows_come_first)
        expected = torch.einsum("hi,wj,ijc->hwc", rows, columns, grid).flatten(0, 1)
        resized = torch.zeros_like(expected)
        target.add_to_(resized, grid)
        assert (resized - expected).abs().max() <= 1e-5
        back = torch.zeros_like(grid)
        target.add_gradient_(back, expected)
        wanted = torch.einsum("hi,wj,hwc->ijc", rows, columns, expected.view(h, w, -1))
        assert (back - wanted).abs().max() <= 1e-5 * wanted.abs().max()
    assert orders == [True, False]


def test_it_is_differentiable_twice() -> None:
    """The gradient is linear in what flows back, and its own gradient is the embedding of the other grid."""
    coord, resampling = coordinates("loader"), Resampling()
    grid = torch.randn(9, 7, 8, generator=torch.Generator().manual_seed(1)).requires_grad_()
    other = torch.randn(9, 7, 8, generator=torch.Generator().manual_seed(2))
    flow = torch.zeros(*coord.shape[:2], 8, requires_grad=True)
    (gradient,) = torch.autograd.grad(add_to_zeros(grid, coord, resampling), grid, flow, create_graph=True)
    (second,) = torch.autograd.grad(gradient, flow, other)
    assert (second - resample_at(other, coord, resampling)).abs().max() <= 1e-6 * other.abs().max()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("flat", [False, True], ids=["BNC", "rows"])
def test_it_adds_in_place_in_the_dtype_of_the_tokens(dtype: torch.dtype, flat: bool) -> None:
    draw = torch.Generator().manual_seed(0)
    grid, coord = torch.randn(9, 7, 8, generator=draw), coordinates("loader")
    tokens = torch.randn(*coord.shape[:2], 8, generator=draw, dtype=torch.float64).to(dtype)
    expected = tokens + resample_at(grid, coord, Resampling()).to(dtype)
    given = tokens.flatten(0, 1).clone() if flat else tokens.clone()
    pointer = given.data_ptr()
    found = rule.add_by_operator(given, grid, coord, Resampling())
    assert found.data_ptr() == pointer and found.dtype == dtype and found.shape == given.shape
    atol = {torch.float32: 1e-6, torch.bfloat16: 0.04, torch.float64: 1e-6}[dtype]  # bfloat16: a step at 4
    assert (found.view(expected.shape) - expected).abs().max() <= atol


def test_tokens_and_gradients_may_lie_in_any_order() -> None:
    """Channels first in memory, and a gradient that is one number."""
    draw = torch.Generator().manual_seed(0)
    grid, coord = torch.randn(9, 7, 8, generator=draw).requires_grad_(), coordinates("loader")
    tokens = torch.randn(8, *coord.shape[:2], generator=draw).permute(1, 2, 0)
    pos = resample_at(grid, coord, Resampling())
    (expected,) = torch.autograd.grad(pos.sum(), grid)
    found = rule.add_by_operator(tokens.clone(memory_format=torch.preserve_format), grid, coord, Resampling())
    assert not found.is_contiguous()
    assert (found - tokens - pos).abs().max() <= 1e-6 * pos.abs().max()
    (gradient,) = torch.autograd.grad(found.sum(), grid)
    assert (gradient - expected).abs().max() <= 1e-6 * expected.abs().max()


MEMORY: dict[str, Callable[[Tensor], Tensor]] = {
    "channels-first": lambda x: x.permute(2, 0, 1).contiguous().permute(1, 2, 0),
    "images-innermost": lambda x: x.permute(1, 2, 0).contiguous().permute(2, 0, 1),
    "part-of-a-wider-tensor": lambda x: torch.cat([x, x], dim=-1)[..., : x.shape[-1]],
    "every-other-token": lambda x: x.repeat_interleave(2, dim=1)[:, ::2],
}


@pytest.mark.parametrize("memory", MEMORY)
@pytest.mark.parametrize("grid", [Grid(2, 9), Grid(9, 2), Grid(4, 4)], ids=str)
def test_an_image_alone_with_its_grid_may_lie_in_any_memory(memory: str, grid: Grid) -> None:
    """It is added to without a tensor between, rows or columns first as its shape has it."""
    coord = noise_batch("cpu", [grid, Grid(1, 1)], tokens=20, token_width=1).patch_coord
    source = torch.randn(9, 7, 8, generator=torch.Generator().manual_seed(0))
    tokens = MEMORY[memory](torch.zeros(2, 20, 8))
    assert not tokens.is_contiguous()
    found = rule.add_by_operator(tokens, source, coord, Resampling())
    expected = resample_at(source, coord, Resampling())
    assert found.data_ptr() == tokens.data_ptr()
    assert (found - expected).abs().max() <= 1e-6 * expected.abs().max()


@each_way_to_read
def test_images_of_one_grid_are_resized_to_lengths_of_their_own(
    resampling: Resampling, cells: int, kind: str, fill: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lengths are a caller's choice: a grid may be a corner of a larger resize for one image and not for the next."""
    monkeypatch.setattr(resample, "DENSE_CELLS", cells)
    coord = coordinates(kind)
    grids, extra = coord.amax(dim=1) + 1, torch.arange(len(coord)).unsqueeze(1)
    lengths = grids + extra % torch.tensor([2, 3])
    assert (grids[-1] == grids[0]).all() and (lengths[-1] != lengths[0]).any()
    source = torch.randn(9, 7, 8, generator=torch.Generator().manual_seed(1))
    found = add_to_zeros(source, coord, resampling, lengths, fill_padding=fill)
    expected = resample_at(source, coord, resampling, lengths, fill_padding=fill)
    assert (found - expected).abs().max() <= 1e-6 * expected.abs().max()


def test_a_tensor_saved_for_another_gradient_is_not_changed_unseen() -> None:
    """Autograd is told of the change, and refuses what it would make wrong."""
    x = torch.randn(8 * 26, 8, requires_grad=True)
    squared = x * 1.0
    product = squared * squared
    rule.add_by_operator(squared, torch.randn(9, 7, 8), coordinates("loader"), Resampling())
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        product.sum().backward()


class Position(nn.Module):
    """A learned grid and the rule."""

    def __init__(self) -> None:
        super().__init__()
        self.grid = nn.Parameter(torch.randn(9, 7, 8, generator=torch.Generator().manual_seed(0)))

    def forward(self, tokens: Tensor, coord: Tensor) -> Tensor:
        return rule.add_resampled(tokens.clone(), self.grid, coord, Resampling())


def operators(graph: torch.fx.Graph) -> list[str]:
    return [str(node.target) for node in graph.nodes if node.op == "call_function"]


def test_an_exported_graph_has_no_operator_of_ours() -> None:
    module, coord = Position(), coordinates("loader")
    exported = torch.export.export(module, (torch.zeros(8, 26, 8), coord))
    assert not [name for name in operators(exported.graph) if name.startswith("naflex_export")]
    assert (exported.module()(torch.zeros(8, 26, 8), coord) - module(torch.zeros(8, 26, 8), coord)).abs().max() <= 1e-5


def test_a_graph_of_torchscript_has_none_either() -> None:
    """It leaves torch too: the older ONNX exporter begins with it, and others do."""
    module, coord = Position().eval(), coordinates("loader")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit is deprecated
        traced = torch.jit.trace(module, (torch.zeros(8, 26, 8), coord))
    kinds = [node.kind() for node in traced.inlined_graph.nodes()]
    assert "aten::matmul" in kinds and not [kind for kind in kinds if kind.startswith("naflex_export")]
    turned = coord.flip(-1)
    expected = module(torch.zeros(8, 26, 8), turned)
    assert (traced(torch.zeros(8, 26, 8), turned) - expected).abs().max() <= 1e-5


def test_a_program_has_none_either() -> None:
    names = operators(trace(adapter_of(tiny.siglip()), [nx.Bucket(16)]).exported.graph)
    assert len(names) > 50 and not [name for name in names if "naflex_export" in name]


def test_another_device_gets_the_graphs_evaluation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rule, "add_by_operator", pytest.fail)
    with torch.device("meta"):
        found = rule.add_resampled(
            torch.zeros(8, 26, 8), torch.zeros(9, 7, 8), torch.zeros(8, 26, 2, dtype=torch.long), Resampling()
        )
    assert found.shape == (8, 26, 8)


def test_a_trace_keeps_no_grids() -> None:
    """Whatever traces sees one operator, and serves grids it was not traced with."""
    module = Position().eval()
    tokens, coord = torch.zeros(8, 26, 8), coordinates("loader")
    turned = coord.flip(-1)
    with torch.no_grad():
        expected = module(tokens, turned)
        traced = make_fx(module)(tokens, coord)
        assert "naflex_export.add_resampled_.default" in operators(traced.graph)
        compiled: Any = torch.compile(module, backend="aot_eager", fullgraph=True)
        compiled(tokens, coord)
        for run in (traced, compiled):
            assert (run(tokens, turned) - expected).abs().max() <= 1e-6 * expected.abs().max()
        assert not torch.equal(module(tokens, coord), expected)


def test_a_compiled_graph_holds_nothing_that_depends_on_data() -> None:
    seen: list[list[str]] = []

    def backend(module: torch.fx.GraphModule, _: Any) -> Any:
        seen.append([str(node.target) for node in module.graph.nodes])
        return module

    compiled = torch.compile(nx.vectorize(tiny.siglip()).embeds, backend=backend, fullgraph=True)
    batch = noise_batch("cpu", TWICE, tokens=26, token_width=48)
    compiled(batch.patches, batch.patch_coord)
    (names,) = seen
    assert len(names) > 3
    assert not [name for name in names if name in ("item", "tolist", "nonzero", "unique")]
