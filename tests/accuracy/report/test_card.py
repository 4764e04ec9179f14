"""An artifact's model card, and what its ONNX file says of itself."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import artifacts
import onnx
import pytest
import tiny
import yaml
from click.testing import CliRunner
from PIL import Image
from tower_tiny import qwen3_vl

import naflex_export as nx
from naflex_export.accuracy.report.card import CARD, as_card
from naflex_export.cli.gate import gate_command
from naflex_export.graph.build_settings import BuildSettings
from naflex_export.graph.onnx_about import PREFIX, onnx_properties
from naflex_export.serving.manifest import MANIFEST, Manifest
from naflex_export.serving.manifest_schema import PATCH_SIZES
from naflex_export.serving.signature import TensorSpec
from naflex_export.version import __version__

BUCKET = nx.Bucket(16, (1, 2, 4))


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An artifact whose weights are in a file of their own."""
    settings = BuildSettings(external_data_bytes=1000)
    out = tmp_path_factory.mktemp("card") / "a"
    return nx.export(tiny.shallow(), "onnx", out, [BUCKET], effort="quick", settings=settings).path


def header(card: str) -> dict[str, object]:
    """Return what a hub reads of a card."""
    _, between, _ = card.split("---\n", 2)
    found: dict[str, object] = yaml.safe_load(between)
    return found


def test_the_onnx_file_says_what_it_is_and_runs_as_it_was_judged(artifact: Path) -> None:
    graph = onnx.load(artifact / "model.onnx", load_external_data=False)
    said = {one.key.removeprefix(PREFIX): one.value for one in graph.metadata_props if one.key.startswith(PREFIX)}
    manifest = Manifest.read(artifact)
    assert said["version"] == __version__ and said["weights_sha256"] == manifest.model["weights_sha256"]
    assert json.loads(said["preprocessing"]) == manifest.preprocessing and said["dtype"] == "float32"
    verdict = json.loads(said["gate"])
    assert verdict["passed"] is True and verdict["worst"] == manifest.gate["worst"]
    assert "exported by naflex_export" in graph.doc_string and "gate passed" in graph.doc_string
    onnx.checker.check_model(str(artifact / "model.onnx"))
    run = nx.load(artifact)
    assert nx.gate(run, tiny.shallow(), effort="quick").passed
    metadata = run._session.get_modelmeta().custom_metadata_map  # type: ignore[attr-defined]
    assert metadata[f"{PREFIX}version"] == __version__


def test_the_card_has_a_header_for_hubs_and_the_gates_figures(artifact: Path) -> None:
    card, manifest = (artifact / CARD).read_text(), Manifest.read(artifact)
    assert CARD in manifest.files and header(card)["pipeline_tag"] == "image-feature-extraction"
    assert header(card)["library_name"] == "naflex_export" and "base_model" not in header(card)
    assert "The gate passed" in card and f"{manifest.gate['cases']} comparisons" in card
    assert "not normalised" in card and str(manifest.inputs[0]) in card and "license" in card
    assert str(artifact.parent) not in card


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ({"model": "hf:google/siglip2-naflex", "weights": "pretrained"}, "google/siglip2-naflex"),
        ({"model": "naflexvit_base_patch16_siglip.v2_webli", "weights": "pretrained"},
         "timm/naflexvit_base_patch16_siglip.v2_webli"),
        ({"model": "hf:/home/somebody/secret", "weights": "pretrained"}, None),
        ({"model": "hf:google/siglip2-base-patch16-naflex", "weights": "/home/somebody/tuned.safetensors"}, None),
        ({}, None),
    ],
)  # fmt: skip
def test_the_card_names_the_base_model_where_it_is_known(source: dict[str, str], expected: str | None) -> None:
    prepared = {"settings_from": "/home/somebody/secret", "library": "timm"}
    manifest = artifacts.manifest(model={**artifacts.MODEL, "source": source}, preprocessing=prepared)
    card, said = as_card(manifest), onnx_properties(manifest)
    assert header(card).get("base_model") == expected and "somebody" not in card and "timm" in card
    assert not any("somebody" in value for value in said.values())


def test_the_card_of_a_dry_run_a_classifier_and_a_failure_says_so() -> None:
    random = as_card(artifacts.manifest(model={**artifacts.MODEL, "source": {"weights": "random"}}))
    assert "Its weights are random" in random and "The gate has not judged it" in random
    classes = as_card(artifacts.manifest(model={**artifacts.MODEL, "num_classes": 10}, target="aot"))
    assert header(classes)["pipeline_tag"] == "image-classification" and "holds code that runs" in classes
    text = {"folder": "text", "logit_scale": 4.5, "logit_bias": -16.0, "probability": "sigmoid", "normalized": False}
    both = as_card(artifacts.manifest(model={**artifacts.MODEL, "text": text}))
    assert header(both)["pipeline_tag"] == "zero-shot-image-classification" and "exp(4.5) + -16" in both
    failed = as_card(artifacts.manifest(gate={"passed": False, "judged": "it", "worst": {"relative_l2": "nan"}}))
    assert "**FAILED**" in failed and "nan" in failed


PREPARED = artifacts.manifest().preprocessing | {"library": "timm", "interpolation": "bicubic"}
TOKENS = TensorSpec("tokens", "float32", ("batch", "tokens", 32))
TOWER: dict[str, Any] = {
    "inputs": (
        TensorSpec("hidden_states", "float32", ("4*tokens", 12)),
        TensorSpec("grid_thw", "int64", ("images", 3)),
        TensorSpec("positions", "int64", ("longest",)),
    ),
    "outputs": (replace(TOKENS, shape=("tokens", 32)),),
    "preprocessing": {"settings_from": "the model's own processor", "channels": 3},
}
SIZES: dict[str, Any] = {"kind": PATCH_SIZES, "build": {"entry_points": {"4": "patch4", "6": "patch6"}}}
FLAVOURS: dict[str, tuple[dict[str, Any], str]] = {
    "features": ({}, 'nx.Embedder(".")(["photo.jpg"])'),
    "tokens": ({"outputs": (TOKENS,)}, 'nx.load(".")(nx.Preprocessor.of(".")(["photo.jpg"]))'),
    "patch-sizes": (SIZES, 'nx.Embedder(".", patch_size=4)(["photo.jpg"])'),
    "tower": (TOWER, 'run.example("noise", 1, 16)  # of your own: hidden_states and grid_thw'),
}


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_the_card_says_how_an_artifact_of_each_kind_is_run(flavour: str) -> None:
    changed, call = FLAVOURS[flavour]
    manifest = artifacts.manifest(**{"preprocessing": PREPARED, **changed})
    if flavour == "patch-sizes":
        manifest = replace(manifest, preprocessing={**PREPARED, "patch_size": [[4, 4], [6, 6]]})
    card = as_card(manifest)
    assert call in card and ("not normalised" in card) == (flavour in ("features", "patch-sizes"))
    assert ("`nx.Preprocessor` makes the inputs of photos" in card) == (flavour != "tower")
    assert ("with no padding between them" in card) == (flavour == "tower")


def test_the_card_claims_no_more_than_is_so() -> None:
    half = as_card(artifacts.manifest(dtype="bfloat16"))
    assert "which ONNX Runtime runs on a GPU" in half and "without torch" not in half
    classes = as_card(artifacts.manifest(model={**artifacts.MODEL, "num_classes": 10}))
    assert "Features are the logits of the classes" in classes
    gate = {"passed": True, "judged": "model.onnx", "not_run": "model.plan was built and not run: no GPU"}
    engine = artifacts.manifest(target="trt", gate=gate)
    assert "on model.onnx; model.plan was built and not run: no GPU." in as_card(engine)
    assert "`naflex-gate . --reference MODEL --weights WEIGHTS` judges again" in as_card(engine)
    known = replace(engine, model={**artifacts.MODEL, "source": {"model": "naflexvit_base_patch16_siglip"}})
    assert "`naflex-gate .` judges again" in as_card(known)


@pytest.mark.full
@pytest.mark.filterwarnings("ignore:the model is a vision tower:UserWarning")
def test_what_the_card_says_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = {
        "sizes": lambda out: nx.export(tiny.flexible(), "onnx", out, [BUCKET], patch_sizes=(4, 6), effort="quick"),
        "tower": lambda out: nx.export(qwen3_vl(), "onnx", out, [BUCKET], effort="quick"),
        "tokens": lambda out: nx.export(tiny.siglip(), "onnx", out, [BUCKET], outputs="tokens", effort="quick"),
        "packed": lambda out: nx.export(tiny.siglip(), "onnx", out, [BUCKET], packed=True, effort="quick"),
    }
    for name, export in made.items():
        monkeypatch.chdir(export(tmp_path / name).path)
        snippet = Path(CARD).read_text().split("```python\n")[1].split("```")[0]
        Image.new("RGB", (40, 24), "red").save(tmp_path / "photo.jpg")
        exec(snippet.replace("photo.jpg", str(tmp_path / "photo.jpg")), {})


def test_the_gate_writes_a_card_anew_and_hashes_hold(artifact: Path, tmp_path: Path) -> None:
    old = tmp_path / "old"
    shutil.copytree(artifact, old)
    (old / CARD).unlink()
    Manifest.read(old).write(old)
    assert CARD not in Manifest.read(old).files
    done = CliRunner().invoke(gate_command, [str(old), "--card"])
    assert done.exit_code == 0 and "README.md (the model card)" in done.output, done.output
    assert done.stdout == (old / CARD).read_text() and done.stderr.startswith("wrote ")
    manifest = Manifest.read(old)
    manifest.verify(old)
    assert (old / CARD).read_text() == (artifact / CARD).read_text() and nx.load(old).manifest == manifest
    assert sorted(path.name for path in tmp_path.iterdir()) == ["old"]
    both = CliRunner().invoke(gate_command, [str(old), "--card", "--report", str(tmp_path / "r.html")])
    assert both.exit_code == 2 and "--card judges nothing" in both.stderr
    (old / "model.onnx").write_bytes(b"other")
    damaged = CliRunner().invoke(gate_command, [str(old), "--card"])
    assert damaged.exit_code == 2 and "model.onnx" in damaged.stderr
    assert (artifact / MANIFEST).is_file()
