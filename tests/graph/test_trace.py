"""The one ExportedProgram."""

from __future__ import annotations

import pytest
import tiny
import torch
from torch import nn

import naflex_export as nx
from naflex_export.batch import Batch
from naflex_export.graph.trace import trace
from naflex_export.models import adapter_of
from naflex_export.precision import Precision


def test_dimensions_are_named_and_open(siglip: nn.Module) -> None:
    program = trace(adapter_of(siglip), [nx.Bucket(64)], outputs=("features", "tokens"))
    assert [str(spec) for spec in program.inputs] == [
        "patches: float32 [batch, tokens, 48]",
        "patch_coord: int64 [batch, tokens, 2]",
        "patch_valid: bool [batch, tokens]",
    ]
    assert [str(spec) for spec in program.outputs] == [
        "features: float32 [batch, 32]",
        "tokens: float32 [batch, tokens, 32]",
    ]


def test_prefix_tokens_show_in_the_output_shape(classifier: nn.Module) -> None:
    program = trace(adapter_of(classifier), [nx.Bucket(64)], outputs=("tokens",))
    assert program.outputs[0].shape == ("batch", "tokens + 4", 32)


def test_tracing_copies_the_weights(mixed: Batch) -> None:
    model = tiny.siglip().train()
    program = trace(adapter_of(model), [nx.Bucket(64)], precision=Precision("bfloat16"))
    assert model.training and all(p.dtype == torch.float32 for p in model.parameters())
    state = program.exported.state_dict
    assert {tensor.dtype for tensor in state.values()} == {torch.bfloat16}
    shared = {p.data_ptr() for p in model.parameters()} & {tensor.data_ptr() for tensor in state.values()}
    assert not shared


def test_nothing_in_the_graph_waits_for_the_host(siglip: nn.Module) -> None:
    """No `.item()` and no operator whose shape depends on data."""
    program = trace(adapter_of(siglip), [nx.Bucket(64)])
    targets = {str(node.target) for node in program.exported.graph.nodes}
    assert not [
        name for name in targets if any(word in name for word in ("aten.item", "nonzero", "_local_scalar", "unique"))
    ]
    assert not [name for name in targets if "upsample" in name or "grid_sampler" in name]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"buckets": []}, "no bucket was given"),
        ({"outputs": ("logits",)}, "expected 'features', 'tokens' or both"),
        ({"outputs": ()}, "expected 'features', 'tokens' or both"),
    ],
)
def test_impossible_requests_are_refused(siglip: nn.Module, arguments: dict[str, object], message: str) -> None:
    with pytest.raises(nx.RequestError, match=message):
        trace(adapter_of(siglip), **{"buckets": [nx.Bucket(64)], **arguments})  # type: ignore[arg-type]
