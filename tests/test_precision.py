"""What a precision says and refuses."""

from __future__ import annotations

import pytest
import torch

import naflex_export as nx
from naflex_export.precision import DTYPES, Precision


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_precision_is_named_after_its_dtype(dtype: str) -> None:
    precision = Precision(dtype)
    assert (str(precision), precision.limits, precision.float32_modules) == (dtype, dtype, ())
    assert precision.torch_dtype is getattr(torch, dtype)
    assert precision.is_low == (torch.finfo(precision.torch_dtype).bits < 32)


def test_impossible_precisions_are_refused() -> None:
    with pytest.raises(
        nx.RequestError, match="dtype 'int8' is not supported: expected one of float32, float16, bfloat16"
    ):
        Precision("int8")
    with pytest.raises(nx.RequestError, match=r"modules blocks\.0, head cannot stay in float32"):
        Precision("float16", float32_modules=("blocks.0", "head"))


def test_export_and_gate_refuse_them(siglip: torch.nn.Module, tmp_path: object) -> None:
    with pytest.raises(nx.RequestError, match="dtype 'int8' is not supported"):
        nx.export(siglip, "onnx", f"{tmp_path}/a", dtype="int8")
    with pytest.raises(nx.RequestError, match="dtype 'int8' is not supported"):
        nx.gate(siglip, siglip, dtype="int8")
