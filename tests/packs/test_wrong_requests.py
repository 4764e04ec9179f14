"""Packs, answers, commands and endpoints that are wrong: each is told by name, and none is a traceback or a wait."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from artifacts import fill_pooling
from click.testing import CliRunner
from packs.test_endpoints import OpenAI, Serving

import naflex_export as nx
from naflex_export.cli.gate import gate_command
from naflex_export.packs import answers, endpoints
from naflex_export.packs.opened import Pack


def run(*words: object) -> tuple[int, str]:
    done = CliRunner().invoke(gate_command, ["judge", *(str(word) for word in words)])
    return done.exit_code, " ".join(done.output.split())


@pytest.fixture
def copy(pack: Pack, tmp_path: Path) -> Path:
    """A copy of the pack, to be made wrong."""
    shutil.copytree(pack.path, tmp_path / "copy")
    return tmp_path / "copy"


def rewrite(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change a pack's manifest."""
    file = folder / "manifest.json"
    manifest = json.loads(file.read_text())
    change(manifest)
    file.write_text(json.dumps(manifest))


MANIFESTS: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "schema": (lambda said: said.update(schema=2), "has schema 2, expected 1: write it again"),
    "no-files": (lambda said: said.pop("files"), "is no manifest of a pack (KeyError: 'files')"),
    "files-a-list": (lambda said: said.update(files=[]), "is no manifest of a pack (AttributeError: 'list'"),
    "case-unhashed": (
        lambda said: said["files"].pop("cases/mixed/expected/features.npy"),
        "names no cases/mixed/expected/features.npy, which it needs",
    ),
    "hash": (
        lambda said: said["files"]["README.md"].update(sha256="0" * 64),
        "README.md of pack '",
    ),
    "no-hash": (lambda said: said["files"]["README.md"].pop("sha256"), "is no manifest of a pack (KeyError: 'sha256')"),
    "outside": (
        lambda said: said["files"].update({"../x": {"bytes": 1, "sha256": "0"}}),
        "../x of pack '",
    ),
    "no-floor": (lambda said: said["noise_floors"]["float16"].pop("mixed"), "names no noise floor of mixed"),
    "fault-without-words": (lambda said: said["fingerprints"]["bgr"].clear(), "names no words for bgr"),
}


@pytest.mark.parametrize("what", MANIFESTS)
def test_a_manifest_that_contradicts_its_pack_is_told(copy: Path, what: str) -> None:
    change, said = MANIFESTS[what]
    rewrite(copy, change)
    with pytest.raises(nx.RequestError) as raised:
        Pack.open(copy)
    assert said in str(raised.value)


def test_a_link_that_leads_nowhere_and_a_file_that_is_no_array_are_told(copy: Path) -> None:
    file = copy / "cases" / "mixed" / "expected" / "features.npy"
    file.unlink()
    file.symlink_to(file)
    with pytest.raises(nx.RequestError, match=r"cases/mixed/expected/features.npy of pack '.*' is missing"):
        Pack.open(copy)
    assert run(copy / "nothing", copy)[0] == 2


def test_an_answer_that_cannot_be_read_is_named(pack: Pack, tmp_path: Path) -> None:
    right = {case: pack.expected(case) for case in pack.cases}
    for case, value in right.items():
        np.save(tmp_path / f"{case}.npy", value)
    code, said = run(pack.path, tmp_path)
    assert code == 0
    np.save(tmp_path / "mixde.npy", right["mixed"])
    (tmp_path / "mixed.npy").unlink()
    code, said = run(pack.path, tmp_path)
    assert code == 0 and "not answered: mixed" in said and "answers to no case: mixde" in said
    for content in (b"", b"words", (tmp_path / "square.npy").read_bytes()[:200]):
        (tmp_path / "mixed.npy").write_bytes(content)
        code, said = run(pack.path, tmp_path)
        assert code == 2 and "mixed.npy' cannot be read" in said and "expected an array of numbers" in said
    for value in (np.array(["a"]), right["mixed"] + 1j, np.array([None], dtype=object)):
        np.save(tmp_path / "mixed.npy", value)
        assert run(pack.path, tmp_path)[0] == 2
    wrong = {
        "values that are not finite": right["mixed"] * np.nan,
        "the answer's shape is [1, 32], expected [6, 32]": right["mixed"][:1],
        "other-order: vectors are right, but of other images": right["mixed"][::-1],
    }
    for words, value in wrong.items():
        np.save(tmp_path / "mixed.npy", value)
        code, said = run(pack.path, tmp_path)
        assert code == 1 and words in said, said
    (tmp_path / "a.safetensors").write_bytes(b"\x00" * 20)
    code, said = run(pack.path, tmp_path / "a.safetensors")
    assert code == 2 and "a folder of .npy files, or a .safetensors file" in said
    for dtype in ("int8", "half"):
        code, said = run(pack.path, tmp_path, "--dtype", dtype)
        assert code == 2 and "expected one of float32, float16, bfloat16" in said


def test_names_of_nothing_in_an_onnx_file_are_told(pack: Pack, tmp_path: Path) -> None:
    import onnx

    node = onnx.helper.make_node("ReduceMean", ["patches"], ["features"], keepdims=0)
    given = [onnx.helper.make_tensor_value_info("patches", onnx.TensorProto.FLOAT, ["b", "n", 48])]
    made = [onnx.helper.make_tensor_value_info("features", onnx.TensorProto.FLOAT, [])]
    graph = onnx.helper.make_graph([node], "wrong", given, made)
    opset = [onnx.helper.make_opsetid("", 20)]
    onnx.save(onnx.helper.make_model(graph, opset_imports=opset, ir_version=9), tmp_path / "a.onnx")
    code, said = run(pack.path, "--onnx", tmp_path / "a.onnx")
    assert code == 1 and "the answer's shape is [], expected [3, 32]" in said
    code, said = run(pack.path, "--onnx", tmp_path / "a.onnx", "--output", "vector")
    assert code == 2 and "--output 'vector' is not of" in said and "expected one of features" in said
    code, said = run(pack.path, "--onnx", tmp_path / "a.onnx", "--input", "patch=patches")
    assert code == 2 and "--input patch=patches: expected one of the pack's inputs (patches, " in said
    (tmp_path / "b.onnx").write_bytes(b"no graph")
    assert run(pack.path, "--onnx", tmp_path / "b.onnx")[0] == 2
    assert run(pack.path, tmp_path, "--output", "features")[0] == 2
    assert run(pack.path, tmp_path, "--input", "a=b")[0] == 2


def test_commands_that_answer_nothing_are_told(pack: Pack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code, said = run(pack.path, "--command", "no-such-program {photo}")
    assert code == 2 and "'no-such-program' cannot be run (No such file or directory)" in said
    assert run(pack.path, "--command", "sh -c 'echo {photo}")[0] == 2  # a quote that has no end
    code, said = run(pack.path, "--command", "echo loading {photo}")
    assert code == 1 and "expected a vector, found the text 'loading /" in said
    code, said = run(pack.path, "--command", "sh -c 'echo [[1, 2], [3, 4]]' {photo}")
    assert code == 1 and "expected one vector, found an array of shape [2, 2]" in said
    code, said = run(pack.path, "--command", "sh -c 'echo 1 nan' {photo}")
    assert code == 1 and "the answer's shape is [3, 2], expected [3, 32]" in said
    monkeypatch.setattr(answers, "SECONDS", 0.5)
    begun = time.monotonic()
    code, said = run(pack.path, "--command", "sh -c 'sleep 30 & sleep 30; cat' {photo}")
    assert code == 1 and "it printed nothing whole within 0.5 s" in said and time.monotonic() - begun < 10


SENT = {"html": b"<html><body>hello", "fails": b"out of memory", "narrow": b"[1, 2]"}


class Slow(BaseHTTPRequestHandler):
    """Answers in one of the ways in which no vector comes."""

    def do_POST(self) -> None:
        way = self.path.split("/")[1]
        if way == "hangs":
            time.sleep(2)
            return
        if way == "no-http":
            self.wfile.write(b"hello\r\n\r\n")
            return
        self.send_response(500 if way == "fails" else 200)
        if way == "cut":
            self.send_header("Content-Length", "1000")
        self.end_headers()
        for _ in range(40 if way == "drips" else 1):
            self.wfile.write(
                {"html": b"<html><body>hello", "fails": b"out of memory", "narrow": b"[1, 2]"}.get(way, b"[")
            )
            if way == "drips":
                time.sleep(0.05)

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


WAYS = {
    "hangs": "no reply",
    "drips": "the reply had no end after",
    "no-http": "no reply",
    "cut": "no vector from",
    "fails": "status 500: out of memory",
    "html": "expected a vector, found the text '<html><body>hello'",
    "narrow": "the answer's shape is [3, 2], expected [3, 32]",
}


@pytest.mark.parametrize("way", WAYS)
def test_endpoints_that_answer_nothing_are_told(pack: Pack, way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoints, "SECONDS", 0.4)
    begun, serving = time.monotonic(), Serving(lambda *given: (200, ""))
    serving.server.RequestHandlerClass = Slow
    with serving as url:
        code, said = run(pack.path, "--url", f"{url}/{way}/v1/embeddings")
    assert code == 1 and WAYS[way] in said, said
    assert time.monotonic() - begun < 8
    assert way not in ("hangs", "drips") or said.count("no vector from") == 1  # the others are asked in vain


def test_vectors_of_length_one_are_told_and_can_be_judged(pack: Pack) -> None:
    class Unit(OpenAI):
        def __init__(self, pack: Pack) -> None:
            super().__init__(pack)
            self.vectors = {photo: one / np.linalg.norm(one) for photo, one in self.vectors.items()}

    with Serving(Unit(pack)) as url:
        code, said = run(pack.path, "--url", f"{url}/v1/embeddings")
        assert code == 1 and "diagnosis: scaled: each vector has the right direction and another length, all 1;" in said
        assert run(pack.path, "--url", f"{url}/v1/embeddings", "--normalized")[0] == 0
    with Serving(OpenAI(pack)) as url:  # these are not of that length
        assert run(pack.path, "--url", f"{url}/v1/embeddings", "--normalized")[0] == 1


def test_a_pack_that_cannot_be_written_is_told_before_the_model_is_loaded(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    said = {
        "file/pack": "cannot write to",
        "link": "exists: a pack is written to a folder that does not",
        "file": "exists",
    }
    for name, words in said.items():
        asked = ["pack", "naflexvit_base_patch16_siglip", "--weights", "random", "--out", str(tmp_path / name)]
        done = CliRunner().invoke(gate_command, asked)
        assert done.exit_code == 2 and words in done.output and "random weights" not in done.output


def test_a_pack_and_answers_that_are_not_there_are_told(pack: Pack, tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "nothing"):
        code, said = run(path, tmp_path)
        assert code == 2 and "expected the folder of a pack" in said
    assert "there is no folder" in run(tmp_path / "nothing", tmp_path)[1]
    assert run(pack.path, tmp_path / "nothing")[0] == 2 and run(pack.path, tmp_path)[0] == 2


def test_a_pack_and_an_artifact_are_not_taken_for_each_other(pack: Pack, tmp_path: Path) -> None:
    for words in (["{}"], ["compare", "{}", "{}", "--photos", "."]):
        asked = [word.format(pack.path) for word in words]
        done = CliRunner().invoke(gate_command, asked)
        assert done.exit_code == 2 and "is a golden pack: expected an artifact" in done.output, done.output
        assert f"naflex-gate judge {pack.path} ANSWERS" in done.output
    artifact = fill_pooling(tmp_path / "a")
    code, said = run(artifact, tmp_path)
    assert code == 2 and "is an artifact: expected the folder of a pack" in said
    assert f"naflex-gate {artifact} judges" in said
