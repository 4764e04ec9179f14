"""`nx.compile`: one graph for any grid."""

from __future__ import annotations

import copy
import random

import pytest
import timm
import tiny
import torch
from torch import nn

import naflex_export as nx
from naflex_export.batch import Batch, noise_batch
from naflex_export.grid import Grid


@pytest.fixture(scope="module")
def siglip() -> nn.Module:
    """One block is enough for what is asked of compiled graphs."""
    return tiny.shallow()


@pytest.fixture(scope="module")
def classifier() -> nn.Module:
    return tiny.shallow_classifier()


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


def test_no_argument_is_dropped(siglip: nn.Module, mixed: Batch) -> None:
    fast = nx.compile(siglip, backend="eager")
    named = {"patches": mixed.patches, "patch_coord": mixed.patch_coord, "patch_valid": mixed.patch_valid}
    mask = torch.zeros(6, 1, 26, 26)
    mask[..., 0] = -1e4
    with torch.no_grad():
        expected = siglip({**named, "attn_mask": mask})
        assert (expected - siglip(named)).abs().max() > 1e-2 * expected.abs().max()
        for found in (fast({**named, "attn_mask": mask, "seq_len": 26}), fast(*named.values(), attn_mask=mask)):
            assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()
    with pytest.raises(nx.InputError, match="'attn_masks' is nothing that the model reads: expected patches"):
        fast({**named, "attn_masks": mask})
    with pytest.raises(nx.InputError, match="'mask' is nothing that the model reads"):
        fast(*named.values(), mask=mask)
    with pytest.raises(nx.InputError, match="missing a required argument: 'x'"):
        fast(patch_coord=mixed.patch_coord)


def test_is_read_and_set_as_the_model_is(siglip: nn.Module, mixed: Batch) -> None:
    model = tiny.naflexvit("naflexvit_base_patch16_gap", num_classes=10, drop_rate=0.5)
    model.pretrained_cfg = {**model.pretrained_cfg, "mean": (0.1, 0.2, 0.3)}
    fast = nx.compile(model, backend="eager")
    assert timm.data.resolve_model_data_config(fast) == timm.data.resolve_model_data_config(model)
    assert fast.num_classes == 10 and fast.no_weight_decay() == model.no_weight_decay()
    assert [name for name, _ in fast.named_parameters()] == [name for name, _ in model.named_parameters()]
    assert fast.get_parameter("embeds.pos_embed") is model.embeds.pos_embed
    fast.set_grad_checkpointing(True)
    assert fast.model.grad_checkpointing and not model.grad_checkpointing
    assert fast.train().model.head_drop.training and not fast.eval().model.head_drop.training
    fast.note = 3
    assert fast.model.note == 3
    with pytest.raises(AttributeError, match="no_such_name"):
        fast.no_such_name  # noqa: B018
    twin = copy.deepcopy(fast)
    with torch.no_grad():
        twin.model.head.weight.zero_()
        inputs = mixed.patches, mixed.patch_coord, mixed.patch_valid
        assert (twin(*inputs) == twin.model.head.bias).all() and (
            fast(*inputs) - fast.model(*inputs)
        ).abs().max() < 1e-4


def test_a_submodule_keeps_its_own_mode() -> None:
    model = tiny.classifier().train()
    model.blocks[0].eval()
    fast = nx.compile(model)
    assert [module.training for module in fast.model.modules()] == [module.training for module in model.modules()]


@pytest.mark.parametrize("first", [1, 2, 3])
def test_two_images_are_not_taken_for_the_two_axes(first: int, siglip: nn.Module) -> None:
    counter = GraphCounter()
    fast = nx.compile(siglip, backend=counter)
    with torch.no_grad():
        for images in (first, 1, 5, 2, 12):
            batch = noise_batch("axes", [Grid(3, 4)] * images, 12, 48)
            fast(batch.patches, batch.patch_coord, batch.patch_valid)
    assert counter.graphs == 2


@pytest.mark.full
def test_many_models_and_modes_do_not_use_up_torchs_limit(mixed: Batch) -> None:
    """Left alone, torch stops at eight graphs of one piece of code, whichever models and modes they are of."""
    inputs = mixed.patches, mixed.patch_coord, mixed.patch_valid
    for _ in range(10):
        assert nx.compile(tiny.shallow(), backend="eager")(*inputs).shape == (6, 32)
    fast = nx.compile(tiny.shallow(), backend="eager")
    for training in (True, False):
        fast.train(training)
        for mode in (torch.enable_grad, torch.no_grad, torch.inference_mode):
            for dtype in (torch.bfloat16, torch.float16):
                with mode(), torch.autocast("cpu", dtype=dtype):
                    fast(*inputs)
                with mode():
                    fast(*inputs)


def test_the_negative_bit_is_read(siglip: nn.Module, mixed: Batch) -> None:
    fast = nx.compile(siglip, backend="aot_eager")
    negative = torch.complex(torch.zeros_like(mixed.patches), -mixed.patches).conj().imag
    with torch.no_grad():
        expected = siglip(mixed.patches, mixed.patch_coord, mixed.patch_valid)
        found = fast(negative, mixed.patch_coord, mixed.patch_valid)
    assert negative.is_neg() and (found - expected).abs().max() <= 1e-5 * expected.abs().max()
