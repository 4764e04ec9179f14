"""An overflow of float16 anywhere in a model: what the gate advises passes, and so does what the search finds."""

from __future__ import annotations

import copy
import functools
import itertools
import re
from typing import Any

import planted
import pytest
import tiny
import torch
from torch import Tensor, nn

import naflex_export as nx
from naflex_export.accuracy.precision_cost import Costs
from naflex_export.accuracy.precision_search import Names, search
from naflex_export.accuracy.reference import SoundInterpolate
from naflex_export.accuracy.results import GateReport
from naflex_export.models import adapter_of
from naflex_export.models.kept_parts import ModelParts, blocks_of
from naflex_export.models.mixed_precision import cast_encoder, cast_model, keeping_softmax
from naflex_export.precision import Precision

SHORT = (planted.scores, planted.pooled_mlp, planted.norm_in_block, planted.positions, planted.layer_scale)


class Mixed(nn.Module):
    """Eager in float16, with parts of it in float32."""

    def __init__(self, model: nn.Module, names: Names) -> None:
        super().__init__()
        precision, adapter = Precision("float16", names), adapter_of(copy.deepcopy(model))
        self.kept = cast_model(adapter, precision)
        self.encoder = cast_encoder(adapter.encoder(adapter.default_outputs), precision)

    def forward(self, *inputs: Tensor) -> Tensor:
        with keeping_softmax(self.kept), SoundInterpolate():
            features: Tensor = self.encoder(*inputs)[0]
        return features


def gated(model: nn.Module) -> Any:
    """Return what judges a model with parts of it in float32, each set once."""

    @functools.cache
    def judged(names: Names) -> GateReport:
        kept: dict[str, Any] = {"dtype": "float16", "keep_float32": names}
        return nx.gate(Mixed(model, names), model, buckets=[nx.Bucket(16, (1, 2, 4))], effort="quick", **kept)

    return judged


@pytest.mark.parametrize(
    "plant",
    [
        *SHORT,
        *(pytest.param(one, marks=pytest.mark.full) for one in planted.IN_SIGLIP if one not in SHORT),
        *planted.IN_SIGLIP2,
    ],
)
def test_advice_and_search_end_with_what_passes(plant: planted.Plant) -> None:
    """Whatever holds the large values: what reads them is kept with it, and no name is advised that adds nothing."""
    if plant in planted.IN_SIGLIP2:
        pytest.importorskip("transformers")
    model = planted.with_overflow(plant)
    adapter, judged = adapter_of(model), gated(model)
    first = judged(())
    assert not first.passed and first.location is not None
    advised = re.search(r"\(--keep-float32 (\S+)\)", first.location.advice)
    assert advised is not None
    names = tuple(advised[1].split(","))
    if not judged(names).passed:  # a weight of what holds the module that is named
        advised = re.search(r"\(--keep-float32 (\S+)\)", judged(names).location.advice)
        assert advised is not None and plant is planted.probe_of_siglip2
        names = tuple(advised[1].split(","))
        assert judged(names).passed
    costs = Costs.of(adapter, 16)

    def cost(names: Names) -> float:
        return costs.of_precision(Precision("float16", names))

    found, report = search(judged, cost, blocks_of(adapter), parts=ModelParts(adapter))
    assert report.passed and found.found and cost(found.found) <= cost(names)
    assert len(found.steps) <= 6


def test_what_no_part_can_mend_is_refused() -> None:
    """Logits that float16 cannot hold are no matter of any module; the search says so, and the advice."""
    model = tiny.classifier()
    with torch.no_grad():
        model.head.weight.mul_(1e6)
    adapter, judged = adapter_of(model), gated(model)
    found, report = search(judged, lambda names: 1.0, blocks_of(adapter), parts=ModelParts(adapter))
    assert found.found is None and not report.passed and report.location is not None
    assert {"pooling", "residual", "embedding", "blocks.0", "blocks.1"} == set(found.steps[-1].keep_float32)
    assert "export in float32, or export in bfloat16" in report.location.advice


@pytest.mark.full
def test_the_search_finds_the_cheapest_of_all_sets_of_blocks_and_presets() -> None:
    """Of every set of four blocks, the residual stream with its norms, and scores, no cheaper one passes."""
    model = planted.in_stream_and_block(4)
    adapter, judged = adapter_of(model), gated(model)
    costs = Costs.of(adapter, 16)

    def price(names: Names) -> float:
        return costs.of_precision(Precision("float16", names))

    found, _ = search(judged, price, blocks_of(adapter), parts=ModelParts(adapter))
    assert found.found
    parts = [("residual", "norm"), ("softmax",), *((block,) for block in blocks_of(adapter))]
    sets = [
        tuple(name for part, taken in zip(parts, chosen, strict=True) if taken for name in part)
        for chosen in itertools.product((False, True), repeat=len(parts))
    ]
    cheaper = [names for names in sets if price(names) < price(found.found)]
    assert len(cheaper) > 10 and not any(judged(names).passed for names in cheaper)
