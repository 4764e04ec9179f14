"""The golden photo rejects preprocessing that is not the library's, whatever in it is wrong."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import tiny
from artifacts import edit, manifest
from click.testing import CliRunner

import naflex_export as nx
from naflex_export.accuracy import golden as judged
from naflex_export.accuracy.judge_artifact import JudgeRequest, judge_artifact
from naflex_export.accuracy.photos import load_photos
from naflex_export.cli.export import export_command
from naflex_export.embed import golden
from naflex_export.embed.golden import Golden
from naflex_export.embed.preprocess import Preprocessor
from naflex_export.export_request import ExportRequest
from naflex_export.exporter import Exporter
from naflex_export.models import adapter_of
from naflex_export.models.adapter import ModelAdapter
from naflex_export.serving.manifest import MANIFEST, Manifest

WRONG: dict[str, dict[str, Any]] = {
    "mean-and-std-swapped": {"mean": [0.229, 0.224, 0.225], "std": [0.485, 0.456, 0.406]},
    "mean-of-another-model": {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]},
    "another-resizer": {"resizer": "torchvision-uint8"},
    "another-interpolation": {"interpolation": "bilinear"},
    "blue-green-red": {"channel_order": "bgr"},
    "exif-ignored": {"exif": "ignore"},
    "channels-first": {"channels_last": False},
    "not-rescaled": {"rescale": 1.0},
    "another-patch-size": {"patch_size": [8, 8]},
}
"""Fields of a manifest that say something wrong of a model with ImageNet's mean and std, resized bicubically by PIL."""


def imagenet() -> ModelAdapter:
    settings = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225), "interpolation": "bicubic"}
    return adapter_of(tiny.naflexvit(pretrained_cfg_overlay=settings, depth=1))


def saying(adapter: ModelAdapter, **wrong: Any) -> Manifest:
    return manifest(preprocessing={**adapter.preprocessing(), **wrong}, buckets=(nx.Bucket(64),))


def photo_of(said: Manifest) -> Golden:
    """Return the golden photo that an export with this manifest would write."""
    preprocessor = Preprocessor.of_manifest(said)
    return judged.made(golden.drawn(load_photos().images[judged.PICTURE]), preprocessor)


def test_what_the_manifest_says_is_what_the_library_does() -> None:
    adapter = imagenet()
    said = saying(adapter)
    assert judged.judge(photo_of(said), said, adapter) == judged.Judged(
        "the golden photo's tensors are bit for bit those of timm.data.create_transform"
    )


@pytest.mark.parametrize("wrong", WRONG.values(), ids=WRONG)
def test_a_manifest_that_says_something_wrong_is_rejected(wrong: dict[str, Any]) -> None:
    """By the artifact's own tensors, and by the library where these are as wrong as the manifest."""
    adapter = imagenet()
    right, said = saying(adapter), saying(adapter, **wrong)
    of_manifest = judged.judge(photo_of(right), said, adapter).problems
    assert [problem.partition(",")[0] for problem in of_manifest][:1] == [
        "golden-photo: preprocessed as the manifest says"
    ]
    # the library is given a photo on its side too where the manifest says so; patches of another size are no inputs
    if wrong not in (WRONG["exif-ignored"], WRONG["another-patch-size"]):
        of_both = judged.judge(photo_of(said), said, adapter).problems
        assert [problem.partition(",")[0] for problem in of_both] == [
            "golden-photo: preprocessed by timm.data.create_transform"
        ]


def test_a_processor_of_torchvision_is_told_from_one_of_pil() -> None:
    adapter = adapter_of(tiny.siglip2())
    names = ("pixel_values", "pixel_attention_mask", "spatial_shapes")
    inputs = tuple(dataclasses.replace(spec, name=name) for spec, name in zip(manifest().inputs, names, strict=True))
    for resizer, normalize in (("torchvision-uint8", "fused"), ("pil", "fused"), ("torchvision-uint8", "separate")):
        fields = {**adapter.preprocessing(), "resizer": resizer, "normalize": normalize}
        said = manifest(inputs=inputs, preprocessing=fields, buckets=(nx.Bucket(64),))
        found = judged.judge(photo_of(said), said, adapter)
        assert bool(found.problems) == ((resizer, normalize) != ("torchvision-uint8", "fused"))


@pytest.mark.parametrize("size", [16, 32, 200])
def test_a_manifest_that_enlarges_nothing_is_judged_by_the_same_photo(size: int) -> None:
    adapter = adapter_of(tiny.naflexvit(depth=1, patch_size=size))
    patches, *others = manifest().inputs
    inputs = (dataclasses.replace(patches, shape=("batch", "tokens", 3 * size**2)), *others)
    kinds = [dataclasses.replace(saying(adapter, upscale=upscale), inputs=inputs) for upscale in (True, False)]
    photos = [photo_of(said) for said in kinds]
    assert photos[0].tokens == photos[1].tokens <= {16: 64, 32: 18, 200: 1}[size]
    assert [judged.judge(photo, said, adapter).problems for photo, said in zip(photos, kinds, strict=True)] == [(), ()]


def test_an_export_enlarges_nothing_if_so_asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    model, out = tiny.siglip(), tmp_path / "a"
    said = [Exporter(model, ExportRequest("onnx", out, **asked)).preprocessing for asked in ({}, {"upscale": False})]
    assert [Preprocessor.of_manifest(manifest(preprocessing=one[None])).preprocessing.upscale for one in said] == [
        True,
        False,
    ]
    with pytest.raises(nx.RequestError, match="upscale='no': expected True or False"):
        ExportRequest("onnx", out, upscale="no")  # type: ignore[arg-type]
    asked: list[Any] = []
    monkeypatch.setattr(
        "naflex_export.cli.export._export", lambda source, requests, *rest, **more: asked.extend(requests)
    )
    for options in ([], ["--no-upscale"]):
        arguments = ["--target", "onnx", "--weights", "random", "--out", str(out), *options]
        done = CliRunner().invoke(export_command, arguments)
        assert done.exit_code == 0, done.output
    assert [request.upscale for request in asked] == [True, False]


@pytest.mark.full
def test_an_export_writes_one_and_the_gate_judges_it_again(tmp_path: Path) -> None:
    model = tiny.siglip()
    artifact = nx.export(model, "onnx", tmp_path / "a", [nx.Bucket(16, (1, 2, 4))], effort="quick")
    assert {golden.PHOTO, golden.TENSORS} <= set(artifact.manifest.files)
    assert artifact.report.preprocessing.startswith("the golden photo's tensors are bit for bit those of timm")
    pre = nx.Preprocessor.of(artifact.path)
    assert pre(list(load_photos().images.values()))["patches"].shape == (3, 16, 48)

    edit(artifact.path, lambda fields: fields["preprocessing"].update(mean=[0.4, 0.5, 0.5]))
    with pytest.raises(nx.ArtifactError, match="golden photo becomes other tensors here"):
        nx.Preprocessor.of(artifact.path)
    report = judge_artifact(artifact.path, model, JudgeRequest())
    assert not report.passed and [failure.split(":")[0] for failure in report.failures] == ["golden-photo"]

    def forget(fields: dict[str, Any]) -> None:
        for name in (golden.PHOTO, golden.TENSORS):
            del fields["files"][name]
            (artifact.path / name).unlink()

    edit(artifact.path, forget)
    report = judge_artifact(artifact.path, model, JudgeRequest())
    assert report.passed and report.preprocessing == "not compared: the artifact has no golden photo"
    assert (artifact.path / MANIFEST).is_file()
