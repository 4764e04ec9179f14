"""SigLIP 2 inside of transformers' other models: a classifier, image and text models, and their saved folders."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner

pytest.importorskip("transformers")

import transformers
from siglip2_tiny import BUCKET, MIXED, TEXT, VISION, assert_close, batch_of, two_towers, vision
from transformers import Siglip2Config, Siglip2ForImageClassification, Siglip2Model

import naflex_export as nx
from naflex_export.cli.export import export_command
from naflex_export.models import adapter_of, towers_in
from naflex_export.models.model_sources import ModelSource, randomize
from naflex_export.models.siglip2 import VectorizedSiglip2VisionEmbeddings
from naflex_export.serving.manifest import Manifest


def classifier(**options: Any) -> Siglip2ForImageClassification:
    config = Siglip2Config(vision_config={**VISION, **options}, text_config=TEXT, num_labels=3)
    model = Siglip2ForImageClassification(config)
    randomize(model, 1)
    return model.eval()


def lfm2(name: str) -> Any:
    text = {
        "model_type": "lfm2", "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "vocab_size": 60,
        "num_attention_heads": 2, "num_key_value_heads": 2, "layer_types": ["conv", "full_attention"],
    }  # fmt: skip
    tower = {"model_type": "siglip2_vision_model", **VISION, "vision_use_head": False}
    config = transformers.Lfm2VlConfig(vision_config=tower, text_config=text, image_token_id=5, downsample_factor=1)
    model = getattr(transformers, name)(config)
    randomize(model, 1)
    return model.eval()


def test_a_classifier_gives_its_logits() -> None:
    model, inputs = classifier(), batch_of(MIXED, 26)
    fast = nx.vectorize(model)
    assert type(fast) is Siglip2ForImageClassification and list(fast.state_dict()) == list(model.state_dict())
    assert isinstance(fast.vision_model.embeddings, VectorizedSiglip2VisionEmbeddings)
    with torch.no_grad():
        expected = model(*inputs).logits
        assert_close(fast(*inputs).logits, expected)
        assert_close(nx.compile(model, backend="eager")(*inputs).logits, expected)


@pytest.mark.full
def test_a_classifier_is_exported_with_its_classes(tmp_path: Path) -> None:
    """Its features need no pooling head: it averages the tokens by itself."""
    model, inputs = classifier(vision_use_head=False), batch_of(MIXED, 26)
    nx.export(model, "onnx", tmp_path / "a", [BUCKET], outputs=("features", "tokens"), effort="quick")
    found = nx.load(tmp_path / "a")(*inputs)
    with torch.no_grad():
        assert_close(found["features"], model(*inputs).logits)
        valid = inputs[1].bool()
        assert_close(found["tokens"][valid], model.vision_model(*inputs).last_hidden_state[valid])
    assert adapter_of(model).num_classes == 3


@pytest.mark.parametrize(
    ("name", "path"),
    [("Lfm2VlModel", "vision_tower"), ("Lfm2VlForConditionalGeneration", "model.vision_tower")],
)
def test_a_tower_of_an_image_and_text_model(name: str, path: str) -> None:
    model, inputs = lfm2(name), batch_of(MIXED, 26)
    assert list(towers_in(model)) == [path]
    fast = nx.vectorize(model)
    assert list(fast.state_dict()) == list(model.state_dict())
    with torch.no_grad():
        found, expected = (m.get_submodule(path)(*inputs).last_hidden_state for m in (fast, model))
    assert_close(found, expected)
    assert isinstance(fast.get_submodule(path).embeddings, VectorizedSiglip2VisionEmbeddings)
    assert adapter_of(model).default_outputs == ("tokens",)


@pytest.mark.parametrize("weights", ["pretrained", "random"])
def test_a_saved_classifier_keeps_its_classifier(tmp_path: Path, weights: str) -> None:
    """`AutoModel` would leave it out without a word."""
    model = classifier()
    model.save_pretrained(tmp_path / "saved")
    loaded = ModelSource(f"hf:{tmp_path / 'saved'}", weights).load()
    assert type(loaded) is Siglip2ForImageClassification and loaded.classifier.weight.shape == (3, 32)
    if weights == "pretrained":
        assert torch.equal(loaded.classifier.weight, model.classifier.weight)


@pytest.mark.full
def test_the_command_line_takes_a_headless_tower_and_says_so(tmp_path: Path) -> None:
    lfm2("Lfm2VlForConditionalGeneration").save_pretrained(tmp_path / "saved")
    arguments = [
        f"hf:{tmp_path / 'saved'}",
        "--target",
        "onnx",
        "--bucket",
        "30:1,3,8",
        "--quick",
        "--out",
        f"{tmp_path}/a",
    ]
    done = CliRunner().invoke(export_command, arguments)
    assert done.exit_code == 0, done.output
    said = " ".join(done.stderr.split())
    assert "is understood as Lfm2VlForConditionalGeneration's vision tower model.vision_tower, a Siglip2Vision" in said
    assert "note: the model is a Lfm2VlForConditionalGeneration: what is exported and judged is its tower" in said
    assert "it has tokens, no features" in said
    assert [spec.name for spec in Manifest.read(tmp_path / "a").outputs] == ["tokens"]
    refused = CliRunner().invoke(export_command, [*arguments, "--outputs", "features"])
    assert refused.exit_code == 2 and "on the command line --outputs tokens" in " ".join(refused.stderr.split())


def test_weights_of_a_whole_model_fit_its_tower(tmp_path: Path) -> None:
    vision(seed=3).save_pretrained(tmp_path / "tower")
    both = two_towers()
    both.save_pretrained(tmp_path / "both")
    assert isinstance(both, Siglip2Model)
    opened = ModelSource(f"hf:{tmp_path / 'tower'}", str(tmp_path / "both")).open()
    expected = both.vision_model.state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in opened.model.state_dict().items())
    assert "took 'vision_model'" in opened.notes[0] and "left out: logit_" in opened.notes[0]
