"""Where an artifact runs: which GPU is meant, and which library can use it."""

from __future__ import annotations

import onnxruntime
import pytest
import torch

from naflex_export.errors import BackendError
from naflex_export.precision import Precision
from naflex_export.serving import onnx_runner
from naflex_export.serving.device import resolve_device
from naflex_export.targets import onnx


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)


@pytest.mark.usefixtures("two_gpus")
@pytest.mark.parametrize(
    ("asked", "found"), [(None, "cuda:1"), ("cuda", "cuda:1"), ("cuda:0", "cuda:0"), ("cpu", "cpu")]
)
def test_a_gpu_has_its_number(asked: str | None, found: str) -> None:
    """A traced graph that was moved to `cuda` refuses tensors on `cuda:0` (torch 2.11)."""
    assert str(resolve_device(None if asked is None else torch.device(asked))) == found


@pytest.mark.usefixtures("two_gpus")
def test_a_gpu_that_is_not_there_is_named() -> None:
    with pytest.raises(BackendError, match="'cuda:2' was asked for, and torch finds 2 of them"):
        resolve_device(torch.device("cuda:2"))


@pytest.mark.usefixtures("two_gpus")
@pytest.mark.parametrize(
    ("providers", "device", "reason"),
    [
        (["CUDAExecutionProvider", "CPUExecutionProvider"], "cuda", ""),
        (["CPUExecutionProvider"], "cpu", "ONNX Runtime's CPU provider has no bfloat16"),
    ],
    ids=["with-provider", "without"],
)
def test_onnx_runtime_uses_the_gpu_that_it_was_built_for(
    providers: list[str], device: str, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: providers)
    assert onnx_runner.default_device().type == device
    assert onnx.cannot_run(Precision("bfloat16")) == reason
    assert onnx.cannot_run(Precision("float16")) == ""
