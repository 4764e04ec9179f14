"""`nx.compile`: one graph for any grid."""

from __future__ import annotations

import random

import pytest
import tiny
import torch
from torch import nn

import naflex_export as nx
from naflex_export.batch import Batch, noise_batch
from naflex_export.grid import Grid


def random_batch(draw: random.Random, index: int) -> Batch:
    tokens = draw.choice([1, 2, 5, 16, 31, 48, 64])
    grids = []
    for _ in range(draw.choice([1, 1, 2, 3, 5, 8])):
        height = draw.randint(1, tokens)
        grids.append(Grid(height, draw.randint(1, tokens // height)))
    return noise_batch(f"random-{index}", grids, tokens, 48)


class GraphCounter:
    """A backend that compiles nothing and counts what it is given."""

    def __init__(self) -> None:
        self.graphs = 0

    def __call__(self, graph: torch.fx.GraphModule, example: list[torch.Tensor]) -> torch.fx.GraphModule:
        self.graphs += 1
        return graph


def test_200_random_batches_need_two_graphs_and_no_break(classifier: nn.Module) -> None:
    """`fullgraph=True` makes any graph break an error; the counter sees every recompilation."""
    counter = GraphCounter()
    fast = nx.compile(classifier, [nx.Bucket(64)], backend=counter)
    draw = random.Random(0)
    with torch.no_grad():
        fast.warmup()
        assert counter.graphs <= 2
        for index in range(200):
            batch = random_batch(draw, index)
            inputs = (batch.patches, batch.patch_coord, batch.patch_valid)
            expected = classifier(*inputs)
            assert (fast(*inputs) - expected).abs().max() <= 1e-5 * expected.abs().max(), batch.grids
    assert counter.graphs <= 2


def test_the_original_breaks_the_graph(classifier: nn.Module, mixed: Batch) -> None:
    """The test above can fail: timm's own loop cannot be one graph."""
    broken = torch.compile(classifier, fullgraph=True, backend="eager")
    with pytest.raises(torch._dynamo.exc.Unsupported):
        broken(mixed.patches, mixed.patch_coord, mixed.patch_valid)


def test_inductor_equals_eager(siglip: nn.Module, mixed: Batch) -> None:
    fast = nx.compile(siglip)
    with torch.no_grad():
        expected = siglip(mixed.patches, mixed.patch_coord, mixed.patch_valid)
        named = {"patches": mixed.patches, "patch_coord": mixed.patch_coord, "patch_valid": mixed.patch_valid}
        assert (fast(named) - expected).abs().max() <= 1e-5 * expected.abs().max()


def test_trains_and_keeps_the_models_own_keys(mixed: Batch) -> None:
    model = tiny.classifier().train()
    fast = nx.compile(model, backend="aot_eager")
    assert fast.training and list(fast.state_dict()) == list(model.state_dict())
    fast(mixed.patches, mixed.patch_coord, mixed.patch_valid).square().sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    fast.load_state_dict({name: torch.zeros_like(tensor) for name, tensor in model.state_dict().items()})
    assert not any(parameter.any() for parameter in model.parameters())


@pytest.mark.parametrize("option", ["fullgraph", "dynamic"])
def test_fixed_options_are_refused(option: str, siglip: nn.Module) -> None:
    with pytest.raises(nx.RequestError, match=f"option '{option}' cannot be given"):
        nx.compile(siglip, **{option: False})
