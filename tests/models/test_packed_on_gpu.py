"""What torch.compile makes of packed models on a GPU: traced with tensors that say they are there, and hold nothing."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import tiny
import torch
from torch import Tensor, fx, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import ShapeEnv

pytest.importorskip("transformers")

from tower_tiny import GRIDS, TOWERS

from naflex_export.batch import noise_batch
from naflex_export.models import adapter_of, packed_of, packing

PREFIX = {"reg_tokens": 2, "class_token": True}

MODELS: dict[str, Callable[[], nn.Module]] = {
    "timm": tiny.naflexvit,
    "timm, prefix tokens": lambda: tiny.naflexvit(name="naflexvit_base_patch16_gap", **PREFIX),
    "siglip2": tiny.siglip2,
    "tower": TOWERS["kimi_k25"],
}


@pytest.fixture(autouse=True)
def _hopper(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (9, 0))


needs_varlen = pytest.mark.skipif(not packing.HAS_VARLEN, reason="this torch has no varlen_attn")


def graphs_on_gpu(model: nn.Module, dtype: torch.dtype) -> list[fx.GraphModule]:
    """Return the graphs that torch.compile makes of a packed encoder on a GPU, of which none may break."""
    adapter = packed_of(adapter_of(model))
    batch = noise_batch("packed", GRIDS, max(grid.tokens for grid in GRIDS), adapter.token_width)
    inputs = adapter.input_format.arrange(batch)
    encoder = copy.deepcopy(adapter.vectorized().encoder(adapter.default_outputs))
    found: list[fx.GraphModule] = []

    def keep(graph: fx.GraphModule, inputs: list[Tensor]) -> Callable[..., Any]:
        found.append(graph)
        return graph.forward

    def there(tensor: Tensor) -> Tensor:
        return torch.empty(tensor.shape, dtype=dtype if tensor.is_floating_point() else tensor.dtype, device="cuda")

    torch.compiler.reset()
    with FakeTensorMode(allow_non_fake_inputs=True, shape_env=ShapeEnv()), torch.no_grad():
        for module in encoder.modules():
            for name, parameter in module._parameters.items():
                if parameter is not None:
                    module._parameters[name] = nn.Parameter(there(parameter))
            for name, buffer in module._buffers.items():
                if buffer is not None:
                    module._buffers[name] = there(buffer)
        torch.compile(encoder, backend=keep, fullgraph=True, dynamic=True)(*map(there, inputs))
    return found


def calls(graph: fx.GraphModule, name: str) -> list[fx.Node]:
    """Return the nodes that call what has this in its name."""
    return [node for node in graph.graph.nodes if node.op.startswith("call") and name in str(node.target)]


def is_on_gpu(node: fx.Node) -> bool:
    value = node.meta.get("example_value")
    return isinstance(value, Tensor) and value.device.type == "cuda"


@needs_varlen
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if "prefix" in name else pytest.mark.full) for name in MODELS]
)
def test_attention_is_one_operator_and_nothing_waits(name: str) -> None:
    """In 16 bits. Only pooling is gathered to a padded batch, once; prefix tokens are brought to their images."""
    model = MODELS[name]()
    (graph,) = graphs_on_gpu(model, torch.bfloat16)
    assert len(calls(graph, "varlen_attn")) == 2  # blocks
    assert len(calls(graph, "function embedding")) <= (name != "tower")
    assert len(calls(graph, "scaled_dot_product_attention")) <= (name in ("timm", "siglip2"))  # attention pooling
    assert len(calls(graph, "index_select")) <= {"timm, prefix tokens": 12, "tower": 9}.get(name, 4)
    waits = [node for word in ("item", "tolist", "nonzero", "unique") for node in calls(graph, word)]
    assert [node for node in waits if node.target != "item" and "getitem" not in str(node.target)] == []
    assert [node for node in waits if node.target == "item" and any(map(is_on_gpu, node.all_input_nodes))] == []


@needs_varlen
@pytest.mark.parametrize(
    ("model", "capability"),
    [(lambda: tiny.naflexvit(embed_dim=24), (9, 0)), (tiny.naflexvit, (7, 5))],
    ids=["heads-of-12", "turing"],
)
def test_what_the_kernel_does_not_take_is_gathered(
    model: Callable[[], nn.Module], capability: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would raise: it takes heads of multiples of 8 values, and runs from Ampere on."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: capability)
    (graph,) = graphs_on_gpu(model(), torch.bfloat16)
    assert not calls(graph, "varlen_attn")
    assert len(calls(graph, "scaled_dot_product_attention")) == 3


@needs_varlen
@pytest.mark.full
def test_float32_is_gathered_for_the_kernel_takes_16_bits() -> None:
    (graph,) = graphs_on_gpu(tiny.naflexvit(), torch.float32)
    assert not calls(graph, "varlen_attn")
    assert len(calls(graph, "scaled_dot_product_attention")) == 3
