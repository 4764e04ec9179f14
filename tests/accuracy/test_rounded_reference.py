"""A reference that was rounded is no reference: `.half().float()` on a copy rounds the model that it shares with."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from torch import nn

import naflex_export as nx
from naflex_export.accuracy.report.markdown import as_markdown
from naflex_export.models.model_sources import randomize
from naflex_export.models.rounding import rounded_since, stored_precision
from naflex_export.serving.runner import Runner

BUCKET = nx.Bucket(16, (1, 2, 4))
QUICK: dict[str, Any] = {"buckets": [BUCKET], "effort": "quick"}


def halved(model: nn.Module) -> nn.Module:
    return model.half()


def brain_floats(model: nn.Module) -> nn.Module:
    return model.bfloat16()


@pytest.mark.parametrize("round_it", [halved, brain_floats])
@pytest.mark.parametrize("make", [nx.vectorize, lambda m: nx.compile(m, backend="eager")], ids=["vectorize", "compile"])
@pytest.mark.parametrize("back", [True, False], ids=["and-back", "still-narrow"])
def test_a_reference_rounded_by_its_copy_is_refused(round_it: Any, make: Any, back: bool, tmp_path: Path) -> None:
    model = tiny.siglip()
    fast = make(model)
    round_it(fast)
    if back:
        fast.float()
    dtype = "float16" if round_it is halved else "bfloat16"
    said = f"reference's weights were rounded to {dtype} since nx.vectorize or nx.compile was called .* Load the model"
    with pytest.raises(nx.RequestError, match=said):
        nx.gate(fast, model, dtype="float32" if back else dtype, **QUICK)
    with pytest.raises(nx.RequestError, match=said):
        nx.export(model, "onnx", tmp_path / "a", [BUCKET])
    nx.vectorize(model)  # which remembers nothing that is rounded
    assert rounded_since(model) is getattr(torch, dtype)


def test_a_rounded_tower_inside_another_model_is_refused() -> None:
    class Around(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.tower = tiny.siglip()

    model = Around()
    nx.vectorize(model).half().float()
    with pytest.raises(nx.RequestError, match="rounded to float16 since"):
        nx.gate(nx.vectorize(tiny.siglip()), model.tower, **QUICK)


def test_true_references_pass_and_nothing_is_said() -> None:
    """Vectorized, trained, moved to another dtype in a copy of its own, or its values loaded anew: all is well."""
    model = tiny.siglip()
    fast = nx.vectorize(model)
    copy.deepcopy(fast).half().float()
    assert nx.gate(fast, model, **QUICK).reference_precision == "float32"
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.01 * torch.randn_like(parameter))
    assert nx.gate(fast, model, **QUICK).passed
    randomize(model, seed=5)
    assert rounded_since(model) is None and nx.gate(fast, model, **QUICK).passed


def test_a_checkpoint_stored_in_16_bits_passes_with_a_note(tmp_path: Path) -> None:
    """Loaded into a model that was vectorized before too: its values are not those of before, rounded."""
    model = tiny.siglip()
    fast = nx.vectorize(model)
    other = tiny.naflexvit()
    randomize(other, seed=7)
    model.load_state_dict({name: value.half() for name, value in other.state_dict().items()})
    said = "every weight of the model is a number of float16, although it is in float32: its checkpoint was stored so"
    with pytest.warns(UserWarning, match=said):
        report = nx.gate(fast, model, **QUICK)
    assert report.passed and report.reference_precision == "float16"
    assert "float16: the checkpoint's, or they were rounded" in as_markdown(report)
    with pytest.warns(UserWarning, match=said):
        artifact = nx.export(model, "onnx", tmp_path / "a", [BUCKET], effort="quick")
    assert artifact.manifest.model["weights_precision"] == "float16"
    assert artifact.report.reference_precision == "float16"
    assert stored_precision(tiny.siglip()) == "float32" and stored_precision(other.bfloat16()) == "bfloat16"


def test_an_artifact_is_judged_by_the_weights_it_was_made_from() -> None:
    """By `nx.gate` as by `naflex-gate`: a manifest says their hash."""

    class Answers(Runner):
        def __init__(self, sha256: str) -> None:
            from artifacts import manifest

            made = manifest(buckets=(BUCKET,), model={**manifest().model, "weights_sha256": sha256})
            super().__init__(made, torch.device("cpu"))

        def execute(self, inputs: tuple[torch.Tensor, ...]) -> list[torch.Tensor]:
            return [fast(*inputs)]

    from naflex_export.models.model_sources import weights_sha256

    model = tiny.siglip()
    fast = nx.vectorize(copy.deepcopy(model))
    assert nx.gate(Answers(weights_sha256(model)), model, effort="quick").passed
    rounded = copy.deepcopy(model).half().float()
    with (
        pytest.warns(UserWarning, match="number of float16"),
        pytest.raises(nx.RequestError, match=r"the reference's weights \(\w{12}\) are not those the artifact was made"),
    ):
        nx.gate(Answers(weights_sha256(model)), rounded, effort="quick")
