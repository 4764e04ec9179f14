"""Publishing where something lies already: only an artifact is replaced, whole, and by one export at a time."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import artifacts
import pytest
import tiny
from artifacts import edit, names

import naflex_export as nx
from naflex_export.serving import publish
from naflex_export.serving.manifest import MANIFEST, Manifest
from naflex_export.serving.opened import REPLACED, opened
from naflex_export.serving.publish import PARTIAL, check_destination, check_outside_artifacts, check_writable, staged


def export_to(out: Path, text: str) -> None:
    """Put an artifact at a place as an export does, with nothing to build and to judge."""
    with staged(out) as folder:
        artifacts.fill(folder, text)


def text_at(out: Path) -> str:
    Manifest.read(out).verify(out)
    return (out / "model.onnx").read_text()


def make_web(folder: Path) -> None:
    """Write a web application, which has a manifest.json too."""
    (folder / "src").mkdir(parents=True)
    (folder / "src" / "app.js").write_text("years of work")
    (folder / MANIFEST).write_text('{"name": "PWA"}')


def make_notes(folder: Path) -> None:
    """Write notes into an artifact."""
    artifacts.fill(folder)
    (folder / "notes.txt").write_text("years of work")


def make_notes_below(folder: Path) -> None:
    artifacts.fill(folder)
    (folder / "mine").mkdir()
    (folder / "mine" / "notes.txt").write_text("years of work")


def make_link_inside(folder: Path) -> None:
    """Put the graph elsewhere, and a link in its place."""
    artifacts.fill(folder)
    (folder / "model.onnx").rename(folder.parent / "moved.onnx")
    (folder / "model.onnx").symlink_to(folder.parent / "moved.onnx")


def make_damaged(folder: Path) -> None:
    artifacts.fill(folder)
    edit(folder, seal=False, dtype="float16")


def make_newer(folder: Path) -> None:
    artifacts.fill(folder)
    edit(folder, schema=99)


def make_pipe(folder: Path) -> None:
    artifacts.fill(folder)
    (folder / MANIFEST).unlink()
    os.mkfifo(folder / MANIFEST)


FOREIGN = {
    "a-web-application": make_web,
    "notes-in-an-artifact": make_notes,
    "notes-below": make_notes_below,
    "link-inside": make_link_inside,
    "damaged-manifest": make_damaged,
    "newer-schema": make_newer,
    "pipe-as-manifest": make_pipe,
    "empty-json": lambda folder: (folder.mkdir(), (folder / MANIFEST).write_text("{}")),
    "file": lambda folder: folder.write_text("years of work"),
    "hidden-file": lambda folder: (folder.mkdir(), (folder / ".gitkeep").write_text("")),
}


@pytest.mark.parametrize("kind", FOREIGN)
def test_what_is_not_ours_is_never_touched(kind: str, tmp_path: Path) -> None:
    out = tmp_path / "web"
    FOREIGN[kind](out)  # type: ignore[no-untyped-call]
    before = {path: path.lstat() for path in [out, *out.rglob("*")]}
    with pytest.raises(nx.RequestError, match="web' exists and is no artifact: give another folder"):
        export_to(out, "new")
    assert {path: path.lstat() for path in [out, *out.rglob("*")]} == before
    assert names(tmp_path) == sorted({"web", *names(tmp_path)} - {f".web{PARTIAL}"})


@pytest.mark.parametrize("to", ["empty", "artifact", "nothing"])
def test_a_link_is_refused_and_stays(to: str, tmp_path: Path) -> None:
    target = tmp_path / "disk"
    if to == "empty":
        target.mkdir()
    elif to == "artifact":
        artifacts.fill(target, "old")
    (tmp_path / "a").symlink_to(target)
    with pytest.raises(nx.RequestError, match=r"a' is a link to '.*disk', which is never replaced: give the folder"):
        export_to(tmp_path / "a", "new")
    assert (tmp_path / "a").is_symlink() and names(tmp_path) == (["a"] if to == "nothing" else ["a", "disk"])


def test_what_came_there_during_the_export_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both after a first look, and between the last look and the exchange of names."""
    out = tmp_path / "web"
    export_to(out, "old")
    with pytest.raises(nx.RequestError, match="exists and is no artifact"), staged(out) as folder:
        artifacts.fill(folder, "new")
        (out / "notes.txt").write_text("years of work")
    monkeypatch.setattr(publish, "check_destination", lambda out: None)
    for exchanges in (True, False):
        if not exchanges:
            monkeypatch.setattr(publish, "_exchange", lambda one, other: False)
        with pytest.raises(nx.RequestError, match="exists and is no artifact"):
            export_to(out, "new")
        assert (out / "notes.txt").read_text() == "years of work" and names(tmp_path) == ["web"]


def test_nothing_is_written_inside_an_artifact(tmp_path: Path) -> None:
    export_to(tmp_path / "a", "old")
    for inside in ("a/b", "a/b/c"):
        with pytest.raises(nx.RequestError, match=r"lies in the artifact '.*a', which would not load any more"):
            export_to(tmp_path / inside, "new")
    (tmp_path / "link").symlink_to(tmp_path / "a")
    for report in ("a/gate.md", "a/gate/report.json", "link/r.html"):
        with pytest.raises(nx.RequestError, match="lies in the artifact"):
            check_outside_artifacts(tmp_path / report)
    check_outside_artifacts(tmp_path / "a.md")
    assert text_at(tmp_path / "a") == "old"


@pytest.mark.parametrize("exchanges", [True, False], ids=["exchange", "two-renames"])
def test_an_artifact_is_replaced_and_nothing_is_left(
    exchanges: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not exchanges:
        monkeypatch.setattr(publish, "_exchange", lambda one, other: False)
    for text in ("one", "two", "three"):
        export_to(tmp_path / "a", text)
        assert text_at(tmp_path / "a") == text and names(tmp_path) == ["a"]
        assert (tmp_path / "a").stat().st_mode & 0o777 == 0o755


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere there are two renames")
def test_there_is_an_artifact_at_every_moment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No rename leaves the name free."""
    export_to(tmp_path / "a", "old")
    monkeypatch.setattr(Path, "rename", lambda one, other: pytest.fail(f"{one} is renamed to {other}"))
    export_to(tmp_path / "a", "new")
    assert text_at(tmp_path / "a") == "new"


def test_files_are_on_the_disk_before_they_replace_anything(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    export_to(tmp_path / "a", "old")
    steps: list[str] = []
    flush, exchange = os.fsync, publish._exchange
    monkeypatch.setattr(os, "fsync", lambda handle: (steps.append("flush"), flush(handle)))
    monkeypatch.setattr(publish, "_exchange", lambda *paths: (steps.append("exchange"), exchange(*paths))[1])
    export_to(tmp_path / "a", "new")
    assert steps == ["flush"] * 3 + ["exchange", "flush"]  # two files and their folder; the folder above


def test_a_second_export_to_a_name_says_so_at_once(tmp_path: Path) -> None:
    with staged(tmp_path / "a") as folder:
        with pytest.raises(nx.RequestError, match="another export to '.*a' is running: wait for it"):
            export_to(tmp_path / "a", "second")
        export_to(tmp_path / "b", "elsewhere")
        artifacts.fill(folder, "first")
    assert text_at(tmp_path / "a") == "first" and names(tmp_path) == ["a", "b"]
    export_to(tmp_path / "a", "third")
    assert text_at(tmp_path / "a") == "third"


KILLED = """
    import os, signal, sys
    from pathlib import Path
    from naflex_export.serving import publish
    exchange = publish._exchange
    def killed_after(one, other):
        assert exchange(one, other)
        os.kill(os.getpid(), signal.SIGKILL)
    def killed_between(one, other):
        Path.rename = lambda self, to: (os.rename(self, to), os.kill(os.getpid(), signal.SIGKILL))
        return False
    if sys.argv[2] != "during":
        publish._exchange = {"after": killed_after, "between": killed_between}[sys.argv[2]]
    with publish.staged(Path(sys.argv[1])) as folder:
        (folder / "model.onnx").write_text("new")
        if sys.argv[2] == "during":
            os.kill(os.getpid(), signal.SIGKILL)
        sys.path.insert(0, sys.argv[3])
        import artifacts
        artifacts.fill(folder, "new")
"""


@pytest.mark.parametrize(("moment", "found"), [("during", "old"), ("after", "new"), ("between", None)])
def test_leftovers_of_a_killed_export_are_gone_after_the_next(moment: str, found: str | None, tmp_path: Path) -> None:
    export_to(tmp_path / "a", "old")
    arguments = [str(tmp_path / "a"), moment, str(Path(artifacts.__file__).parent)]
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(KILLED), *arguments], check=False)
    assert done.returncode == -signal.SIGKILL
    assert len(names(tmp_path)) == 2
    if found is None:  # between two renames: the old one can be found, by people and by the next export
        assert text_at(tmp_path / f"a{REPLACED}") == "old"
        with pytest.raises(nx.ArtifactError, match=f"left the old one at '.*a{REPLACED}': rename it, or export again"):
            nx.load(tmp_path / "a")
        with pytest.raises(ZeroDivisionError), staged(tmp_path / "a"):
            raise ZeroDivisionError
        found = "old"
    assert text_at(tmp_path / "a") == found
    export_to(tmp_path / "a", "third")
    assert text_at(tmp_path / "a") == "third" and names(tmp_path) == ["a"]


def test_the_current_folder_can_be_exported_to_while_it_is_empty(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    export_to(Path(), "first")
    assert text_at(tmp_path / "here") == "first" and names(tmp_path) == ["here"]
    assert Path.cwd().samefile(tmp_path / "here"), "a shell would be in a folder that is gone"
    for out in (Path(), tmp_path / "here"):
        with pytest.raises(nx.RequestError, match="is the current folder, and another would take its place"):
            check_destination(out)
    (tmp_path / "up").mkdir()
    monkeypatch.chdir(tmp_path / "up")
    with pytest.raises(nx.RequestError, match="exists and is no artifact"):
        check_destination(Path(".."))


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="only Linux has a folder that nobody may write to")
def test_a_folder_that_cannot_be_made_is_refused_ahead_of_any_work(tmp_path: Path) -> None:
    with pytest.raises(nx.RequestError, match="cannot write to '/proc': .*; give another folder"):
        nx.export(tiny.siglip(), target="onnx", out="/proc/folder/artifact")
    (tmp_path / "file").touch()
    with pytest.raises(nx.RequestError, match=r"cannot write to '.*file': Not a directory; give another folder"):
        check_writable(tmp_path / "file" / "artifact")
    check_writable(tmp_path / "new" / "artifact")
    assert names(tmp_path) == ["file"]


@pytest.mark.parametrize("name", ["x" * 300, "a\0b"], ids=["long", "zero"])
def test_a_name_that_no_disk_takes_is_a_wrong_request(name: str, tmp_path: Path) -> None:
    with pytest.raises(nx.RequestError, match="cannot write to"):
        export_to(tmp_path / name, "new")
    assert names(tmp_path) == []


def test_what_is_loaded_is_what_was_verified(tmp_path: Path) -> None:
    """Another export comes between the verification and the loading, and its artifact is the one at that name."""
    out = tmp_path / "a"
    export_to(out, "old")
    seen = []

    def replace_once(folder: object) -> str:
        seen.append(folder)
        if len(seen) == 1:
            export_to(out, "new")
        return (folder.path / "model.onnx").read_text()  # type: ignore[attr-defined]

    def read(folder: object) -> str:
        try:
            return replace_once(folder)
        except FileNotFoundError as error:  # of the old one nothing is left
            raise nx.ArtifactError(str(error)) from error

    assert opened(out, read) == "new" and len(seen) == 2


def test_an_artifact_that_stays_is_loaded_though_its_name_leads_elsewhere(tmp_path: Path) -> None:
    out = tmp_path / "a"
    export_to(out, "old")

    def moved(folder: object) -> tuple[str, str]:
        out.rename(tmp_path / "b")
        export_to(out, "new")
        return folder.manifest.target, (folder.path / "model.onnx").read_text()  # type: ignore[attr-defined]

    assert opened(out, moved) == ("onnx", "old")
