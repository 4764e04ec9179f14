"""SigLIP 2 of transformers on packed tokens: the padded tower's outputs and gradients, and its exports."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from torch import nn

import naflex_export as nx
from naflex_export.batch import noise_batch
from naflex_export.grid import Grid
from naflex_export.serving.input_formats import TRANSFORMERS
from naflex_export.serving.packed_format import PACKED

transformers = pytest.importorskip("transformers")

GRIDS = (Grid(3, 5), Grid(1, 1), Grid(4, 2), Grid(9, 2), Grid(8, 8))
BATCH = noise_batch("siglip2 packed", GRIDS, 70, 48)


def test_outputs_and_gradients_are_those_of_the_padded_tower() -> None:
    model: Any = tiny.siglip2()
    packed: Any = nx.vectorize(model, packed=True)
    pack = nx.pack(dict(zip(TRANSFORMERS.names, TRANSFORMERS.arrange(BATCH), strict=True)))
    wanted, given = model(*TRANSFORMERS.arrange(BATCH)), packed(**pack)
    tokens = wanted.last_hidden_state[BATCH.patch_valid]
    torch.testing.assert_close(given.pooler_output, wanted.pooler_output, atol=1e-5, rtol=0)
    torch.testing.assert_close(given.last_hidden_state.squeeze(0), tokens, atol=1e-5, rtol=0)
    theirs = torch.autograd.grad(wanted.pooler_output.square().sum(), list(model.parameters()))
    ours = torch.autograd.grad(given.pooler_output.square().sum(), list(packed.parameters()))
    scale = max(float(gradient.abs().max()) for gradient in theirs)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5 * scale, rtol=0)
    again = packed(*TRANSFORMERS.arrange(BATCH))  # and padded batches as before
    torch.testing.assert_close(again.pooler_output, wanted.pooler_output, atol=1e-5, rtol=0)


def test_a_pack_gives_a_tuple_where_it_is_asked_for_and_says_what_it_leaves_out() -> None:
    packed: Any = nx.vectorize(tiny.siglip2(), packed=True)
    pack = nx.pack(dict(zip(TRANSFORMERS.names, TRANSFORMERS.arrange(BATCH), strict=True)))
    tokens, features = packed(**pack, return_dict=False)
    named = packed(**pack)
    assert torch.equal(tokens, named.last_hidden_state) and torch.equal(features, named.pooler_output)
    with pytest.warns(UserWarning, match="output_hidden_states was asked for, and a vectorized tower records none"):
        packed(**pack, output_hidden_states=True)


@pytest.mark.full
def test_an_export_is_judged_against_the_padded_tower(tmp_path: Path) -> None:
    model = tiny.siglip2()
    artifact = nx.export(
        model, "onnx", tmp_path / "a", [nx.Bucket(24, (1, 3, 6))], outputs=("features", "tokens"), packed=True
    )
    assert [spec.name for spec in artifact.manifest.inputs] == list(PACKED.names)
    assert artifact.report.passed and len(artifact.report.invariances) == 4


def test_refuses_a_classifier_and_subclasses() -> None:
    from transformers import Siglip2Config, Siglip2ForImageClassification, Siglip2VisionModel

    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = Siglip2Config(vision_config={**sizes, "patch_size": 4, "num_patches": 25}, text_config=sizes)
    with pytest.raises(nx.UnsupportedModelError, match="Siglip2ForImageClassification pools padded tokens"):
        nx.vectorize(Siglip2ForImageClassification(config), packed=True)
    model: nn.Module = tiny.siglip2()
    model.__class__ = type("Mine", (Siglip2VisionModel,), {})
    with pytest.raises(nx.UnsupportedModelError, match="Mine is a subclass of Siglip2VisionModel"):
        nx.vectorize(model, packed=True)
