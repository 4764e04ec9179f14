"""Which layers are quantized, what is refused, and what torch's rounding to 8 bits does."""

from __future__ import annotations

import pytest
import tiny
import torch

import naflex_export as nx
from naflex_export.models import adapter_of
from naflex_export.models.quantized import quantized_layers, rounded_to
from naflex_export.precision import Precision

OF_A_BLOCK = ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")


def layers(kept: str = "", quantized: str = "int8") -> tuple[str, ...]:
    return quantized_layers(adapter_of(tiny.siglip()), Precision.of(quantized, (), kept))


def test_linear_layers_of_blocks_are_quantized_and_nothing_else() -> None:
    every = tuple(f"blocks.{block}.{name}" for block in (0, 1) for name in OF_A_BLOCK)
    assert layers() == layers(quantized="fp8") == every
    assert layers("blocks.0") == every[4:]
    assert layers("blocks.1.mlp.fc2,blocks.0.attn") == (*every[2:7],)
    assert quantized_layers(adapter_of(tiny.siglip()), Precision("float16")) == ()


def test_layers_of_transformers() -> None:
    pytest.importorskip("transformers")
    found = quantized_layers(adapter_of(tiny.siglip2()), Precision.of("int8"))
    assert "encoder.layers.0.self_attn.q_proj" in found and not any("head" in name for name in found)


@pytest.mark.parametrize(
    ("kept", "says"),
    [
        ("blocks.1.atn", r"'blocks\.1\.atn' is no module of this model: .* such as blocks\.1\.attn, "),
        ("blocks.*.fc2", r"and a pattern stands for none: .* such as blocks\.0\.mlp\.fc2, blocks\.1\.mlp\.fc2"),
        ("norm", r"'norm' changes nothing: of it alone no layer would be quantized, .* such as blocks\.0\.attn\.qkv"),
        ("blocks.1,blocks.1.mlp", r"'blocks\.1\.mlp' changes nothing"),
        ("blocks.0,blocks.1", r"'blocks\.0,blocks\.1' leaves no layer to be quantized: keep less, or .* float16"),
    ],
)
def test_names_that_mean_nothing_are_refused(kept: str, says: str) -> None:
    with pytest.raises(nx.RequestError, match=says):
        layers(kept)


def test_what_is_quantized_is_not_kept_in_float32_as_well() -> None:
    """It would be in 8 bits all the same."""
    adapter = adapter_of(tiny.siglip())
    for names in ("blocks.0.mlp", "norm,blocks"):
        with pytest.raises(
            nx.RequestError, match=rf"keep_float32 '{names}' holds blocks\.0.* is quantized to int8: exp"
        ):
            quantized_layers(adapter, Precision.of("int8", names))
    assert len(quantized_layers(adapter, Precision.of("int8", "norm,blocks.0.mlp", "blocks.0"))) == 4
    assert len(quantized_layers(adapter, Precision.of("int8", "residual,norm,softmax,pooling,embedding"))) == 8


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("float16", (), "blocks.0"), r"'blocks\.0' changes nothing in dtype float16, where nothing is quantized"),
        (("int8", "auto"), r"'auto' and dtype 'int8' were both given: the search is for float16 and bfloat16"),
        (("int8", (), "blocks.0,,blocks.1"), r"expected each name once"),
        (("int9",), r"dtype 'int9' is not supported: expected one of float32, float16, bfloat16, int8, fp8"),
    ],
)
def test_precisions_that_are_none(arguments: tuple[str, ...], says: str) -> None:
    with pytest.raises(nx.RequestError, match=says):
        Precision.of(*arguments)


def test_targets_and_what_the_rest_computes_in() -> None:
    assert Precision.of("INT8").for_target("onnx") == Precision("float32", quantized="int8")
    assert Precision.of("int8", "norm").for_target("onnx") == Precision("float16", ("norm",), "int8")
    for name, target in (("int8", "trt"), ("float8", "trt"), ("fp8", "onnx")):
        assert Precision.of(name).for_target(target).dtype == "float16"
    for target in ("compile", "aot"):
        with pytest.raises(nx.RequestError, match=f"'int8' and target '{target}' .* exported to onnx and trt"):
            Precision.of("int8").for_target(target)
        assert Precision("float16").for_target(target) == Precision("float16")
    assert str(Precision.of("int8", "norm", "blocks.0")) == "int8 with norm in float32, blocks.0 not quantized"


def test_eight_bits() -> None:
    values = torch.tensor([-3.0, -0.011, 0.0, 0.013, 1.0, 2.54])
    assert torch.allclose(
        rounded_to("int8", values, torch.tensor(2.54)), torch.tensor([-2.54, -0.02, 0.0, 0.02, 1.0, 2.54])
    )
    held = rounded_to("fp8", values, torch.tensor(448.0))
    assert torch.equal(held, torch.tensor([-3.0, -0.01171875, 0.0, 0.01367188, 1.0, 2.5]).where(held.isnan(), held))
    assert (held[held != 0] / values[held != 0] - 1).abs().max() < 1 / 14
    assert torch.equal(rounded_to("int8", torch.zeros(3), torch.tensor(0.0)), torch.zeros(3))
