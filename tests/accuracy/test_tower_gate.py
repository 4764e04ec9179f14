"""The gate on vision towers: the reference is the untouched tower, on packs, and what mixes images is rejected."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("transformers")

from tower_tiny import pack_for, qwen3_vl

import naflex_export as nx
from naflex_export.grid import Grid
from naflex_export.models import packing, tower

BUCKETS = [nx.Bucket(24, (1, 3, 4))]


@pytest.fixture(scope="module")
def model() -> nn.Module:
    return qwen3_vl()


def judged(model: Any, candidate: Callable[..., Any], **options: Any) -> nx.GateReport:
    outputs = ("tokens", "deepstack_0", "deepstack_1")
    with pytest.warns(UserWarning, match="the model is a vision tower, whose patches its own processor makes"):
        return nx.gate(candidate, model, buckets=BUCKETS, effort="quick", outputs=outputs, **options)


def test_a_right_candidate_passes(model: nn.Module) -> None:
    report = judged(model, nx.vectorize(model), locate=True)
    assert report.passed, report.problems
    names = [invariance.name for invariance in report.invariances]
    assert names == ["neighbours' content", "company in a pack", "order in the batch"]
    assert report.location is not None and len(report.location.taps) > 8 and report.location.first is None


def test_images_taken_for_equal_are_rejected(model: nn.Module) -> None:
    """As exporters have it that fixed the lengths of the example's images."""

    def candidate(patches: Tensor, grids: Tensor, positions: Tensor) -> Any:
        count, images = len(patches) // 4, len(grids)
        if count % images:
            return model(patches, grids)
        equal = torch.tensor([[1, 2, 2 * count // images]]).expand(images, 3)
        return model(patches, equal)

    report = judged(model, candidate)
    assert not report.passed


@pytest.mark.full
def test_the_export_of_another_library_is_rejected_where_it_is_wrong(model: nn.Module) -> None:
    """That of transformers takes the images of a pack for equal ones; docs/ragged.md has the figures."""
    exporting = pytest.importorskip("transformers.exporters.exporter_onnx")
    utils = pytest.importorskip("transformers.exporters.utils")
    inputs = dict(zip(("hidden_states", "grid_thw"), pack_for(model, (Grid(3, 5), Grid(1, 1)))[1], strict=False))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        exported = exporting.OnnxExporter().export(model, inputs, config=exporting.OnnxConfig(dynamic=True))

    def candidate(patches: Tensor, grids: Tensor, positions: Tensor) -> Any:
        given = {"hidden_states": patches, "grid_thw": grids}
        utils.precompute_export_inputs(model, given)
        return exported(**{name: value for name, value in given.items() if value is not None})

    report = judged(model, candidate)
    assert not report.passed
    assert any(invariance.failure.startswith("neighbours' content") for invariance in report.invariances)


def test_attention_across_images_is_rejected(model: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    def across(qkv: packing.Rows, num_heads: int, layout: packing.Packing, **options: Any) -> Tensor:
        heads = [rows.unflatten(-1, (num_heads, -1)).transpose(0, 1)[None] for rows in qkv]  # type: ignore[no-untyped-call]
        given: Tensor = nn.functional.scaled_dot_product_attention(*heads)
        return given[0].transpose(0, 1).flatten(1)

    monkeypatch.setattr(tower, "attend", across)
    report = judged(model, nx.vectorize(model))
    assert not report.passed
    assert any(invariance.failure.startswith("neighbours' content moved") for invariance in report.invariances)
    assert report.location is not None and report.location.first is not None
    assert report.location.first.module == "blocks.0.attn"
