"""The artifact's folder: whole, verified, and never half-written."""

from __future__ import annotations

import errno
import json
import signal
import stat
import subprocess
import sys
import textwrap
from pathlib import Path

import artifacts
import pytest
import tiny
from artifacts import edit, names

import naflex_export as nx
from naflex_export.accuracy.cases import cases_of
from naflex_export.accuracy.efforts import CaseSelection
from naflex_export.exporter import export
from naflex_export.serving import publish
from naflex_export.serving.load import load
from naflex_export.serving.manifest import MANIFEST, Manifest, sha256_of
from naflex_export.serving.publish import staged


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export(tiny.shallow(), "onnx", tmp_path_factory.mktemp("artifact") / "a", [nx.Bucket(16)]).path


@pytest.fixture
def artifact(published: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    import shutil

    return Path(shutil.copytree(published, tmp_path / "a"))


def test_manifest_says_what_is_there(artifact: Path) -> None:
    fields = json.loads((artifact / MANIFEST).read_text())
    assert (fields["kind"], fields["schema"]) == ("encoder", 4)
    assert fields["target"] == "onnx" and fields["dtype"] == "float32"
    assert set(fields["files"]) == {
        "README.md",
        "model.onnx",
        "gate/report.json",
        "golden/photo.png",
        "golden/patches.npz",
    }
    for name, file in fields["files"].items():
        assert file == {"bytes": (artifact / name).stat().st_size, "sha256": sha256_of(artifact / name)}
    assert fields["gate"]["passed"] is True and fields["gate"]["worst"]["relative_l2"] < 1e-4
    assert fields["buckets"] == [{"tokens": 16, "batch": [1, 8, 32]}]
    assert {"torch", "timm", "python", "naflex_export"} <= set(fields["versions"])
    assert len(fields["model"]["weights_sha256"]) == 64
    assert fields["preprocessing"]["patch_size"] == [4, 4]
    manifest = Manifest.read(artifact)
    assert manifest.inputs[0].shape == ("batch", "tokens", 48)
    report = json.loads((artifact / "gate" / "report.json").read_text())
    cases = cases_of(nx.Bucket(16), CaseSelection(), num_photos=3)
    assert report["passed"] is True and [result["case"] for result in report["results"]] == cases
    assert fields["gate"]["cases"] == len(cases)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda a: (a / "model.onnx").write_bytes(b"short"), "'model.onnx' has 5 bytes, the manifest says"),
        (lambda a: flip_last_byte(a / "model.onnx"), "'model.onnx' is not the file the manifest lists: its sha256"),
        (lambda a: (a / "model.onnx").unlink(), "'model.onnx' is missing"),
        (lambda a: replace_by_link(a / "model.onnx"), "'model.onnx' leads out of"),
        (lambda a: (a / "extra.so").write_bytes(b""), "'extra.so' .* is not in the manifest"),
        (lambda a: (a / MANIFEST).unlink(), "is no artifact: it has no manifest.json"),
        (lambda a: (a / MANIFEST).write_text("{"), "cannot be read"),
        (lambda a: edit(a, schema=7), "has schema 7: this release reads 1 to 4"),
        (lambda a: edit(a, kind="video"), "is of kind 'video': this release knows 'encoder' and 'patch sizes'"),
        (lambda a: edit(a, inputs=None), "is damaged"),
        (lambda a: edit(a, build={"keep_float32": ["norm"]}), "'norm' changes nothing in dtype float32"),
        (lambda a: edit(a, build={"keep_float32": "norm"}), "build.keep_float32 is 'norm': expected a list"),
        (lambda a: edit(a, files={"../model.onnx": {"bytes": 1, "sha256": ""}}), "leads out of"),
    ],
    ids=[
        "truncated",
        "flipped",
        "missing",
        "link",
        "stranger",
        "no-manifest",
        "not-json",
        "schema",
        "kind",
        "fields",
        "kept-of-float32",
        "kept-no-list",
        "escape",
    ],
)
def test_damage_is_refused_before_loading(artifact: Path, damage: object, message: str) -> None:
    damage(artifact)  # type: ignore[operator]
    with pytest.raises(nx.ArtifactError, match=message):
        load(artifact)


def test_engine_settings_are_for_engines_alone(artifact: Path) -> None:
    with pytest.raises(nx.RequestError, match="engine settings are of target 'trt', and the artifact is of 'onnx'"):
        load(artifact, engine=nx.EngineSettings())


def test_an_artifact_of_an_older_release_still_loads(artifact: Path) -> None:
    """Before manifests had a kind, the schema said it: 1 of an encoder."""
    path = artifact / MANIFEST
    written = Manifest.read(artifact)
    path.write_text(json.dumps({**json.loads(path.read_text()), "schema": 1}).replace('"kind": "encoder", ', ""))
    assert "kind" not in json.loads(path.read_text())
    assert load(artifact).manifest == written


@pytest.mark.parametrize("to", ["inside", "outside", "nowhere"])
@pytest.mark.parametrize("listed", [True, False], ids=["listed", "further"])
def test_a_link_is_refused_wherever_it_leads(artifact: Path, tmp_path: Path, to: str, listed: bool) -> None:
    """What is behind it may be another file by the time it is read; so one of the very same content is refused too."""
    (tmp_path / "outside").write_bytes((artifact / "model.onnx").read_bytes())
    if listed:
        (artifact / "copy.onnx").write_bytes((artifact / "model.onnx").read_bytes())
        Manifest.read(artifact).write(artifact)
        load(artifact)
        (artifact / "copy.onnx").unlink()
    (artifact / "copy.onnx").symlink_to({"inside": "model.onnx", "outside": tmp_path / "outside", "nowhere": "-"}[to])
    message = "'copy.onnx' leads out of" if listed else "'copy.onnx' .* is not in the manifest"
    with pytest.raises(nx.ArtifactError, match=message):
        load(artifact)


def test_a_link_to_a_folder_is_refused(artifact: Path) -> None:
    (artifact / "more").symlink_to(artifact / "gate", target_is_directory=True)
    with pytest.raises(nx.ArtifactError, match="'more' .* is not in the manifest: remove it"):
        load(artifact)


def flip_last_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def replace_by_link(path: Path) -> None:
    moved = path.parent.parent / "elsewhere"
    path.rename(moved)
    path.symlink_to(moved)


def test_only_an_artifact_is_ever_replaced(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years")
    (tmp_path / "file").write_text("also mine")
    for name in ("mine", "file"):
        with (
            pytest.raises(nx.RequestError, match=f"{name}' exists and is no artifact: give another folder"),
            staged(tmp_path / name),
        ):
            raise AssertionError("unreachable")
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "years"
    assert (tmp_path / "file").read_text() == "also mine"


def test_an_artifact_is_replaced_whole(tmp_path: Path) -> None:
    for text in ("old", "new"):
        with staged(tmp_path / "a") as folder:
            (folder / text).write_text(text)
            artifacts.manifest().write(folder)
    assert names(tmp_path) == ["a"]
    assert names(tmp_path / "a") == [MANIFEST, "new"]


@pytest.mark.parametrize("kind", ["folder", "file", "link"])
def test_what_comes_to_lie_there_meanwhile_is_left_alone(tmp_path: Path, kind: str) -> None:
    """An export takes minutes, and looks again before it puts its folder in place."""
    out, thesis = tmp_path / "a", tmp_path / "thesis"
    thesis.write_text("years")
    message = {"link": "is a link to"}.get(kind, "exists and is no artifact")
    with pytest.raises(nx.RequestError, match=message), staged(out) as folder:
        artifacts.fill(folder, "new")
        if kind == "folder":
            out.mkdir()
            thesis.rename(out / "thesis")
        elif kind == "file":
            thesis.rename(out)
        else:
            out.symlink_to(thesis)
    assert {"folder": out / "thesis", "file": out, "link": thesis}[kind].read_text() == "years"
    assert out.is_symlink() == (kind == "link")
    assert not list(tmp_path.glob(".a.*"))


def test_an_old_artifact_is_put_back_where_the_new_one_cannot_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a system that cannot exchange two names in one step."""
    with staged(tmp_path / "a") as folder:
        artifacts.fill(folder, "old")
    rename = Path.rename

    def refuse(self: Path, target: Path) -> Path:
        if self.name.endswith(publish.PARTIAL):
            raise OSError(errno.EPERM, "not this one")
        return rename(self, target)

    monkeypatch.setattr(publish, "_exchange", lambda one, other: False)
    monkeypatch.setattr(Path, "rename", refuse)
    with (
        pytest.raises(nx.RequestError, match="not this one; what is there was left alone"),
        staged(tmp_path / "a") as folder,
    ):
        artifacts.fill(folder, "new")
    assert (tmp_path / "a" / "model.onnx").read_text() == "old"
    assert names(tmp_path) == ["a"]


def test_an_artifact_is_for_whoever_may_read_the_folder_beside_it(tmp_path: Path) -> None:
    """A folder under work is its owner's alone, and a server that loads artifacts is often another user."""
    with staged(tmp_path / "a") as folder:
        artifacts.fill(folder, "new")
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o755


def test_an_error_leaves_the_old_artifact(tmp_path: Path) -> None:
    with staged(tmp_path / "a") as folder:
        artifacts.fill(folder, "old")
    with pytest.raises(ZeroDivisionError), staged(tmp_path / "a") as folder:
        artifacts.fill(folder, "new")
        raise ZeroDivisionError
    assert (tmp_path / "a" / "model.onnx").read_text() == "old"
    assert names(tmp_path) == ["a"]


@pytest.mark.parametrize("before", [False, True], ids=["none-before", "one-before"])
def test_a_killed_export_leaves_the_old_artifact_or_none(tmp_path: Path, before: bool) -> None:
    """SIGKILL while the folder is being filled: no clean-up code runs."""
    if before:
        with staged(tmp_path / "a") as folder:
            artifacts.fill(folder, "old")
    script = """
        import os, signal, sys
        from pathlib import Path
        from naflex_export.serving.publish import staged
        with staged(Path(sys.argv[1])) as folder:
            (folder / "model.onnx").write_text("half")
            (folder / "manifest.json").write_text("new")
            os.kill(os.getpid(), signal.SIGKILL)
    """
    killed = subprocess.run([sys.executable, "-c", textwrap.dedent(script), tmp_path / "a"], check=False)
    assert killed.returncode == -signal.SIGKILL
    if before:
        assert (tmp_path / "a" / "model.onnx").read_text() == "old"
    else:
        assert not (tmp_path / "a").exists()


def test_a_folder_that_cannot_be_written_is_a_wrong_request(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(nx.RequestError, match="cannot write to"), staged(tmp_path / "file" / "a"):
        raise AssertionError("unreachable")
