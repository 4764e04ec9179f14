"""Damaged and lying artifacts: refused with an error of the package, before anything large is made of them."""

from __future__ import annotations

import dataclasses
import io
import os
import resource
import shutil
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import artifacts
import fuzz_artifacts as fuzz
import kill_exports
import onnx_ir as ir
import pytest
import tiny
import torch
from artifacts import edit, names

import naflex_export as nx
from naflex_export.accuracy.cases import generated_batch
from naflex_export.graph.trace import trace
from naflex_export.models import adapter_of
from naflex_export.models.model_sources import ModelSource
from naflex_export.serving.archive import damage
from naflex_export.serving.manifest import MANIFEST
from naflex_export.serving.opened import opened


@pytest.fixture(scope="module")
def subject(tmp_path_factory: pytest.TempPathFactory) -> fuzz.Subject:
    return fuzz.Subject.make("onnx", tmp_path_factory.mktemp("fuzz") / "a")


@pytest.fixture
def artifact(subject: fuzz.Subject, tmp_path: Path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(subject.folder, tmp_path / "a"))


def test_damage_of_any_kind_is_refused_or_harmless(subject: fuzz.Subject) -> None:
    found = [outcome for *_, outcome in fuzz.outcomes([subject], 1, 0, 79)]
    assert set(found) <= {"refused", "same_answer", "loaded"}
    assert found.count("refused") > 40


def test_the_fuzzer_can_find_something(subject: fuzz.Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    assert subject.answer is not None
    other = dataclasses.replace(subject, answer=subject.answer + 1)
    assert fuzz.judge(subject, subject.folder, is_right=False) == "same_answer"
    assert fuzz.judge(other, subject.folder, is_right=False) == "silent_difference"
    assert fuzz.judge(other, subject.folder, is_right=True) == "loaded"
    for raised, outcome in (
        (KeyError("name"), "traceback"),
        (TimeoutError(), "hang"),
        (nx.ArtifactError(""), "refused"),
    ):
        monkeypatch.setattr(nx, "load", Mock(side_effect=raised))
        assert fuzz.judge(subject, subject.folder, is_right=False) == outcome


def put(*path: Any) -> Callable[[dict[str, Any]], None]:
    """Return what puts the last argument where the others lead."""

    def change(fields: dict[str, Any]) -> None:
        where: Any = fields
        for key in path[:-2]:
            where = where[key]
        where[path[-2]] = path[-1]

    return change


LIES = {
    "tokens-2e9": (put("buckets", 0, "tokens", 2_000_000_000), "larger than any machine's memory"),
    "tokens-float": (put("buckets", 0, "tokens", 16.0), "expected an integer of at least 1"),
    "batch-huge": (put("buckets", 0, "batch", [1, 1, 2**40]), "larger than any machine's memory"),
    "no-buckets": (put("buckets", []), "buckets is []: expected a list"),
    "same-buckets": (lambda f: f["buckets"].append(f["buckets"][0]), "have the same tokens"),
    "dtype": (put("dtype", "float8"), "dtype is 'float8': expected one of float32"),
    "target-number": (put("target", 3), "target is 3: expected a text"),
    "target": (put("target", "../../evil"), "this release runs compile, aot, onnx, trt"),
    "device-meta": (put("build", "device", "meta"), "build.device is 'meta': expected one of cpu, cuda"),
    "input-name": (put("inputs", 0, "name", "pixels"), "are of no format this release knows"),
    "input-shape": (put("inputs", 0, "shape", 2, 49), "the graph has the input patches: float32 [batch, tokens, 48]"),
    "input-rank": (put("inputs", 1, "shape", ["batch", "tokens"]), "the shape of patch_coord"),
    "input-swapped": (put("inputs", 2, "shape", ["tokens", "batch"]), "the shape of patch_valid"),
    "input-dtype": (put("inputs", 1, "dtype", "int32"), "the dtype of patch_coord is 'int32': expected int64"),
    "output-name": (
        put("outputs", 0, "name", "logits"),
        "the graph's outputs are features, and the manifest says logits",
    ),
    "output-shape": (put("outputs", 0, "shape", 1, 33), "the graph has the output features"),
    "output-dtype": (put("outputs", 0, "dtype", "int64"), "the graph has the output features"),
    "no-outputs": (put("outputs", []), "outputs is []: expected a list"),
    "weights": (put("model", "weights_sha256", None), "model.weights_sha256 is None: expected a text"),
    "source": (put("model", "source", "tiny:siglip"), "model.source is 'tiny:siglip': expected an object"),
    "seed": (put("model", "source", "seed", 10**30), "expected an integer of 64 bits"),
    "std": (put("preprocessing", "std", [0.5, 0.0, 0.5]), "preprocessing.std is 0.0: expected a number above 0"),
    "patch-size": (put("preprocessing", "patch_size", [-4, 4]), "preprocessing.patch_size is -4"),
    "versions": (put("versions", "torch", {}), "versions.torch is {}: expected a text"),
    "passed": (put("gate", "passed", "yes"), "gate.passed is 'yes': expected a bool"),
    "files-list": (put("files", []), "files is []: expected an object"),
    "file-size": (put("files", "model.onnx", "bytes", -1), "the bytes of model.onnx is -1"),
    "file-name": (put("files", "x" * 300, {"bytes": 1, "sha256": "0" * 64}), "leads out of the folder, or is none"),
    "file-absolute": (put("files", "/etc/passwd", {"bytes": 1, "sha256": "0" * 64}), "leads out of the folder"),
    "file-zero": (put("files", "a\0b", {"bytes": 1, "sha256": "0" * 64}), "leads out of the folder"),
    "no-graph": (
        lambda f: f.update(target="aot", build={"device": "cpu"}),
        "lists no model.pt2, which target 'aot' runs",
    ),
    "further-field": (put("trusted", True), "its fields is"),
    "kind": (put("kind", "patch sizes"), "is damaged"),
    "schema-text": (put("schema", "4"), "has schema 4: this release reads 1 to 4"),
    "schema-bool": (put("schema", True), "has schema True: this release reads 1 to 4"),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_manifest_that_lies_is_refused(lie: str, artifact: Path) -> None:
    """Its own hash is right: what refuses it is the schema, or the graph."""
    change, message = LIES[lie]
    edit(artifact, change)
    with pytest.raises(nx.ArtifactError) as refused:
        nx.load(artifact)
    assert message in str(refused.value)


@pytest.mark.parametrize(
    "change",
    [
        put("preprocessing", "mean", [0.1, 0.1, 0.1]),
        put("buckets", 0, "tokens", 8),
        put("gate", "passed", False),
        put("model", "architecture", "another"),
        put("versions", "torch", "1"),
        lambda fields: fields.pop("sha256"),
    ],
    ids=["preprocessing", "buckets", "gate", "model", "versions", "hash"],
)
def test_a_manifest_changed_by_hand_is_refused(change: Any, artifact: Path) -> None:
    edit(artifact, change, seal=False)
    with pytest.raises(nx.ArtifactError, match="it was changed after the export"):
        nx.load(artifact)


def test_spaces_and_order_in_a_manifest_do_not_matter(artifact: Path) -> None:
    import json

    fields = json.loads((artifact / MANIFEST).read_text())
    (artifact / MANIFEST).write_text(json.dumps(dict(reversed(fields.items())), indent=7))
    nx.load(artifact)


@pytest.mark.parametrize("kind", ["pipe", "zero", "folder", "deep", "large"])
def test_what_is_no_manifest_is_not_read(kind: str, artifact: Path) -> None:
    path = artifact / MANIFEST
    path.unlink()
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "zero":
        path.symlink_to("/dev/zero")
    elif kind == "folder":
        path.mkdir()
    elif kind == "deep":
        path.write_text("[" * 200_000)
    else:
        with path.open("wb") as file:
            file.truncate(2**35)
    with pytest.raises(nx.ArtifactError, match="cannot be read"):
        nx.load(artifact)


def test_a_broken_graph_is_no_missing_backend(artifact: Path) -> None:
    (artifact / "model.onnx").write_bytes(b"no graph")
    fuzz.relist(artifact)
    with pytest.raises(nx.ArtifactError, match="model.onnx is no graph that ONNX Runtime reads"):
        nx.load(artifact)


@pytest.fixture(scope="module")
def traced() -> bytes:
    content = io.BytesIO()
    torch.export.save(trace(adapter_of(tiny.shallow()), [nx.Bucket(16)]).exported, content)
    return content.getvalue()


def compile_artifact(folder: Path, content: bytes) -> Path:
    folder.mkdir()
    (folder / "model.pt2").write_bytes(content)
    artifacts.manifest(target="compile").write(folder)
    return folder


def test_a_traced_graph_is_held_against_its_manifest(traced: bytes, tmp_path: Path) -> None:
    folder = compile_artifact(tmp_path / "a", traced)
    assert nx.load(folder).manifest.target == "compile"
    for change, message in (
        (put("outputs", 0, "shape", 1, 33), "the graph has the output features"),
        (
            lambda fields: fields["outputs"].append({**fields["outputs"][0], "name": "tokens"}),
            "the graph's outputs are features, and the manifest says features, tokens",
        ),
        (put("buckets", 0, "tokens", 17), "the graph takes up to 16 of tokens, and the manifest's buckets say 17"),
    ):  # fmt: skip
        edit(Path(shutil.copytree(folder, tmp_path / "b")), change)
        with pytest.raises(nx.ArtifactError, match="export again") as refused:
            nx.load(tmp_path / "b")
        assert message in str(refused.value)
        shutil.rmtree(tmp_path / "b")


def library(size: int, reaches: int) -> bytes:
    """Return the headers of a library of 64 bits, whose one segment ends at a byte."""
    numbers = struct.pack("<HHIQQQIHHHHHH", 3, 62, 1, 0, 64, 0, 0, 64, 56, 1, 0, 0, 0)
    head = b"\x7fELF\x02\x01\x01".ljust(16, b"\0") + numbers
    return (head + struct.pack("<IIQQQQQQ", 1, 5, 0, 0, 0, reaches, reaches, 8)).ljust(size, b"\0")


def archive(**members: bytes) -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as made:
        for name, member in members.items():
            made.writestr(name.replace("_so", ".so"), member)
    return content.getvalue()


def test_archives_are_looked_at_before_torch_reads_them(traced: bytes, tmp_path: Path) -> None:
    path = tmp_path / "model.pt2"

    def damaged(content: bytes) -> str:
        path.write_bytes(content)
        return damage(path)

    flipped = bytearray(traced)
    flipped[len(flipped) // 3] ^= 1
    bomb = io.BytesIO()
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as made:
        made.writestr("zeros", bytes(2**24))
    assert damaged(traced) == "" and damaged(archive(a_so=library(200, 200))) == ""
    assert "is damaged" in damaged(bytes(flipped)) or "no whole archive" in damaged(bytes(flipped))
    assert "no whole archive" in damaged(traced[:-100])
    assert "expand to 16777216" in damaged(bomb.getvalue())
    assert "is no whole library" in damaged(archive(a_so=library(200, 201)))
    assert "is no whole library" in damaged(archive(a_so=b"code"))
    assert damaged(archive()) == "it is empty"
    folder = compile_artifact(tmp_path / "a", traced[:-100])
    with pytest.raises(nx.ArtifactError, match=r"model.pt2 cannot be loaded \(it is no whole archive"):
        nx.load(folder)


def test_a_checkpoint_that_expands_is_refused(tmp_path: Path) -> None:
    torch.save({"weight": torch.zeros(2**22)}, tmp_path / "plain.pth")
    with (
        zipfile.ZipFile(tmp_path / "plain.pth") as plain,
        zipfile.ZipFile(tmp_path / "bomb.pth", "w", zipfile.ZIP_DEFLATED) as bomb,
    ):
        for member in plain.infolist():
            bomb.writestr(member.filename, plain.read(member))
    with pytest.raises(nx.RequestError, match=r"bomb.pth' .* cannot be read: its \d+ bytes expand to"):
        ModelSource("tiny:siglip", str(tmp_path / "bomb.pth")).load()


def test_a_full_disk_is_an_error(tmp_path: Path) -> None:
    """Torch's own writer of archives ends the process. A limit on the size of files stands in for a disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (32_768, hard))
    try:
        with pytest.raises(nx.RequestError, match="cannot write the artifact to '.*': File too large; make room"):
            nx.export(tiny.shallow(), "compile", tmp_path / "a", [nx.Bucket(16)])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert names(tmp_path) == []


@pytest.mark.parametrize("device", ["meta", "nonsense", "mps", 3.5])
def test_devices_that_no_artifact_runs_on_are_refused(device: Any, artifact: Path) -> None:
    with pytest.raises(nx.RequestError, match="is no device of torch's|is not served: expected cpu"):
        nx.load(artifact, device)


def test_sizes_are_bounded_before_anything_is_allocated() -> None:
    for tokens, batch in ((2_000_000_000, (1, 1, 1)), (256, (1, 1, 2**21)), (2**20, (1, 1, 2**10))):
        with pytest.raises(nx.RequestError, match="larger than any machine's memory"):
            nx.Bucket(tokens, batch)
    bucket = nx.Bucket(2**20, (64, 64, 64))
    with pytest.raises(
        nx.RequestError, match="has 64 images of 1048576 tokens, .* GiB of patches, and this machine has"
    ):
        generated_batch("square-1048576-seed0", bucket, 10**6)


def test_a_load_meets_one_artifact_whatever_is_published(subject: fuzz.Subject, tmp_path: Path) -> None:
    """Another process publishes one of two artifacts again and again, and is killed again and again."""
    for name in ("first", "second"):
        shutil.copytree(subject.folder, tmp_path / "made" / name)
    graph = ir.load(tmp_path / "made" / "second" / "model.onnx")
    for value in graph.graph.initializers.values():
        if (
            value.const_value is not None
            and value.const_value.dtype == ir.DataType.FLOAT
            and value.const_value.size > 99
        ):
            value.const_value = ir.tensor(value.const_value.numpy() * 1.1, name=value.name)
    ir.save(graph, tmp_path / "made" / "second" / "model.onnx")
    edit(tmp_path / "made" / "second", put("model", "weights_sha256", "1" * 64))
    fuzz.relist(tmp_path / "made" / "second")
    kill_exports.note_answers(tmp_path / "made", subject.inputs)
    (tmp_path / "published").mkdir()
    counts = kill_exports.kill(tmp_path / "published" / "a", tmp_path / "made", kills=4, seed=0)
    assert counts["loads"] > 0 and counts["first"] + counts["second"] == counts["loads"]
    assert counts["left_over"] == 0


def test_a_verified_folder_is_the_same_for_its_whole_life(tmp_path: Path) -> None:
    artifacts.fill(tmp_path / "a")
    folder = opened(tmp_path / "a", lambda folder: folder)
    (tmp_path / "a").rename(tmp_path / "b")
    assert (folder.path / "model.onnx").read_text() == "a graph"
