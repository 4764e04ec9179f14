"""What a precision says and refuses."""

from __future__ import annotations

import pytest
import torch

import naflex_export as nx
from naflex_export.precision import DTYPES, Precision


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_precision_is_named_after_its_dtype(dtype: str) -> None:
    precision = Precision(dtype)
    assert (str(precision), precision.limits, precision.keep_float32) == (dtype, dtype, ())
    assert precision.torch_dtype is getattr(torch, dtype)
    assert precision.is_low == (torch.finfo(precision.torch_dtype).bits < 32)


def test_impossible_precisions_are_refused() -> None:
    with pytest.raises(
        nx.RequestError, match="dtype 'int8' is not supported: expected one of float32, float16, bfloat16"
    ):
        Precision("int8")
    with pytest.raises(nx.RequestError, match=r"keep_float32 'norm' changes nothing in dtype float32, where all is"):
        Precision("float32", ("norm",))
    with pytest.raises(nx.RequestError, match=r"'auto,norm': 'auto' stands alone"):
        Precision("float16", ("auto", "norm"))
    for doubled in ("norm,norm", "norm,,residual", "norm,"):
        with pytest.raises(nx.RequestError, match=rf"'{doubled}': expected each name once, with one comma"):
            Precision.of("float16", doubled)


def test_what_is_kept_is_written_as_a_list_or_a_text() -> None:
    kept = Precision.of("bfloat16", "residual, blocks.7.attn")
    assert kept == Precision.of("bfloat16", ["residual", "blocks.7.attn"])
    assert kept.keep_float32 == ("residual", "blocks.7.attn") and not kept.is_auto
    assert str(kept) == "bfloat16 with residual,blocks.7.attn in float32"
    assert str(Precision.of("float16", "auto")) == "float16 with what a search finds in float32"
    assert Precision.of("float16", "auto").is_auto and Precision.of("float16", "") == Precision("float16")


def test_export_and_gate_refuse_them(siglip: torch.nn.Module, tmp_path: object) -> None:
    with pytest.raises(nx.RequestError, match="dtype 'int4' is not supported"):
        nx.export(siglip, "onnx", f"{tmp_path}/a", dtype="int4")
    with pytest.raises(nx.RequestError, match="dtype 'int4' is not supported"):
        nx.gate(siglip, siglip, dtype="int4")
    with pytest.raises(nx.RequestError, match="'norm' changes nothing in dtype float32"):
        nx.export(siglip, "onnx", f"{tmp_path}/a", keep_float32="norm")
    with pytest.raises(nx.RequestError, match="'norm' changes nothing in dtype float32"):
        nx.gate(siglip, siglip, keep_float32="norm")
    with pytest.raises(nx.RequestError, match="'blocks.0' changes nothing in dtype float32, where nothing is quant"):
        nx.gate(siglip, siglip, keep_unquantized="blocks.0")
    with pytest.raises(nx.RequestError, match="'norms' is no module of this model"):
        nx.gate(siglip, siglip, dtype="float16", keep_float32=["norms"])
