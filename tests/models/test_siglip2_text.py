"""The text tower of SigLIP 2 beside its image tower: what an artifact gives, what the gate refuses, and its errors.

And what it is for, as a user types it: `naflex-classify` and `naflex-search`.
"""

from __future__ import annotations

import json
import math
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from click.testing import CliRunner, Result
from PIL import Image
from torch import Tensor, nn

pytest.importorskip("transformers")
pytest.importorskip("pyarrow")

import artifacts
import pyarrow.parquet as pq
from siglip2_text_tiny import LENGTH, TOKENS, saved, tokenizer, two_towers
from siglip2_tiny import BUCKET, vision
from transformers import AutoTokenizer, Siglip2ImageProcessor, Siglip2Model

import naflex_export as nx
from naflex_export.accuracy.advice import advice_on
from naflex_export.accuracy.efforts import CaseSelection
from naflex_export.accuracy.gate import GateSettings
from naflex_export.accuracy.judge_artifact import JudgeRequest, judge_artifact
from naflex_export.accuracy.results import Tap
from naflex_export.accuracy.text_cases import ALL_TEXTS
from naflex_export.accuracy.text_gate import judge_text
from naflex_export.cli.classify import classify_command
from naflex_export.cli.embed import embed_command
from naflex_export.cli.search import search_command
from naflex_export.grid import Bucket
from naflex_export.models import adapter_of
from naflex_export.models.kept_parts import ModelParts, blocks_of
from naflex_export.models.text_tower import TextTower
from naflex_export.models.tower_names import check_towers
from naflex_export.precision import FLOAT32
from naflex_export.serving.manifest import Manifest
from naflex_export.serving.text import TextEncoder

TEXTS = ["a photo of a cat.", "Two Dogs", "", "word " * 500, *ALL_TEXTS]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a model with both towers and its tokenizer."""
    return saved(tmp_path_factory.mktemp("hf") / "tiny-siglip2")


@pytest.fixture(scope="module")
def model(folder: Path) -> Siglip2Model:
    return Siglip2Model.from_pretrained(folder).eval()


@pytest.fixture(scope="module")
def artifact(model: Siglip2Model, tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = nx.export(
        model, "onnx", tmp_path_factory.mktemp("onnx") / "a", [BUCKET], towers="image,text", effort="quick"
    )
    return made.path


def eager(model: Siglip2Model, folder: Path, texts: list[str]) -> Tensor:
    """Return what a user of transformers has of texts."""
    made = AutoTokenizer.from_pretrained(folder)(
        texts, padding="max_length", truncation=True, max_length=LENGTH, return_tensors="pt"
    )
    with torch.no_grad():
        given = model.get_text_features(**made)
    return given.pooler_output


def test_texts_have_the_vectors_that_transformers_gives_them(artifact: Path, model: Siglip2Model, folder: Path) -> None:
    expected = eager(model, folder, TEXTS)
    found = nx.load(artifact).text(TEXTS)
    assert found.shape == expected.shape and (found - expected).abs().max() <= 1e-5 * expected.abs().max()
    arrays = nx.load_numpy(artifact).text(TEXTS)
    assert isinstance(arrays, np.ndarray) and np.array_equal(arrays, found.numpy())


def test_a_server_says_that_it_serves_images_alone(artifact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    process = pytest.importorskip("naflex_export.server.process")
    said: list[str] = []
    monkeypatch.setattr(process, "_announce_start", lambda server, announce: announce())
    monkeypatch.setattr(process.uvicorn.Server, "run", lambda *given, **named: None)
    with process.listening("127.0.0.1", 0) as at, pytest.raises(nx.BackendError, match="did not start"):
        process.serve(artifact, at, process.ServeSettings(), announce=said.append)
    assert len(said) == 1 and said[0].endswith(
        "images alone are served: for texts take run.text([...]) of the loaded artifact"
    )


def test_more_texts_than_a_batch_takes_go_in_parts(artifact: Path) -> None:
    run = nx.load(artifact)
    texts = [f"text number {number}" for number in range(150)]
    assert torch.equal(run.text(texts)[149:], run.text(texts[149:]))


def test_the_manifest_says_how_vectors_are_scored_as_the_model_scores_them(
    artifact: Path, model: Siglip2Model, folder: Path
) -> None:
    manifest = Manifest.read(artifact)
    assert manifest.text == {
        "folder": "text",
        "logit_scale": float(model.logit_scale.detach()),
        "logit_bias": float(model.logit_bias.detach()),
        "probability": "sigmoid",
        "normalized": False,
    }
    assert {"text/tokenizer.json", "text/model.onnx", "text/manifest.json"} <= set(manifest.files)
    graph = onnx.load(artifact / "text" / "model.onnx", load_external_data=False)
    said = {one.key: one.value for one in graph.metadata_props}
    assert {"folder": "text", **json.loads(said["naflex_export.scoring"])} == manifest.text  # of a file copied out
    images = torch.randn(3, 32)
    encoder = nx.load(artifact).text
    texts = encoder(["a cat", "a dog"])
    normal = [vectors / vectors.norm(dim=-1, keepdim=True) for vectors in (images, texts)]
    logits = normal[0] @ normal[1].T * model.logit_scale.exp() + model.logit_bias
    found = encoder.scoring.probabilities(images.numpy(), texts.numpy())
    assert np.allclose(found, torch.sigmoid(logits).detach().numpy(), atol=1e-6)


def test_an_artifact_without_a_text_tower_says_what_to_do(tmp_path: Path) -> None:
    artifacts.fill_pooling(tmp_path / "a")
    with pytest.raises(nx.RequestError, match="has no text tower: export the model again with --tower image,text"):
        nx.load(tmp_path / "a").text(["a cat"])
    with pytest.raises(nx.RequestError, match="has no text tower"):
        nx.load_numpy(tmp_path / "a").text(["a cat"])


WITHOUT = """
import sys
for name in ("torch", "transformers", "timm", "torchvision", "onnx"):
    sys.modules[name] = None
import naflex_export as nx
print(*nx.load_numpy(sys.argv[1]).text(["a cat"]).shape)
"""


def test_texts_need_onnxruntime_and_tokenizers_alone(artifact: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT, str(artifact)], capture_output=True, text=True, check=False, timeout=120
    )
    assert done.stdout.split() == ["1", "32"], done.stderr


def test_a_missing_package_or_file_is_named(artifact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(artifact, tmp_path / "a")
    inner = tmp_path / "a" / "text"
    (inner / "tokenizer.json").unlink()
    with pytest.raises(nx.ArtifactError, match="'text/tokenizer.json' is missing"):
        nx.load(tmp_path / "a")
    artifacts.edit(inner, lambda fields: fields["files"].pop("tokenizer.json"))
    Manifest.read(tmp_path / "a").write(tmp_path / "a")
    with pytest.raises(nx.ArtifactError, match=r"lists no '.*tokenizer.json'.*export again"):
        nx.load(tmp_path / "a").text(["a cat"])
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(nx.BackendError, match="'tokenizers' is missing or broken"):
        nx.load(artifact).text(["a cat"])


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ("a cat", r"expected a list of texts, such as \['a cat'\]"),
        ([], "an empty list"),
        ([3], "holds a int"),
        (None, "texts is a NoneType: expected a list of texts"),
        (b"a cat", "texts is a bytes: expected a list of texts"),
        ({"a cat", "a dog"}, "texts is a set: expected a list of texts"),
    ],
)
def test_what_is_no_list_of_texts_is_refused(artifact: Path, texts: Any, message: str) -> None:
    with pytest.raises(nx.InputError, match=message):
        nx.load(artifact).text(texts)


def test_another_models_tokenizer_or_none_is_refused(model: Siglip2Model, tmp_path: Path) -> None:
    def refused(one: nn.Module, message: str, **options: object) -> None:
        with pytest.raises((nx.RequestError, nx.UnsupportedModelError), match=message):
            nx.export(one, "onnx", tmp_path / "a", [BUCKET], **options)

    refused(two_towers(), "not loaded from a folder or hub.*--tokenizer", towers="image,text")
    refused(model, "holds no tokenizer.json", towers="image,text", tokenizer=str(tmp_path))
    tokenizer([f"{a}{b} " for a in "abcdefghijkl" for b in "mnopqrstuvwx"] * 9, tokens=800).save_pretrained(
        tmp_path / "large"
    )
    small = two_towers(vocab_size=50)
    refused(small, "and the model has 50 tokens", towers="image,text", tokenizer=str(tmp_path / "large"))
    refused(vision(), "a Siglip2VisionModel has no text tower", towers="image,text")
    refused(model, "towers='text': expected image, or image,text", towers="text")
    refused(model, "towers=3: expected image, or image,text", towers=3)
    assert check_towers("Text, IMAGE") == check_towers(["image", "text"]) == ("image", "text")
    refused(model, "no text tower is exported", tokenizer="somewhere")


class Wrong(nn.Module):
    """A text tower with one fault, as a candidate."""

    def __init__(self, model: Siglip2Model, change: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.model, self.change = model, change

    def forward(self, input_ids: Tensor) -> Tensor:
        return self.model.text_model(input_ids=self.change(input_ids)).pooler_output


FAULTS: dict[str, Callable[[Tensor], Tensor]] = {
    "padded-by-another-token": lambda ids: torch.where(ids == 0, 2, ids),
    "shorter": lambda ids: ids[:, :-1],
    "order-of-tokens": lambda ids: ids.flip(1),
    "one-token-of-the-vocabulary": lambda ids: torch.where(ids == TOKENS - 1, 5, ids),
    "texts-swapped-in-batches-of-64": lambda ids: ids.flip(0) if len(ids) == 64 else ids,
}


def judged(model: Siglip2Model, folder: Path, candidate: nn.Module) -> nx.GateReport:
    tower: TextTower = adapter_of(model).text_tower(str(folder))
    settings = GateSettings((Bucket(LENGTH, (1, 8, 64)),), FLOAT32, ("features",), CaseSelection())
    return judge_text(candidate, tower, settings)  # type: ignore[arg-type]


def test_the_gate_passes_the_tower_itself(model: Siglip2Model, folder: Path) -> None:
    assert judged(model, folder, Wrong(model, lambda ids: ids)).passed


@pytest.mark.parametrize("fault", FAULTS)
def test_the_gate_rejects_a_wrong_text_tower(model: Siglip2Model, folder: Path, fault: str) -> None:
    assert not judged(model, folder, Wrong(model, FAULTS[fault])).passed


def test_an_artifact_is_judged_again_in_both_towers(artifact: Path, model: Siglip2Model, tmp_path: Path) -> None:
    report = judge_artifact(artifact, model, JudgeRequest(cases=CaseSelection(only=("text/labels", "mixed-30-seed0"))))
    assert report.passed and {result.case for result in report.results} == {"text/labels", "mixed-30-seed0"}
    shutil.copytree(artifact, tmp_path / "a")
    inner = tmp_path / "a" / "text"
    changed = json.loads((inner / "tokenizer.json").read_text())
    changed["normalizer"] = None  # capital letters are other tokens now
    (inner / "tokenizer.json").write_text(json.dumps(changed))
    Manifest.read(inner).write(inner)
    Manifest.read(tmp_path / "a").write(tmp_path / "a")
    wrong = judge_artifact(tmp_path / "a", model, JudgeRequest(cases=CaseSelection(only=("text/labels",))))
    assert not wrong.passed and "tokenizer: of " in wrong.failures[0]
    tokenizer(names=("input_ids", "attention_mask")).save_pretrained(tmp_path / "masking")
    request = JudgeRequest(cases=CaseSelection(only=("text/labels",)), tokenizer=str(tmp_path / "masking"))
    with pytest.raises(nx.RequestError, match="gives input_ids, attention_mask, and the artifact takes input_ids"):
        judge_artifact(artifact, model, request)
    with pytest.raises(nx.RequestError, match="names no part of the artifact: expected text and /"):
        judge_artifact(artifact, model, JudgeRequest(cases=CaseSelection(only=("image/labels",))))


@pytest.mark.full
def test_a_rejected_text_tower_publishes_nothing(
    model: Siglip2Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from naflex_export.models.siglip2_text import Siglip2TextEncoder

    def forward(self: Siglip2TextEncoder, input_ids: Tensor) -> tuple[Tensor, ...]:
        found = self.model(input_ids=input_ids).pooler_output
        return (found * (1.001 if torch.compiler.is_exporting() else 1.0),)

    monkeypatch.setattr(Siglip2TextEncoder, "forward", forward)
    with pytest.raises(nx.GateFailure, match=r"text/labels \[text/features\]"):
        nx.export(model, "onnx", tmp_path / "a", [BUCKET], towers="image,text", effort="quick")
    assert not (tmp_path / "a").exists()


def test_advice_names_no_module_of_the_text_tower(model: Siglip2Model, folder: Path) -> None:
    """`--keep-float32 encoder.layers.0.mlp` would keep the image tower's, and the export fail again."""
    tower = adapter_of(model).text_tower(str(folder))
    module = f"{blocks_of(tower)[0]}.mlp"
    inside = Tap(module, math.nan, 1e-3, 9e4, 3.0, 65504.0, 9e4)
    advice = advice_on(inside, "float16", ("norm",), parts=ModelParts(tower))
    assert "presets alone can be kept" in advice and advice.endswith("export in float32, or export in bfloat16")
    stream = replace(inside, reference_max_abs=9e4)
    assert "(--keep-float32 norm,residual)" in advice_on(stream, "float16", ("norm",), parts=ModelParts(tower))
    assert f"--keep-float32 {module})" in advice_on(inside, "float16", parts=ModelParts(adapter_of(model)))


def test_a_manifest_that_lies_of_its_text_tower_is_refused(artifact: Path, tmp_path: Path) -> None:
    changes: dict[str, tuple[object, str]] = {
        "folder": ("../elsewhere", "model.text.folder"),
        "logit_scale": ("large", "model.text.logit_scale"),
        "probability": ("argmax", "model.text.probability"),
        "normalized": (1, "model.text.normalized"),
    }
    for name, (value, message) in changes.items():
        shutil.rmtree(tmp_path / "a", ignore_errors=True)
        shutil.copytree(artifact, tmp_path / "a")

        def change(fields: dict[str, dict[str, dict[str, object]]], name: str = name, value: object = value) -> None:
            fields["model"]["text"][name] = value

        artifacts.edit(tmp_path / "a", change)
        with pytest.raises(nx.ArtifactError, match=message):
            nx.load(tmp_path / "a")


@pytest.mark.full
@pytest.mark.parametrize(
    ("target", "dtype", "masked"),
    [("trt", "float16", False), ("onnx", "bfloat16", False), ("aot", "float32", True), ("compile", "float32", True)],
)
def test_every_target_and_dtype_takes_the_text_tower(tmp_path: Path, target: str, dtype: str, masked: bool) -> None:
    names = ("input_ids", "attention_mask") if masked else ("input_ids",)
    folder = saved(tmp_path / "hf", names=names)
    whole = Siglip2Model.from_pretrained(folder).eval()
    made = nx.export(whole, target, tmp_path / "a", [BUCKET], dtype, towers="image,text", effort="quick")
    assert any(result.case.startswith("text/") for result in made.report.results)
    if made.report.not_run:
        return
    found, expected = nx.load(made.path).text(["a cat", "two dogs"]), eager(whole, folder, ["a cat", "two dogs"])
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()


def test_the_text_tower_is_opened_once_and_may_be_scored_against_others(artifact: Path) -> None:
    run = nx.load(artifact)
    assert isinstance(run.text, TextEncoder) and run.text is run.text
    assert replace(run.text.scoring, probability="softmax").probabilities(np.eye(2), np.eye(2)).sum() == pytest.approx(
        2
    )


def test_a_text_tower_shows_what_it_is(artifact: Path) -> None:
    run = nx.load(artifact)
    assert "  text tower: run.text([...]) gives vectors, scored by sigmoid" in repr(run).splitlines()
    lines = repr(run.text).splitlines()
    assert lines[0] == "TextEncoder: Siglip2TextModel, onnx in float32"
    assert "  texts of 16 tokens, longer ones are cut; vectors [texts, 32], not normalised" in lines
    assert lines[2].startswith("  score: sigmoid of cosine * exp(") and lines[3].startswith("  gate: passed, on ")


def test_the_folder_of_a_text_tower_alone_is_said_to_be_one(artifact: Path, model: Siglip2Model, photos: Path) -> None:
    for call in (
        lambda: judge_artifact(artifact / "text", model),
        lambda: nx.gate(nx.load(artifact / "text"), model),
        lambda: nx.Embedder(artifact / "text"),
    ):
        with pytest.raises(nx.RequestError, match="is the text tower of an artifact: give the folder that it lies in"):
            call()


LABELS = ["a cat", "two dogs", "a red bicycle", "soup"]


def run(command: object, *arguments: object) -> Result:
    return CliRunner().invoke(command, [str(argument) for argument in arguments])  # type: ignore[arg-type]


def flat(text: str) -> str:
    return " ".join(text.split())


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("photos") / "pictures"
    made.mkdir()
    draw = np.random.default_rng(0)
    for number in range(7):
        pixels = draw.integers(0, 256, (20 + 3 * number, 30, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(made / f"{number}.png")
    (made / "broken.png").write_bytes(b"no photo")
    return made


@pytest.fixture(scope="module")
def vectors(artifact: Path, photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("vectors") / "embeddings"
    done = run(embed_command, artifact, photos, "--out", out, "--shard", 3)
    assert done.exit_code == 0, done.output
    return out


def eager_probabilities(folder: Path, photo: Path, texts: list[str]) -> np.ndarray:
    """Return what transformers' own call of the whole model says of a photo and texts."""
    model = Siglip2Model.from_pretrained(folder).eval()
    images = Siglip2ImageProcessor()(images=Image.open(photo), patch_size=4, max_num_patches=30, return_tensors="pt")
    tokens = AutoTokenizer.from_pretrained(folder)(
        texts, padding="max_length", truncation=True, max_length=LENGTH, return_tensors="pt"
    )
    with torch.no_grad():
        logits = model(**images, **tokens).logits_per_image
    return torch.sigmoid(logits)[0].numpy()


def test_labels_have_the_probabilities_of_the_model_itself(artifact: Path, folder: Path, photos: Path) -> None:
    done = run(classify_command, artifact, photos / "3.png", "--labels", ",".join(LABELS), "--json")
    assert done.exit_code == 0, done.output
    ((row),) = json.loads(done.output)
    found = {one["label"]: one["probability"] for one in row["labels"]}
    expected = eager_probabilities(folder, photos / "3.png", [f"This is a photo of {label}." for label in LABELS])
    assert [found[label] for label in LABELS] == pytest.approx(expected.tolist(), abs=1e-6)
    likely = [one["probability"] for one in row["labels"]]
    assert likely == sorted(likely, reverse=True)
    shown = run(classify_command, artifact, photos / "3.png", "--labels", ",".join(LABELS), "--top", 2).output
    assert len(shown.splitlines()) == 3 and "%" in shown


def test_a_bad_photo_is_said_and_the_others_are_classified(artifact: Path, photos: Path) -> None:
    done = run(classify_command, artifact, photos / "broken.png", photos / "1.png", "--labels", "cat,dog")
    assert done.exit_code == 2 and "1 of 2 photos could not be read" in flat(done.stderr)
    assert f"{photos / '1.png'}\n" in done.stdout


def test_folders_are_classified_photo_by_photo(artifact: Path, photos: Path) -> None:
    done = run(classify_command, artifact, photos, "--labels", "cat,dog", "--json")
    assert done.exit_code == 2 and "1 of 8 photos could not be read" in flat(done.stderr)
    rows = json.loads(done.stdout)
    assert [Path(row["photo"]).name for row in rows] == [*(f"{number}.png" for number in range(7)), "broken.png"]
    assert all(("labels" in row) == ("broken" not in row["photo"]) for row in rows)
    none = run(classify_command, artifact, photos / "1.png", photos / "nowhere.png", "--labels", "cat")
    assert none.exit_code == 2 and "nowhere.png' cannot be read (it does not exist)" in flat(none.stderr)


def test_labels_may_hold_commas_and_come_from_a_file_of_any_editor(
    artifact: Path, photos: Path, tmp_path: Path
) -> None:
    (tmp_path / "labels.txt").write_bytes(b"\xef\xbb\xbfcat\r\n\r\nsalt, pepper\r\n")
    for options in (["--labels", 'cat, "salt, pepper"'], ["--labels-file", tmp_path / "labels.txt"]):
        done = run(classify_command, artifact, photos / "1.png", "--json", *options)
        assert done.exit_code == 0, done.output
        ((row),) = json.loads(done.stdout)
        assert sorted(one["label"] for one in row["labels"]) == ["cat", "salt, pepper"]


def test_a_page_is_not_written_into_an_artifact(artifact: Path, vectors: Path, photos: Path, tmp_path: Path) -> None:
    """The artifact would not load any more: its manifest does not list the page."""
    for inside in (artifact / "found.html", artifact / "text" / "found.html"):
        for command, given in ((search_command, (vectors, "a cat")), (embed_command, (artifact, photos))):
            out = () if command is search_command else ("--out", tmp_path / "out")
            done = run(command, *given, *out, "--contact-sheet", inside)
            assert done.exit_code == 2 and "lies in the artifact" in flat(done.stderr) and not inside.exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--labels", ""], "no label was given"),
        (["--labels", '"cat, dog'], "a label begins with a quote and does not end with one"),
        (["--labels", "cat,,dog"], "a label is empty"),
        (["--labels", "cat, cat"], "label 'cat' was given 2 times"),
        (["--labels", "cat", "--template", "a photo"], "expected one {}"),
        (["--labels-file", "nowhere.txt"], "cannot be read"),
        (["--labels", "cat,Cat"], "labels 'cat' and 'Cat' are the same tokens to the artifact's tokenizer"),
        (["--labels", "cat,dog", "--template", f"{'word ' * 40}{{}}"], "or a shorter --template"),
    ],
)
def test_labels_that_cannot_be_chosen_from_are_refused(
    artifact: Path, photos: Path, options: list[str], message: str
) -> None:
    done = run(classify_command, artifact, photos / "1.png", *options)
    assert done.exit_code == 2 and message in flat(done.stderr)


def test_a_search_finds_the_nearest_photos_and_shows_them(artifact: Path, vectors: Path, tmp_path: Path) -> None:
    sheet = tmp_path / "found.html"
    done = run(search_command, vectors, "a red bicycle", "x < y", "--top", 4, "--json", "--contact-sheet", sheet)
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    text = nx.load_numpy(artifact).text(["a red bicycle"])
    rows = [row for path in sorted(vectors.glob("*.parquet")) for row in pq.read_table(path).to_pylist()]
    images = {row["path"]: np.array(row["vector"]) for row in rows if row["vector"]}
    cosine = {name: float(v @ text[0] / np.linalg.norm(v) / np.linalg.norm(text)) for name, v in images.items()}
    best = sorted(cosine, key=lambda name: -cosine[name])[:4]
    assert len(images) == 7 and [one["name"] for one in found["a red bicycle"]] == best
    assert [one["likeness"] for one in found["a red bicycle"]] == pytest.approx([cosine[name] for name in best])
    page = sheet.read_text()
    assert page.count("<figure") == 8 and "x &lt; y" in page and "http" not in page
    assert page.index(f"{Path(best[0]).name}<br>") < page.index(f"{Path(best[1]).name}<br>")


def test_vectors_of_another_artifact_are_refused_by_their_weights(
    vectors: Path, artifact: Path, folder: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    shutil.copytree(artifact, other)
    artifacts.edit(other, lambda fields: fields["versions"].update(torch="0"))  # another manifest, the same weights
    assert run(search_command, vectors, "a cat", "--artifact", other, "--no-sheet").exit_code == 0
    another = json.loads((other / "text" / "tokenizer.json").read_text()) | {"normalizer": None}
    (other / "text" / "tokenizer.json").write_text(json.dumps(another))
    for inside in (other / "text", other):
        Manifest.read(inside).write(inside)
    capitals = run(search_command, vectors, "A Cat", "--artifact", other, "--no-sheet")
    assert capitals.exit_code == 2 and "and another tokenizer (its hash is " in flat(capitals.stderr)
    artifacts.edit(other, lambda fields: fields["model"].update(weights_sha256="0" * 64))
    done = run(search_command, vectors, "a cat", "--artifact", other, "--no-sheet")
    assert done.exit_code == 2 and "holds vectors of another artifact" in flat(done.stderr)
    (tmp_path / "plain").mkdir()
    artifacts.fill_pooling(tmp_path / "plain")
    photo = tmp_path / "one.png"
    Image.new("RGB", (20, 20), "red").save(photo)
    assert run(embed_command, tmp_path / "plain", photo, "--out", tmp_path / "out").exit_code == 0
    for more in ((), ("--artifact", tmp_path / "plain")):
        without = run(search_command, tmp_path / "out", "a cat", *more, "--no-sheet")
        assert without.exit_code == 2 and "has no text tower: export the model again" in flat(without.stderr)
    labelled = run(classify_command, tmp_path / "plain", photo, "--labels", "cat")
    assert labelled.exit_code == 2 and "has no text tower: export the model again" in flat(labelled.stderr)


def test_vectors_of_an_image_tower_alone_are_searched_by_an_artifact_of_the_same_weights(
    artifact: Path, vectors: Path, photos: Path, model: Siglip2Model, tmp_path: Path
) -> None:
    """They are the vectors that the artifact with both towers gives, so its text tower goes with them."""
    alone = nx.export(model, "onnx", tmp_path / "alone", [BUCKET], effort="quick").path
    assert run(embed_command, alone, photos, "--out", tmp_path / "out").exit_code == 0
    asked = ("A Cat", "--json", "--no-sheet")
    found = run(search_command, tmp_path / "out", *asked, "--artifact", artifact)
    assert found.exit_code == 0, found.output
    mine, theirs = (json.loads(one.stdout)["A Cat"] for one in (found, run(search_command, vectors, *asked)))
    assert [one["name"] for one in mine] == [one["name"] for one in theirs] and len(mine) == 7
    assert [one["likeness"] for one in mine] == pytest.approx([one["likeness"] for one in theirs], abs=1e-6)
    refused = run(search_command, tmp_path / "out", *asked)
    assert refused.exit_code == 2 and "vectors of the same weights stay as they are" in flat(refused.stderr)


def test_a_folder_that_is_none_or_was_moved_says_what_to_do(
    vectors: Path, artifact: Path, photos: Path, tmp_path: Path
) -> None:
    none = run(search_command, tmp_path, "a cat")
    assert none.exit_code == 2 and "holds no _run.json" in flat(none.stderr)
    partial = tmp_path / "partial"
    shutil.copytree(vectors, partial)
    (partial / "part-00000001.parquet").unlink()
    cut = run(search_command, partial, "a cat")
    assert cut.exit_code == 2 and "has no part-00000001.parquet: the run did not come to its end" in flat(cut.stderr)
    old = tmp_path / "old"
    shutil.copytree(vectors, old)
    (old / "_made_from.json").unlink()
    unknown = run(search_command, old, "a cat")
    assert unknown.exit_code == 2 and "give --artifact DIR" in flat(unknown.stderr)
    moved = tmp_path / "moved"
    shutil.copytree(photos, moved)
    sheet = tmp_path / "found.html"
    found = run(search_command, old, "a cat", "--artifact", artifact, "--photos", moved, "--contact-sheet", sheet)
    assert found.exit_code == 0 and sheet.is_file(), found.output
    (moved / "0.png").unlink()
    fewer = run(search_command, old, "a cat", "--artifact", artifact, "--photos", moved, "--contact-sheet", sheet)
    assert fewer.exit_code == 0 and f"not shown {photos / '0.png'}: it is not there any more" in flat(fewer.stderr)
    assert sheet.read_text().count("<img") == 6
    for photo in moved.glob("?.png"):
        photo.write_bytes((photos / "0.png").read_bytes())  # of every name there is one, and it is another
    others = run(search_command, old, "a cat", "--artifact", artifact, "--photos", moved, "--contact-sheet", sheet)
    assert others.exit_code == 2 and "Give the photos that were embedded with --photos" in flat(others.stderr)
    like = run(search_command, vectors, photos / "0.png")
    assert like.exit_code == 2 and "0.png' is a photo's file: expected words" in flat(like.stderr)
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "1.png").write_bytes(b"no photo")
    assert run(embed_command, artifact, tmp_path / "broken", "--out", tmp_path / "none").exit_code == 0
    nothing = run(search_command, tmp_path / "none", "a cat")
    assert nothing.exit_code == 2 and "has a vector: the column error of its shards says why" in flat(nothing.stderr)
    empty = run(search_command, vectors, " ")
    assert empty.exit_code == 2 and "a query is empty" in flat(empty.stderr)


def pictures(sheet: Path) -> dict[str, str]:
    """Return what a contact sheet shows in the place of each photo: its picture, or why there is none."""
    found = re.findall(r'<figure title="([^"]*)">(?:<img src="([^"]*)"|<div class="gap">([^<]*)<)', sheet.read_text())
    return {Path(name).name: picture or why for name, picture, why in found}


def test_a_contact_sheet_never_shows_another_photo_under_a_score(
    artifact: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder that has changed since keeps what can be proved to be the same, and has gaps by name for the others."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(photos, "here")
    assert run(embed_command, artifact, "here", "--out", "out", "--shard", 3).exit_code == 0
    search = ("out", "a cat", "--contact-sheet", "s.html")
    assert run(search_command, *search).exit_code == 0
    whole = pictures(Path("s.html"))
    assert len(whole) == 7 and all(one.startswith("data:") for one in whole.values())
    Image.new("RGB", (9, 9)).save("here/00.png")  # every other place is another photo's now
    Path("here/5.png").unlink()
    Path("here/1.png").rename("here/x.png")
    Path("here/2.png").rename("here/1.png")
    Path("here/x.png").rename("here/2.png")
    shutil.copytree("here", "there/deeper")
    gone, other = "it is not there any more", "it has changed since it was embedded"
    expected = {**whole, "1.png": other, "2.png": other, "5.png": gone}
    for more in ((), ("--photos", "there")):
        done = run(search_command, *search, *more)
        assert done.exit_code == 0, done.output
        assert pictures(Path("s.html")) == expected
        assert "not shown here/5.png: it is not there any more" in flat(done.stderr)
    for shard in Path("out").glob("*.parquet"):  # as an earlier release wrote them
        pq.write_table(pq.read_table(shard).drop_columns(["sha256"]), shard)
    assert run(search_command, *search).exit_code == 0 and pictures(Path("s.html"))["5.png"] == gone
    untold = run(search_command, *search, "--photos", "there")
    assert untold.exit_code == 2 and "nothing tells it from others of its name" in flat(untold.stderr)
    shutil.copytree(photos, "as it was")
    assert run(search_command, *search, "--photos", "as it was").exit_code == 0
    assert pictures(Path("s.html")) == whole


def test_what_the_page_on_zero_shot_says_runs(
    artifact: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = (Path(nx.__file__).parents[1] / "docs" / "zero_shot.md").read_text()
    shutil.copytree(artifact, tmp_path / "artifacts" / "siglip2")
    shutil.copytree(photos, tmp_path / "photos")
    Image.new("RGB", (40, 24), "red").save(tmp_path / "photo.jpg")
    monkeypatch.chdir(tmp_path)
    commands = {"classify": classify_command, "embed": embed_command, "search": search_command}
    given = [shlex.split(line) for line in page.split("```sh\n")[1].split("```")[0].splitlines()]
    assert [words[0] for words in given[:2]] == ["pip", "naflex-export"] and len(given) == 5
    for name, *arguments in given[2:]:
        done = run(commands[name.removeprefix("naflex-")], *arguments)
        assert done.exit_code == 0, done.output
    assert (tmp_path / "found.html").is_file()
    exec(page.split("```python\n")[1].split("```")[0], {})
