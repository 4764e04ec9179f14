"""Tiny NaFlexVits of any configuration, the batch they are judged on, and an ONNX export of them."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

import onnx_ir as ir
import onnxruntime
import pytest
import torch
from timm.models.naflexvit import NaFlexVit, NaFlexVitCfg
from torch import Tensor, nn

import naflex_export as nx
from naflex_export.batch import Batch, noise_batch
from naflex_export.graph.build_settings import BuildSettings
from naflex_export.graph.checks import FORBIDDEN_OPS
from naflex_export.graph.onnx_translate import write_onnx
from naflex_export.graph.trace import trace
from naflex_export.grid import Grid
from naflex_export.models import adapter_of
from naflex_export.models.model_sources import randomize

# One row, one column, squares, odd sizes, two images of one grid, and the source grids of the tests, 5x6 and 3x7.
GRIDS = (Grid(3, 7), Grid(1, 24), Grid(24, 1), Grid(4, 4), Grid(1, 1), Grid(3, 7), Grid(5, 6), Grid(5, 5))
BATCH = noise_batch("timm", GRIDS, tokens=32, token_width=48)
OTHER = noise_batch("timm-other", (Grid(2, 9), Grid(6, 3), Grid(1, 2)), tokens=19, token_width=48)


def cases(options: dict[str, dict[str, Any]], short: Collection[str] | None = None) -> pytest.MarkDecorator:
    """Parametrize `options` by name; with `short`, what it does not name is left to the full suite."""
    assert short is None or set(short) <= set(options)
    full = {name for name in options if short is not None and name not in short}
    values = [pytest.param(options[name], id=name, marks=[pytest.mark.full] * (name in full)) for name in options]
    return pytest.mark.parametrize("options", values)


def naflexvit(**options: Any) -> NaFlexVit:
    """Return a NaFlexVit of width 32 and depth 2 in eval mode, every parameter seeded and large enough to matter."""
    tiny = {"patch_size": 4, "embed_dim": 32, "depth": 2, "num_heads": 2, "mlp_ratio": 2.0}
    usual = {"pos_embed_grid_size": (5, 6), "global_pool": "avg"}
    model = NaFlexVit(NaFlexVitCfg(**{**tiny, **usual, **options}), num_classes=5)
    randomize(model, seed=1)
    return model.eval()


def call(model: nn.Module, batch: Batch) -> Tensor:
    return model(batch.patches, batch.patch_coord, batch.patch_valid)


def tokens(model: NaFlexVit, batch: Batch) -> Tensor:
    """Return the encoder's valid tokens, all images' in a row, without prefix tokens."""
    encoded = model.forward_features(batch.patches, batch.patch_coord, batch.patch_valid)
    return encoded["patches"][:, model.num_prefix_tokens :][batch.patch_valid]


def share(found: Tensor, expected: Tensor) -> float:
    """Return the largest difference as a share of the largest value."""
    found, expected = found.detach(), expected.detach()
    return float((found - expected).abs().max() / expected.abs().max())


def gradients(model: nn.Module, batch: Batch) -> dict[str, Tensor]:
    """Return the gradient, by parameter, of the outputs weighted at random."""
    model.zero_grad()
    output = call(model, batch)
    weight = torch.randn(output.shape, generator=torch.Generator().manual_seed(5))
    (output * weight).sum().backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None}


def assert_same_gradients(eager: nn.Module, fast: nn.Module, bound: float) -> None:
    """Compare every parameter's gradient, to `bound` of its scale.

    A bias on the keys cancels in the softmax: its gradient is rounding noise, so it is only judged beside the values'.
    """
    expected, found = gradients(eager, BATCH), gradients(fast, BATCH)
    assert expected.keys() == found.keys()
    assert expected.keys() == dict(eager.named_parameters()).keys()
    for name, gradient in expected.items():
        assert gradient.abs().max() > 0, name
        assert share(found[name], gradient) <= bound, name


def export_onnx(model: nn.Module, folder: Path, outputs: tuple[str, ...] = ("features",)) -> Path:
    """Write the vectorized model to `model.onnx`, and return its path once no node of it loops, branches or resizes."""
    program = trace(adapter_of(model), [nx.Bucket(tokens=32, batch=(1, 4, 8))], outputs=outputs)
    write_onnx(program, folder, BuildSettings(), 23)
    path = folder / "model.onnx"
    found = {node.op_type for node in ir.load(path).graph.all_nodes()}
    assert not found & {*FORBIDDEN_OPS, "SequenceConstruct", "SplitToSequence", "SequenceAt", "ConcatFromSequence"}
    assert "MatMul" in found  # or the graph is not what we think
    return path


def run_onnx(path: Path, batch: Batch) -> list[Tensor]:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    inputs = {"patches": batch.patches, "patch_coord": batch.patch_coord, "patch_valid": batch.patch_valid}
    return [torch.from_numpy(array) for array in session.run(None, {k: v.numpy() for k, v in inputs.items()})]
