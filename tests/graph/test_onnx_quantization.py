"""Layers in 8 bits: what the rewrite guarantees, and that the graph computes what torch's own rounding does."""

from __future__ import annotations

import copy
import functools
from pathlib import Path

import onnx
import onnx_ir as ir
import pytest
import tiny
import torch
from torch import Tensor, nn

import naflex_export as nx
from naflex_export.batch import Batch
from naflex_export.errors import BuildError
from naflex_export.graph import onnx_passes as passes
from naflex_export.graph.build_settings import BuildSettings
from naflex_export.graph.onnx_quantization import layers_in, quantize_layers
from naflex_export.graph.onnx_translate import translate
from naflex_export.graph.trace import trace
from naflex_export.models import adapter_of
from naflex_export.models.quantized import quantize_eagerly, quantized_layers
from naflex_export.precision import Precision
from naflex_export.serving.onnx_runner import open_session

OPSET = 20
KEPT = "blocks.0.attn"


@functools.cache
def _traced(dtype: str) -> onnx.ModelProto:
    model = translate(trace(adapter_of(tiny.siglip()), [nx.Bucket(32)], Precision(dtype)), BuildSettings(), OPSET)
    passes.drop_value_info(model)
    return ir.to_proto(model)


def graph(dtype: str) -> ir.Model:
    """Return a graph of one's own."""
    return ir.from_proto(_traced(dtype))


def layers(kept: str = KEPT) -> tuple[str, ...]:
    return quantized_layers(adapter_of(tiny.siglip()), Precision.of("int8", (), kept))


def of_each(model: ir.Model, names: tuple[str, ...], value: float = 3.0) -> dict[str, float]:
    return {layer.given.name or "": value for layer in layers_in(model, names)}


def model_weights(names: tuple[str, ...], dtype: str) -> list[int]:
    """Return the bytes of the weights of layers."""
    size = Precision(dtype).torch_dtype.itemsize
    return [size * tiny.siglip().get_submodule(name).weight.numel() for name in names]


@pytest.mark.parametrize("kind", ["int8", "fp8"])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_only_what_is_asked_for_is_quantized(kind: str, dtype: str, tmp_path: Path) -> None:
    model, names = graph(dtype), layers()
    before = sum(value.const_value.nbytes for value in model.graph.initializers.values() if value.const_value)
    assert quantize_layers(model, names, of_each(model, names), kind) == len(names) == 6
    found = set()
    for node in model.graph:
        makers = [value.producer() for value in node.inputs if value is not None]
        if not any(maker is not None and maker.op_type == "DequantizeLinear" for maker in makers):
            continue
        assert node.op_type == "MatMul"
        assert all(maker is not None and maker.op_type == "DequantizeLinear" for maker in makers)
        found.add(passes.module_of(node))
        assert {passes.module_of(maker) for maker in makers if maker is not None} == {passes.module_of(node)}
    assert found == set(names)
    after = sum(value.const_value.nbytes for value in model.graph.initializers.values() if value.const_value)
    assert after < before - sum(model_weights(names, dtype)) / 3  # 8 bits in place of 16 or 32, and scales
    passes.drop_value_info(model)
    ir.save(model, tmp_path / "model.onnx")
    onnx.checker.check_model(tmp_path / "model.onnx", full_check=True)


@pytest.mark.parametrize("kind", ["int8", "fp8"])
def test_the_graph_computes_what_torch_rounds(kind: str, mixed: Batch, tmp_path: Path) -> None:
    """With the scale that torch takes for this very batch, from a layer's largest input; an error of 8 bits is 2e-2."""
    siglip, names = tiny.siglip(), layers()
    adapter = adapter_of(copy.deepcopy(siglip))
    quantize_eagerly(adapter, names, kind)
    largest = dict[str, float]()

    def heard(name: str) -> object:
        def hook(module: nn.Module, args: tuple[Tensor, ...]) -> None:
            largest[name] = float(args[0].abs().max())

        return adapter.tower.get_submodule(name).register_forward_pre_hook(hook, prepend=True)

    for name in names:
        heard(name)
    inputs = mixed.patches, mixed.patch_coord, mixed.patch_valid
    with torch.no_grad():
        rounded, exact = adapter.model(*inputs), siglip(*inputs)
    model = graph("float32")
    given = {layers_in(model, [name])[0].given.name or "": value for name, value in largest.items()}
    quantize_layers(model, names, given, kind)
    passes.drop_value_info(model)
    ir.save(model, tmp_path / "model.onnx")
    session = open_session(tmp_path / "model.onnx", torch.device("cpu"), as_written=True)
    feed = dict(zip(("patches", "patch_coord", "patch_valid"), (one.numpy() for one in inputs), strict=True))
    (found,) = session.run(None, feed)
    off = (rounded - exact).norm() / exact.norm()
    assert off > 1e-3  # or nothing was rounded
    assert (torch.from_numpy(found) - rounded).norm() / exact.norm() < 0.3 * off


def test_what_calibration_has_not_seen_is_refused() -> None:
    model, names = graph("float32"), layers()
    seen = of_each(model, names)
    for limit in (0.0, float("inf"), float("nan")):
        with pytest.raises(BuildError, match=r"blocks\.0\.mlp\.fc1: calibration says .*\(--keep-unquantized blocks\.0"):
            quantize_layers(graph("float32"), names, {**seen, next(iter(seen)): limit}, "int8")


def test_a_module_without_a_product_is_named() -> None:
    with pytest.raises(
        BuildError, match=r"blocks\.0\.norm1 is to be quantized, and the graph has no product of its own"
    ):
        layers_in(graph("float32"), ["blocks.0.norm1"])
