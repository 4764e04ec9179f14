"""How photos are prepared: by what the caller gives, by what the model says, or by defaults that are said loudly.

And models whose images are no photos, of 1 channel or of 4: judged on generated batches, which is said everywhere.
"""

from __future__ import annotations

import json
import math
import warnings
from pathlib import Path
from typing import Any

import pytest
import tiny
from click.testing import CliRunner
from PIL import Image
from timm.data.config import resolve_data_config
from timm.models import NaFlexVit
from timm.models.naflexvit import NaFlexVitCfg
from torch import nn

import naflex_export as nx
from naflex_export.accuracy.report.formats import as_json
from naflex_export.accuracy.report.markdown import as_markdown
from naflex_export.cli.export import export_command
from naflex_export.cli.gate import gate_command
from naflex_export.models import adapter_of
from naflex_export.models.model_sources import randomize
from naflex_export.models.preprocessing import settings_of

BUCKET = nx.Bucket(16, (1, 2, 4))
IMAGENET = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
OWN = {"mean": (0.1, 0.2, 0.3), "std": (0.5, 0.25, 0.125), "interpolation": "bilinear"}


def from_cfg(channels: int = 3) -> Any:
    """Return a NaFlexVit made of a config, as timm's own tests make it: it has no `pretrained_cfg` at all."""
    cfg = NaFlexVitCfg(patch_size=4, embed_dim=32, depth=1, num_heads=2, pos_embed_grid_size=(4, 4), global_pool="avg")
    model = NaFlexVit(cfg, num_classes=5, in_chans=channels)
    randomize(model, seed=1)
    return model.eval()


def radar() -> nn.Module:
    """Return a model of images of 4 channels, for `module:factory`."""
    return from_cfg(4)


@pytest.mark.parametrize("channels", [1, pytest.param(4, marks=pytest.mark.full)])
def test_a_model_of_other_channels_is_judged_on_generated_batches_and_said_so(channels: int, tmp_path: Path) -> None:
    said = f"takes images of {channels} channels?, and photos have 3"
    with pytest.warns(UserWarning, match=f"{said}: it is judged on generated batches alone"):
        artifact = nx.export(from_cfg(channels), "onnx", tmp_path / "a", [BUCKET], effort="quick")
    assert [result.case for result in artifact.report.results] == ["mixed-16-seed0", "one-column-16-seed0"]
    assert artifact.report.passed and artifact.manifest.gate["no_photos"] == artifact.report.no_photos
    assert f"images of {channels} channel" in artifact.report.no_photos
    assert json.loads(as_json(artifact.report))["no_photos"] == artifact.report.no_photos
    assert "Judged on no photo, on generated batches alone" in as_markdown(artifact.report)
    settings = artifact.manifest.preprocessing
    assert (settings["channels"], settings["mean"], settings["std"]) == (channels, [], [])
    assert settings["settings_from"] == "nothing that says it"
    assert nx.load(tmp_path / "a").manifest.inputs[0].shape[-1] == 16 * channels


def test_photos_for_a_model_of_other_channels_are_refused_ahead_of_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*args: Any) -> None:
        pytest.fail("it was traced")

    monkeypatch.setattr("naflex_export.exporter.trace", never)
    said = "cannot be judged on: the model takes images of 4 channels, and photos have 3. Leave the images"
    with pytest.raises(nx.RequestError, match=said):
        nx.export(radar(), "onnx", tmp_path / "a", [BUCKET], images=tmp_path)
    with pytest.raises(nx.RequestError, match=said):
        nx.gate(nx.vectorize(radar()), radar(), images=tmp_path, buckets=[BUCKET])


def test_the_gate_on_a_callable_says_it_too() -> None:
    with pytest.warns(UserWarning, match="4 channels, and photos have 3: it is judged on generated batches alone"):
        report = nx.gate(nx.vectorize(radar()), radar(), buckets=[BUCKET], effort="quick")
    assert report.passed and report.no_photos


@pytest.mark.full
def test_the_command_lines_export_and_judge_a_model_of_4_channels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    told = [f"{__name__}:radar", "--target", "onnx", "--bucket", "16:1,2,4", "--quick", "--out", "a"]
    done = CliRunner().invoke(export_command, told)
    assert done.exit_code == 0, done.output
    assert "note: the model takes images of 4 channels, and photos have 3: it is judged on generated" in done.output
    assert "no photos: the model takes images of 4 channels" in done.output
    done = CliRunner().invoke(gate_command, ["a", "--trust-source", "--quick"])
    assert done.exit_code == 0 and "no photos: the model takes images of 4 channels" in done.output
    Image.new("RGB", (64, 48), "teal").save(tmp_path / "photo.png")
    done = CliRunner().invoke(gate_command, ["a", "--trust-source", "--images", str(tmp_path)])
    assert done.exit_code == 2 and "cannot be judged on: the model takes images of 4 channels" in done.output


ABSENT = object()
CFGS = {
    "no-attribute": (ABSENT, IMAGENET, "mean, std, interpolation"),
    "none": (None, IMAGENET, "mean, std, interpolation"),
    "empty": ({}, IMAGENET, "mean, std, interpolation"),
    "size-only": ({"input_size": (3, 64, 64)}, IMAGENET, "mean, std, interpolation"),
    "values-of-none": ({"mean": None, "std": None, "architecture": None}, IMAGENET, "mean, std, interpolation"),
    "no-std": ({"mean": OWN["mean"]}, ([0.1, 0.2, 0.3], IMAGENET[1]), "std, interpolation"),
    "no-input-size": (OWN, ([0.1, 0.2, 0.3], [0.5, 0.25, 0.125]), ""),
    "one-number": ({"mean": 0, "std": 0.5, "interpolation": "bicubic"}, ([0.0] * 3, [0.5] * 3), ""),
    "one-in-a-tuple": ({"mean": (0.5,), "std": (0.5,), "interpolation": "bicubic"}, ([0.5] * 3, [0.5] * 3), ""),
}


@pytest.mark.parametrize("name", CFGS)
def test_what_a_pretrained_cfg_lacks_is_timms_default_and_said(name: str) -> None:
    cfg, (mean, std), assumed = CFGS[name]
    model = from_cfg()
    if cfg is not ABSENT:
        model.pretrained_cfg = cfg
    adapter = adapter_of(model)
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        found = adapter.preprocessing()
    assert (found["mean"], found["std"], found["channels"]) == (mean, std, 3)
    if isinstance(cfg, dict) and name != "one-number":  # timm cannot take 0 for a mean
        own = resolve_data_config(args={"in_chans": 3}, pretrained_cfg=cfg)
        assert found["interpolation"] == own["interpolation"] and list(own["std"]) == std[: len(own["std"])]
    assert [f"(no {assumed} in its pretrained_cfg)" in str(one.message) for one in heard] == [True] * bool(assumed)
    assert ("timm's defaults" in found["settings_from"]) == bool(assumed) == bool(adapter.remarks)
    assert adapter.transform(16)(next(iter(photos().values())))["patches"].shape[1] == 48
    assert adapter.describe()["architecture"] == ""


def photos() -> Any:
    from naflex_export.accuracy.photos import load_photos

    return load_photos().images


def test_a_pretrained_cfg_may_be_timms_dataclass() -> None:
    from timm.models import PretrainedCfg

    model = from_cfg()
    model.pretrained_cfg = PretrainedCfg(architecture="mine", **OWN)  # type: ignore[arg-type]
    assert adapter_of(model).preprocessing()["std"] == [0.5, 0.25, 0.125]
    assert adapter_of(model).describe()["architecture"] == "mine"


@pytest.mark.parametrize(
    ("cfg", "said"),
    [
        (
            {**OWN, "std": (0.5, 0.0, 0.5)},
            r"std of model.pretrained_cfg is \(0.5, 0.0, 0.5\): expected one number, or 3",
        ),
        ({**OWN, "mean": (0.5, 0.5)}, r"mean of model.pretrained_cfg is \(0.5, 0.5\): expected one number, or 3"),
        ({**OWN, "mean": (math.nan,)}, "expected one number, or 3"),
        ({**OWN, "interpolation": "cubic-ish"}, "interpolation 'cubic-ish' is not known to timm"),
        ("mine", "model.pretrained_cfg is a str: expected a dict"),
    ],
    ids=["std", "two", "nan", "interpolation", "text"],
)
def test_what_a_pretrained_cfg_cannot_say_is_refused_ahead_of_any_work(cfg: Any, said: str, tmp_path: Path) -> None:
    model = from_cfg()
    model.pretrained_cfg = cfg
    with pytest.raises(nx.UnsupportedModelError, match=said):
        nx.export(model, "onnx", tmp_path / "a", [BUCKET])


# --- given by the caller -----------------------------------------------------------------------------------------


def test_given_settings_are_those_of_manifest_and_photos(tmp_path: Path) -> None:
    """With no warning, for nothing is assumed; the model's own are not read."""
    request = nx.export(from_cfg(), "onnx", tmp_path / "a", [BUCKET], preprocessing=OWN, effort="quick")
    found = request.manifest.preprocessing
    assert {name: found[name] for name in OWN} == json.loads(json.dumps(OWN))
    assert found["settings_from"] == "what the export was given"
    photo = next(iter(photos().values()))
    model = tiny.naflexvit()
    given = adapter_of(model).prepared_by(OWN)
    assert given.of(model).given == OWN and given.preprocessing()["mean"] == [0.1, 0.2, 0.3]
    plain, prepared = (one.transform(16)(photo)["patches"] for one in (adapter_of(model), given))
    assert (plain - prepared).abs().max() > 0.5


def test_a_channel_more_is_given_for_each(tmp_path: Path) -> None:
    given = {"mean": [0.1, 0.2, 0.3, 0.4], "std": 0.5}
    found = adapter_of(radar()).prepared_by(given).preprocessing()
    assert found["mean"] == given["mean"] and found["std"] == [0.5] * 4
    with pytest.raises(nx.RequestError, match=r"mean of preprocessing is \[0.1, 0.2, 0.3\]: expected one number, or 4"):
        adapter_of(radar()).prepared_by({"mean": [0.1, 0.2, 0.3]})


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"mena": 0.5}, "preprocessing has 'mena': expected mean, std, interpolation"),
        ({"std": -1}, "std of preprocessing is .-1,.: expected one number, or 3, each above 0"),
        ({"interpolation": "cubic-ish"}, "interpolation 'cubic-ish' is not known to timm"),
        ({}, "preprocessing is empty"),
        (3, "preprocessing is a int: expected a mapping of settings, an image processor, or the path"),
        ("nowhere.json", "preprocessing 'nowhere.json' cannot be read: No such file"),
    ],
    ids=["name", "negative", "interpolation", "empty", "number", "nowhere"],
)
def test_what_cannot_be_given_is_refused(given: Any, said: str, tmp_path: Path) -> None:
    with pytest.raises(nx.RequestError, match=said):
        nx.export(tiny.siglip(), "onnx", tmp_path / "a", [BUCKET], preprocessing=given)


def test_settings_are_read_from_files_of_timm_and_transformers(tmp_path: Path) -> None:
    plain = {name: list(value) if isinstance(value, tuple) else value for name, value in OWN.items()}
    for name, content in {
        "plain.json": plain,
        "config.json": {"architecture": "x", "pretrained_cfg": {"tag": "y", **plain}},
    }.items():
        (tmp_path / name).write_text(json.dumps(content))
        assert settings_of(tmp_path / name) == plain
    assert settings_of(str(tmp_path)) == plain
    (tmp_path / "processor_config.json").write_text(json.dumps({"image_processor": {"image_mean": [0.1]}}))
    assert settings_of(tmp_path) == {"image_mean": [0.1]}
    (tmp_path / "plain.json").write_text("[" * 99999)
    with pytest.raises(nx.RequestError, match="is no JSON"):
        settings_of(tmp_path / "plain.json")
    (tmp_path / "plain.json").write_text("[]")
    with pytest.raises(nx.RequestError, match="holds no settings"):
        settings_of(tmp_path / "plain.json")
    with pytest.raises(nx.RequestError, match=r"is a folder without a preprocessor_config.json or a processor"):
        settings_of(Path(__file__).parent)


def test_the_command_line_takes_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And says nothing of defaults then; without one it does, ahead of the export."""
    from naflex_export import exporter

    seen: list[Any] = []

    class Stopped(nx.RequestError):
        pass

    def stop(model: Any, request: Any, *others: Any) -> None:
        seen.append(request.preprocessing)
        raise Stopped("stopped")

    monkeypatch.setattr(exporter, "Exporter", stop)
    (tmp_path / "p.json").write_text(json.dumps({"mean": 0.5, "std": 0.5, "interpolation": "bicubic"}))
    told = [f"{__name__}:from_cfg", "--target", "onnx", "--out", str(tmp_path / "a")]
    done = CliRunner().invoke(export_command, told)
    assert "note: the model does not say how photos are prepared for it" in done.output
    done = CliRunner().invoke(export_command, [*told, "--preprocessing", str(tmp_path / "p.json")])
    assert "note:" not in done.output
    assert seen == [None, {"mean": 0.5, "std": 0.5, "interpolation": "bicubic"}]


def siglip2(channels: int = 3) -> Any:
    pytest.importorskip("transformers")
    from transformers import Siglip2VisionConfig, Siglip2VisionModel

    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = Siglip2VisionModel(Siglip2VisionConfig(**sizes, patch_size=4, num_patches=16, num_channels=channels))
    randomize(model, seed=1)
    return model.eval()


def test_siglip2_takes_a_processor_its_settings_or_its_folder(tmp_path: Path) -> None:
    model = siglip2()
    from transformers import Siglip2ImageProcessor

    processor = Siglip2ImageProcessor(image_mean=[0.1, 0.2, 0.3], patch_size=99)
    processor.save_pretrained(tmp_path)
    for given in (processor, tmp_path, {"image_mean": [0.1, 0.2, 0.3]}):
        adapter = adapter_of(model).prepared_by(settings_of(given))
        found = adapter.preprocessing()
        assert (found["image_mean"], found["patch_size"]) == ([0.1, 0.2, 0.3], [4, 4])
        assert found["settings_from"] == "what the export was given"
        expected = processor(
            images=next(iter(photos().values())), patch_size=4, max_num_patches=16, return_tensors="pt"
        )
        made = adapter.transform(16)(next(iter(photos().values())))
        assert (made["patches"] - expected["pixel_values"][0, : len(made["patches"])]).abs().max() == 0


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"mean": 0.5}, "preprocessing has 'mean': expected do_normalize"),
        ({"image_processor_type": "CLIPImageProcessor"}, "is of a CLIPImageProcessor: expected a Siglip2"),
        ({"image_std": [0.5, 0.0, 0.5]}, "image_std of preprocessing is .*expected one number, or 3, each above 0"),
        ({"resample": "sideways"}, "preprocessing is not possible"),
    ],
    ids=["timm", "clip", "std", "text"],
)
def test_settings_of_another_processor_are_refused(given: dict[str, Any], said: str) -> None:
    with pytest.raises(nx.RequestError, match=said):
        adapter_of(siglip2()).prepared_by(given)


def test_siglip2_of_one_channel_is_judged_on_generated_batches() -> None:
    model = siglip2(1)
    with pytest.warns(UserWarning, match="images of 1 channel, and photos have 3: it is judged on generated"):
        report = nx.gate(nx.vectorize(model), model, buckets=[BUCKET], effort="quick")
    assert report.passed and report.no_photos
    settings = adapter_of(model).preprocessing()
    assert (settings["channels"], settings["image_mean"], settings["image_std"]) == (1, [], [])
