"""Whatever can be told of a command line without torch is told before the seconds that importing it takes."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import artifacts
import click
import pytest

from naflex_export.cli.classify import classify_command

RUN = """
import json, sys
from click.testing import CliRunner
from importlib import import_module

told = []
for command, arguments in json.loads(sys.argv[1]):
    run = getattr(import_module(f"naflex_export.cli.{command}"), f"{command}_command")
    done = CliRunner().invoke(run, arguments)
    told.append((done.exit_code, " ".join(done.stderr.split())))
    if "torch" in sys.modules:
        break
print(json.dumps([told, "torch" in sys.modules]))
"""


def refused(asked: Sequence[tuple[str, Sequence[str]]], folder: Path) -> list[str]:
    """Return what commands say, each of which must be refused, in a process that must not import torch."""
    words = [sys.executable, "-c", RUN, json.dumps(asked)]
    done = subprocess.run(words, capture_output=True, text=True, check=True, cwd=folder)
    told, torch_is_there = json.loads(done.stdout)
    assert not torch_is_there, f"torch was imported by {asked[len(told) - 1]}, which said {told[-1]}"
    assert [code for code, _ in told] == [2] * len(asked)
    return [said for _, said in told]


OF_AN_ARTIFACT = [
    ("gate", "--weights nofile", "checkpoint 'nofile' does not exist"),
    ("gate", "--images nofolder", "image folder 'nofolder' cannot be read"),
    ("gate", "--tokenizer x", "--tokenizer 'x' was given and 'a' has no text tower"),
    ("gate", "--seed 0 --reference no_such", "model 'no_such' does not exist"),
    ("gate", "--case nope", "case 'nope' does not exist: expected a name such as photos-"),
    ("gate", "--case mixed-7-seed0", "case 'mixed-7-seed0' does not exist: expected a name such as photos-"),
    ("gate", "--reference os:nope", "factory 'os:nope' cannot be imported (module 'os' has no attribute 'nope')"),
    ("bench", "--reference os:nope", "factory 'os:nope' cannot be imported (module 'os' has no attribute 'nope')"),
    ("bench", "--weights nofile", "checkpoint 'nofile' does not exist"),
    ("bench", "--device nope", "device 'nope' is not served: expected cpu, or cuda and an index"),
    ("bench", "--batch 999", "no bucket takes 999 images"),
    ("bench", "--tokens 9999", "9999 tokens are more than any bucket takes"),
]


def test_what_is_asked_of_an_artifact_is_refused_before_torch_is_imported(tmp_path: Path) -> None:
    artifacts.fill(tmp_path / "a")
    source = {"model": "os:getcwd", "weights": "random"}
    artifacts.edit(tmp_path / "a", lambda fields: fields["model"].update(source=source))
    asked = [(command, ["a", "--trust-source", *given.split()]) for command, given, _ in OF_AN_ARTIFACT]
    said = refused([*asked, ("gate", ["judge", "nopack", "answers"])], tmp_path)
    for (_, _, expected), line in zip(OF_AN_ARTIFACT, said, strict=False):
        assert expected in line
    assert "there is no folder 'nopack': expected the folder of a pack" in said[-1]


EXPORTS = [
    ("--images nofolder", "image folder 'nofolder' cannot be read (it does not exist)"),
    ("--images notes", "image folder 'notes' holds no image among its 1 files"),
    ("--opset 3", "--opset 3 cannot be had for target 'onnx': expected 18 to 23"),
    ("--outputs nope", "outputs=('nope',): expected 'features', 'tokens' or both"),
    ("--tokenizer x", "--tokenizer 'x' was given and no text tower is exported"),
    ("--tower image,text --patch-size 8", "a text tower goes beside an image tower of one patch size"),
    ("--tower image,text --dtype int8", "a text tower is not quantized"),
    ("--dtype int8", "int8' is calibrated on photos of yours, and none were given"),
    ("--dtype int8 --packed", "int8' is for padded exports"),
    ("--compile-cache", "target 'onnx' has no compile cache"),
    ("--keep-rejected --patch-size 8", "keep_rejected and patch_sizes=(8,) were both given"),
    ("--checkpoint-state x", "state 'x' cannot be taken of random weights"),
    ("--model-args pretrained=1", "--model-args pretrained=... cannot be given"),
]


def test_an_export_is_refused_before_torch_is_imported(tmp_path: Path) -> None:
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "a.txt").write_text("no photo")
    always = ["os:getcwd", "--target", "onnx", "--weights", "random", "--out", "a"]
    said = refused([("export", [*always, *given.split()]) for given, _ in EXPORTS], tmp_path)
    for (_, expected), line in zip(EXPORTS, said, strict=True):
        assert expected in line


FACTORIES = [
    ("siglip", "model 'siglip' does not exist"),
    ("vit", "model 'vit' does not exist"),
    ("os:nope", "factory 'os:nope' cannot be imported (module 'os' has no attribute 'nope')"),
    ("os.nope:make", "factory 'os.nope:make' cannot be imported (No module named 'os.nope'"),
    ("broken:make", "factory 'broken:make' cannot be imported (RuntimeError: on purpose)"),
]


def test_a_factory_that_is_not_there_is_refused_before_torch_is_imported(tmp_path: Path) -> None:
    """Its module is imported, as it will be anyway, and torch is only if that module asks for it."""
    (tmp_path / "broken.py").write_text("raise RuntimeError('on purpose')")
    exports = [("export", [model, "--target", "onnx", "--out", "a"]) for model, _ in FACTORIES]
    packs = [("gate", ["pack", model, "--out", "a"]) for model, _ in FACTORIES]
    said = refused([*exports, *packs], tmp_path)
    for (_, expected), line in zip([*FACTORIES, *FACTORIES], said, strict=True):
        assert expected in line


def test_an_artifact_of_code_is_refused_before_torch_is_imported(tmp_path: Path) -> None:
    artifacts.fill(tmp_path / "a")
    source = {"model": "os:getcwd", "weights": "random"}
    artifacts.edit(tmp_path / "a", lambda fields: fields["model"].update(source=source))
    artifacts.edit(tmp_path / "a", lambda fields: fields.update(target="aot", build={"device": "cpu"}))
    [said] = refused([("gate", ["a", "--trust-source", "--untrusted"])], tmp_path)
    assert "an artifact of target 'aot' holds code that runs when it is loaded" in said


@pytest.mark.parametrize(
    ("target", "missing", "said"),
    [
        ("trt", "tensorrt tensorrt_rtx", "target trt needs TensorRT, and neither library imports"),
        ("onnx", "onnxscript", "package 'onnxscript' is missing: pip install onnxscript"),
        ("aot", "g++ clang++", "AOTInductor needs a C++ compiler and found none"),
    ],
)
def test_a_missing_backend_is_told_before_torch_is_imported(
    target: str, missing: str, said: str, tmp_path: Path
) -> None:
    hides = (
        "import importlib.util, shutil, sys\n"
        f"gone = {missing.split()!r}\n"
        "find, which = importlib.util.find_spec, shutil.which\n"
        "importlib.util.find_spec = lambda name, *given: None if name in gone else find(name, *given)\n"
        "shutil.which = lambda name, *given: None if name in gone else which(name, *given)\n"
        "sys.modules.update(dict.fromkeys(gone))\n"
    )
    asked = [("export", ["os:getcwd", "--target", target, "--weights", "random", "--out", "a"])]
    words = [sys.executable, "-c", hides + RUN, json.dumps(asked)]
    done = subprocess.run(words, capture_output=True, text=True, check=True, cwd=tmp_path)
    [[code, line]], torch_is_there = json.loads(done.stdout)
    assert code == 3 and said in line and not torch_is_there


def test_a_contact_sheet_that_cannot_be_written_is_refused_first(tmp_path: Path) -> None:
    """Ahead of the vectors, which are not there."""
    (tmp_path / "file").write_text("no folder")
    sheet = ["--contact-sheet", "file/page.html"]
    asked = [("search", ["vectors", "a cat", *sheet]), ("embed", ["a", "photos", "--out", "vectors", *sheet])]
    assert [line.count("'file/page.html' cannot be written: ") for line in refused(asked, tmp_path)] == [1, 1]


def test_a_photo_that_may_not_be_read_is_left_to_the_command() -> None:
    """Click would refuse all of them; here one that cannot be read is its own failure, as one that is missing is."""
    [photos] = [param for param in classify_command.params if param.name == "photos"]
    assert isinstance(photos.type, click.Path) and not photos.type.readable and not photos.type.exists
