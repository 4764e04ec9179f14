"""Masks in 16 bits: scores below them stay numbers, and nothing but masks is changed."""

from __future__ import annotations

from typing import Any

import pytest
import tiny
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.fx import Interpreter

import naflex_export as nx
from naflex_export.batch import noise_batch
from naflex_export.graph.mask_limits import leave_room_for_scores
from naflex_export.graph.trace import trace
from naflex_export.grid import Grid
from naflex_export.models import adapter_of
from naflex_export.precision import Precision

GRIDS = [Grid(2, 3), Grid(3, 4)]


class RoundedAttention(Interpreter):
    """Runs a graph with every step of attention rounded to the graph's dtype, as backends without fused kernels do."""

    def call_function(self, target: Any, args: Any, kwargs: Any) -> Any:
        if target is torch.ops.aten.scaled_dot_product_attention.default:
            query, key, value, mask = args[:4]
            scores = query @ key.mT * kwargs.get("scale", query.shape[-1] ** -0.5)
            scores = scores.masked_fill(~mask, -torch.inf) if mask.dtype is torch.bool else scores + mask
            return F.softmax(scores, dim=-1) @ value
        return super().call_function(target, args, kwargs)


def with_low_scores(model: nn.Module, shift: float) -> nn.Module:
    """Return a timm model whose scores are all moved by a shift, which no softmax can tell."""
    for block in model.blocks:
        attention = block.attn
        width, heads = attention.attn_dim, attention.num_heads
        with torch.no_grad():
            attention.qkv.weight[: 2 * width].zero_()
            query, key, _ = attention.qkv.bias.view(3, heads, -1)
            query.zero_()[:, 0] = abs(shift) / attention.scale / 4
            key.zero_()[:, 0] = 4 * (1 if shift > 0 else -1)
    return model


def run_rounded(model: nn.Module, dtype: str) -> Tensor:
    program = trace(adapter_of(model), [nx.Bucket(16)], Precision(dtype))
    batch = noise_batch("low", GRIDS, 16, 48)
    inputs = (batch.patches.to(getattr(torch, dtype)), batch.patch_coord, batch.patch_valid)
    with torch.no_grad():
        return RoundedAttention(program.exported.module()).run(*inputs)[0]


@pytest.mark.parametrize("build", [tiny.shallow, tiny.shallow_classifier], ids=["siglip", "classifier"])
def test_low_scores_leave_numbers_in_float16(build: Any) -> None:
    model = with_low_scores(build(), -36.0)
    found = run_rounded(model, "float16")
    batch = noise_batch("low", GRIDS, 16, 48)
    with torch.no_grad():
        (expected,) = adapter_of(model).encoder(("features",))(batch.patches, batch.patch_coord, batch.patch_valid)
    assert torch.isfinite(found).all()
    assert (found.float() - expected).norm() <= 1e-2 * expected.norm()


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_only_masks_are_changed(dtype: str) -> None:
    """A maximum over valid tokens fills padding with the same number, and keeps it."""
    model = tiny.naflexvit("naflexvit_base_patch16_gap", num_classes=10, global_pool="max", depth=1)
    program = trace(adapter_of(model), [nx.Bucket(16)], Precision(dtype))
    lowest = torch.finfo(getattr(torch, dtype)).min
    filled = [
        arg for node in program.exported.graph.nodes for arg in node.args if isinstance(arg, float) and arg < -1e4
    ]
    assert sorted(filled) == [lowest, lowest / 2]
    assert leave_room_for_scores(program.exported, getattr(torch, dtype)) == 0


def test_float32_is_left_alone() -> None:
    program = trace(adapter_of(tiny.shallow()), [nx.Bucket(16)])
    filled = [
        arg for node in program.exported.graph.nodes for arg in node.args if isinstance(arg, float) and arg < -1e4
    ]
    assert filled and set(filled) == {torch.finfo(torch.float32).min}


def test_the_pooling_of_siglip2_is_found() -> None:
    pytest.importorskip("transformers")
    program = trace(adapter_of(tiny.siglip2()), [nx.Bucket(16)], Precision("float16"))
    filled = [
        arg for node in program.exported.graph.nodes for arg in node.args if isinstance(arg, float) and arg < -1e4
    ]
    assert filled and set(filled) == {torch.finfo(torch.float16).min / 2}
