"""Where SigLIP 2 models, weights and image processors come from."""

from __future__ import annotations

import json
import re
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file, save_file

pytest.importorskip("transformers")

from siglip2_tiny import BUCKET, two_towers, vision
from transformers import BertConfig, Siglip2ImageProcessor, Siglip2Model, Siglip2VisionModel

import naflex_export as nx
from naflex_export.accuracy.photos import load_photos, photo_batches
from naflex_export.cli.export import export_command
from naflex_export.cli.gate import gate_command
from naflex_export.models import adapter_of
from naflex_export.models.model_sources import ModelSource
from naflex_export.serving.input_formats import TRANSFORMERS
from naflex_export.serving.manifest import Manifest


@pytest.fixture(scope="module")
def model() -> Siglip2VisionModel:
    return vision()


@pytest.fixture
def folder(model: Siglip2VisionModel, tmp_path: Path) -> Path:
    """A saved model with an image processor that is not the default one."""
    model.save_pretrained(tmp_path / "siglip2")
    Siglip2ImageProcessor(image_mean=[0.1, 0.2, 0.3], patch_size=4).save_pretrained(tmp_path / "siglip2")
    return tmp_path / "siglip2"


def test_loads_a_saved_folder(model: Siglip2VisionModel, folder: Path, tmp_path: Path) -> None:
    loaded = ModelSource(f"hf:{folder}").load()
    assert type(loaded) is Siglip2VisionModel and not loaded.training
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor)
    both = two_towers()
    both.half().save_pretrained(tmp_path / "both")
    loaded = ModelSource(f"hf:{tmp_path / 'both'}").load()
    assert type(loaded) is Siglip2Model
    assert {tensor.dtype for tensor in loaded.parameters()} == {torch.float32}
    assert torch.equal(loaded.logit_scale, both.logit_scale.float())


def test_random_weights_need_a_config_only(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    one, same, other = (ModelSource(f"hf:{folder}", "random", seed).load().state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not any(torch.equal(one[name], other[name]) for name in one)
    with pytest.raises(nx.RequestError, match=r"weights of 'hf:.*' cannot be had as safetensors"):
        ModelSource(f"hf:{folder}").load()


def test_weights_of_a_file(folder: Path, tmp_path: Path) -> None:
    state = vision(seed=7).state_dict()
    save_file(state, tmp_path / "other.safetensors")
    loaded = ModelSource(f"hf:{folder}", str(tmp_path / "other.safetensors")).load().state_dict()
    assert all(torch.equal(loaded[name], state[name]) for name in state)


def test_a_checkpoint_that_lacks_a_weight_is_refused(folder: Path) -> None:
    """The library itself would leave the weight random and only warn."""
    state = load_file(folder / "model.safetensors")
    del state["head.probe"]
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(nx.RequestError, match=r"do not fit its config.json: 1 keys missing \(head.probe\)"):
        ModelSource(f"hf:{folder}").load()


def test_pickled_weights_are_refused(model: Siglip2VisionModel, folder: Path, tmp_path: Path) -> None:
    (folder / "model.safetensors").unlink()
    torch.save(model.state_dict(), folder / "pytorch_model.bin")
    with pytest.raises(nx.RequestError, match="cannot be had as safetensors"):
        ModelSource(f"hf:{folder}").load()
    torch.save(model.state_dict(), tmp_path / "weights.pth")
    with pytest.raises(nx.RequestError, match=r"ends in '.pth': expected one of .safetensors"):
        ModelSource(f"hf:{folder}", str(tmp_path / "weights.pth")).check()


def test_a_hub_out_of_reach_is_one_error_with_its_page(monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import AutoConfig

    def unreached(*arguments: object, **options: object) -> None:
        raise OSError("the hub is out of reach")

    monkeypatch.setattr(AutoConfig, "from_pretrained", unreached)
    with pytest.raises(nx.RequestError) as refused:
        ModelSource("hf:owner/name", "random").load()
    assert str(refused.value) == (
        "model 'hf:owner/name' cannot be had: the hub is out of reach. Give hf: and a folder that holds it "
        "(docs/errors.md#pretrained-weights-cannot-be-had)"
    )


@pytest.mark.parametrize(
    ("source", "stage"),
    [
        (ModelSource("hf:owner/name", "random"), "load from the hub"),
        (ModelSource("hf-hub:owner/name", "random"), "load from the hub"),
        (ModelSource("naflexvit_base_patch16_gap"), "load from the hub"),
        (ModelSource("naflexvit_base_patch16_gap", "random"), "load"),
        (ModelSource("local-dir:there"), "load"),
        (ModelSource("module:factory"), "load"),
    ],
    ids=str,
)
def test_a_stage_says_where_the_hub_is_waited_for(source: ModelSource, stage: str) -> None:
    assert source.stage == stage


def test_what_is_no_model_is_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(nx.RequestError, match="is no transformers model: expected a folder with a config"):
        ModelSource(f"hf:{tmp_path}", "random").load()
    paths = (str(tmp_path / "nowhere"), "./nowhere", "../nowhere", "~/nowhere")
    for name in (*paths, "a--b/c", "-a/b", "a/b/c", "a" * 97):
        with pytest.raises(nx.RequestError, match="does not exist: expected a folder, or a hub id"):
            ModelSource(f"hf:{name}", "random").check()
    (folder / "config.json").write_text("{", encoding="utf-8")
    with pytest.raises(nx.RequestError, match=r"cannot be built: .*JSON"):
        ModelSource(f"hf:{folder}", "random").load()
    config = BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8, vocab_size=9)
    config.save_pretrained(folder)
    with pytest.raises(nx.UnsupportedModelError, match="BertModel is no model this release knows"):
        ModelSource(f"hf:{folder}").load()


def test_a_missing_library_names_the_remedy(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    result = CliRunner().invoke(export_command, [f"hf:{folder}", "--target", "onnx", "--weights", "random"])
    assert result.exit_code == 3
    with pytest.raises(nx.BackendError, match=r"pip install naflex_export\[hf\]"):
        ModelSource(f"hf:{folder}", "random").check()


def test_a_broken_library_names_its_reason(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """Such as a transformers that refuses the huggingface_hub it finds."""
    broken = ModuleType("transformers")
    broken.__spec__ = ModuleSpec("transformers", None)
    monkeypatch.setitem(sys.modules, "transformers", broken)
    with pytest.raises(nx.BackendError, match=r"transformers does not import .*AutoConfig"):
        ModelSource(f"hf:{folder}", "random").load()


@pytest.mark.full
def test_the_command_line_exports_and_judges_a_folder(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder.parent)
    arguments = ["hf:siglip2", "--target", "onnx", "--weights", "random", "--bucket", "36:1,3,8", "--tokens"]
    result = CliRunner().invoke(export_command, arguments)
    assert result.exit_code == 0, result.output
    artifact = folder.parent / "artifacts" / "siglip2-onnx"
    manifest = Manifest.read(artifact)
    assert manifest.model["source"] == {"model": f"hf:{folder.resolve()}", "weights": "random", "seed": 0}
    assert manifest.preprocessing["image_mean"] == [0.1, 0.2, 0.3]
    assert {"transformers", "torch"} <= set(manifest.versions)
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(gate_command, [str(artifact)])
    assert result.exit_code == 0, result.output


# --- photos ------------------------------------------------------------------------------------------------------


def test_photos_are_prepared_by_the_models_own_processor(folder: Path) -> None:
    loaded = ModelSource(f"hf:{folder}").load()
    photos = load_photos()
    (batch,) = photo_batches(photos, adapter_of(loaded).transform(30), BUCKET)
    processor = Siglip2ImageProcessor.from_pretrained(folder)
    expected = processor(images=list(photos.images.values()), max_num_patches=30, return_tensors="pt")
    for name, tensor in zip(TRANSFORMERS.names, TRANSFORMERS.arrange(batch), strict=True):
        assert torch.equal(tensor, expected[name]) and tensor.dtype == expected[name].dtype
    default = next(iter(photo_batches(photos, adapter_of(vision()).transform(30), BUCKET)))
    assert not torch.allclose(default.patches, batch.patches)


def test_a_damaged_processor_is_not_replaced(folder: Path) -> None:
    loaded = ModelSource(f"hf:{folder}").load()
    (folder / "preprocessor_config.json").write_text("{", encoding="utf-8")
    with pytest.raises(nx.RequestError, match=r"the image processor of .* cannot be had"):
        adapter_of(loaded).preprocessing()
    (folder / "preprocessor_config.json").unlink()
    with pytest.warns(UserWarning, match=r"by defaults, since .* has no preprocessor_config.json: image_mean \[0.5"):
        settings = adapter_of(loaded).preprocessing()
    assert settings["settings_from"] == "defaults" and settings["image_mean"] == [0.5, 0.5, 0.5]
    assert adapter_of(loaded).remarks == tuple(re.findall("preprocessing is by .*", adapter_of(loaded).remarks[-1]))
    json.dumps(settings)


def test_a_processor_out_of_reach_is_replaced_by_the_defaults_and_said(
    model: Siglip2VisionModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after the weights came from the hub's cache, and the network is gone."""

    def out_of_reach(name: str) -> None:
        raise OSError(f"{name} is out of reach")

    monkeypatch.setattr(Siglip2ImageProcessor, "from_pretrained", out_of_reach)
    monkeypatch.setattr(model, "name_or_path", "owner/name")
    said = r"preprocessing is by defaults, since that of owner/name cannot be had: image_mean \[0.5, 0.5, 0.5\]"
    with pytest.warns(UserWarning, match=said):
        settings = adapter_of(model).preprocessing()
    assert settings["settings_from"] == "defaults, since that of owner/name cannot be had"
    assert re.match(said, adapter_of(model).remarks[-1])
