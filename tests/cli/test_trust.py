"""What an artifact names is not run because it names it, and no command ends well without a result."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
import tiny
from artifacts import edit, names
from click.testing import CliRunner, Result

import naflex_export as nx
from naflex_export.cli.bench import bench_command
from naflex_export.cli.exits import exit_codes
from naflex_export.cli.export import export_command
from naflex_export.cli.gate import gate_command
from naflex_export.serving.trust import RUN_CODE


def call(command: Any, *arguments: object) -> Result:
    return CliRunner().invoke(command, [str(argument) for argument in arguments])


def flat(text: str) -> str:
    return " ".join(text.split())


@pytest.fixture
def artifact(shallow_artifact: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(shallow_artifact, tmp_path / "a"))


PLANTED = """
    from pathlib import Path
    Path({ran!r}).write_text("ran")
    def factory():
        raise SystemExit(0)
"""


@pytest.mark.parametrize("command", [gate_command, bench_command], ids=["gate", "bench"])
@pytest.mark.parametrize("model", ["sys:exit", "planted_here:factory", "hf:owner/name", "hf-hub:owner/name", "a/b"])
def test_what_an_artifact_names_is_not_run(
    command: Any, model: str, artifact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "planted_here.py").write_text(textwrap.dedent(PLANTED.format(ran=str(tmp_path / "ran"))))
    monkeypatch.chdir(tmp_path)
    edit(artifact, lambda fields: fields["model"].update(source={"model": model, "weights": "pretrained"}))
    refused = call(command, artifact)
    assert refused.exit_code == 2, refused.output
    assert f"names '{model}' as the model, a" in flat(refused.stderr)
    assert "say the model yourself with --reference MODEL, or give --trust-source" in flat(refused.stderr)
    assert not (tmp_path / "ran").exists() and "planted_here" not in sys.modules


@pytest.mark.parametrize("model", ["sys:exit", "planted_exit:factory"])
def test_a_trusted_factory_that_exits_gives_no_verdict(
    model: str, artifact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "planted_exit.py").write_text(textwrap.dedent(PLANTED.format(ran=str(tmp_path / "ran"))))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    edit(artifact, lambda fields: fields["model"].update(source={"model": model, "weights": "pretrained"}))
    for arguments in (["--trust-source"], ["--reference", model, "--weights", "pretrained"]):
        refused = call(gate_command, artifact, *arguments)
        assert refused.exit_code == 2 and f"factory '{model}' raised SystemExit" in flat(refused.stderr)


def test_files_are_verified_before_anything_is_loaded(artifact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    edit(artifact, lambda fields: fields["model"].update(source={"model": "tiny:siglip", "weights": "pretrained"}))
    (artifact / "model.onnx").write_bytes(b"x" * (artifact / "model.onnx").stat().st_size)
    monkeypatch.setattr(tiny, "siglip", lambda: pytest.fail("the model was loaded"))
    refused = call(gate_command, artifact, "--trust-source")
    assert refused.exit_code == 2 and "is not the file the manifest lists" in flat(refused.stderr)


@pytest.mark.parametrize("target", RUN_CODE)
def test_code_is_refused_where_it_is_not_trusted(target: str, artifact: Path) -> None:
    assert nx.load(artifact, trusted=False).manifest.target == "onnx"
    edit(artifact, target=target, build={"device": "cpu"})
    with pytest.raises(nx.ArtifactError, match=f"'{target}' holds code that runs when it is loaded"):
        nx.load(artifact, trusted=False)
    refused = call(gate_command, artifact, "--untrusted", "--reference", "tiny:siglip", "--weights", "pretrained")
    assert refused.exit_code == 2 and "holds code that runs when it is loaded" in flat(refused.stderr)


def test_the_help_and_the_docstring_say_that_code_runs() -> None:
    assert "runs as code" in flat(call(gate_command, "--help").stdout)
    assert "runs as code" in flat(nx.load.__doc__ or "")


@pytest.mark.parametrize(
    ("command", "option"), [(gate_command, "--report"), (bench_command, "--csv")], ids=["gate", "bench"]
)
def test_nothing_is_written_into_the_artifact(command: Any, option: str, artifact: Path) -> None:
    refused = call(command, artifact, option, artifact / "found.xml", "--reference", "tiny:siglip")
    assert refused.exit_code == 2 and "lies in the artifact" in flat(refused.stderr)
    nx.load(artifact)


FACTORIES = """
    import tiny
    model = tiny.shallow()
    number = 3
    def fails():
        raise ValueError("no such checkpoint")
    def siglip():
        return tiny.shallow()
"""


def test_a_factory_may_be_in_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As with `python -m`; and a torch module is taken as it is."""
    (tmp_path / "factories_here.py").write_text(textwrap.dedent(FACTORIES))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])
    arguments = ("--target", "compile", "--bucket", "nonsense")
    for name, message in (
        ("fails", "raised ValueError: no such checkpoint"),
        ("number", "is a int: expected a callable, or a torch module"),
        ("none", "cannot be imported"),
    ):
        refused = call(export_command, f"factories_here:{name}", "--target", "onnx")
        assert refused.exit_code == 2 and message in flat(refused.stderr), refused.output
    from naflex_export.models.model_sources import ModelSource

    assert type(ModelSource("factories_here:model").load()) is type(tiny.shallow())
    assert call(export_command, "factories_here:siglip", *arguments).exit_code == 2


@pytest.mark.parametrize(
    ("raised", "code", "message"),
    [
        (SystemExit(0), 2, "code that it ran asked to exit with 0 before there was a result"),
        (SystemExit(), 2, "code that it ran asked to exit with None"),
        (RuntimeError("a fault"), 70, "unexpected RuntimeError, as above; there is no result"),
        (BaseException("a fault"), 70, "unexpected BaseException"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (nx.GateFailure("too far"), 1, "too far"),
        (nx.BackendError("missing"), 3, "missing"),
    ],
)
def test_only_a_result_ends_well(
    raised: BaseException, code: int, message: str, capfd: pytest.CaptureFixture[str]
) -> None:
    @exit_codes
    def command() -> None:
        raise raised

    with pytest.raises(SystemExit) as ended:
        command()
    assert ended.value.code == code and message in flat(capfd.readouterr().err)


def test_a_terminated_export_leaves_nothing(tmp_path: Path) -> None:
    script = """
        import os, signal, sys
        from pathlib import Path
        from naflex_export.cli.exits import exit_codes
        from naflex_export.serving.publish import staged

        @exit_codes
        def command():
            with staged(Path(sys.argv[1])) as folder:
                (folder / "model.onnx").write_text("half")
                os.kill(os.getpid(), signal.SIGTERM)

        command()
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script), tmp_path / "a"], check=False, capture_output=True, text=True
    )
    assert done.returncode == 128 + signal.SIGTERM and "error: terminated" in done.stderr
    assert names(tmp_path) == []


def test_a_long_error_is_printed_at_once(capfd: pytest.CaptureFixture[str]) -> None:
    @exit_codes
    def command() -> None:
        raise nx.RequestError("begin" + "x" * 1_000_000 + "end")

    with pytest.raises(SystemExit):
        command()
    printed = capfd.readouterr().err
    assert len(printed) < 10_000 and "begin" in printed and printed.strip().endswith("end")
    assert "characters ..." in flat(printed)
