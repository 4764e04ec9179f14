"""Several targets and dtypes in one run, a plan without a build, options from a file, and JSON for programs."""

from __future__ import annotations

import json
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result

import naflex_export as nx
from naflex_export import exporter
from naflex_export.accuracy.cases import cases_of, generated_batch, survey_names
from naflex_export.accuracy.efforts import CaseSelection
from naflex_export.cli.dry_run import tokens_run
from naflex_export.cli.export import export_command

BASE = ("tiny:shallow", "--weights", "random", "--bucket", "9:1,2,2", "--quick")


def export(*arguments: object) -> Result:
    return CliRunner().invoke(export_command, [str(argument) for argument in arguments])


def flat(text: str) -> str:
    return " ".join(text.split())


def test_pairs_of_targets_and_dtypes_share_a_trace_and_end_in_a_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    traced = []
    true = exporter.trace
    monkeypatch.setattr(exporter, "trace", lambda *args, **named: (traced.append(args[2]), true(*args, **named))[1])
    done = export(*BASE, "--target", "onnx,ONNX", "--dtype", "float32,fp16", "--out", tmp_path / "a", "--json")
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert found["published"] and [one["dtype"] for one in found["artifacts"]] == ["float32", "float16"]
    assert all((Path(one["folder"]) / "manifest.json").is_file() for one in found["artifacts"])
    assert [one["folder"] for one in found["artifacts"]] == [
        str(tmp_path / "a" / f"onnx-{d}") for d in ("float32", "float16")
    ]
    assert [precision.dtype for precision in traced] == ["float32", "float16"]
    assert "rel L2 size s" in flat(done.stderr) and max(map(len, done.stderr.splitlines()[-6:])) <= 60


@pytest.mark.full
def test_a_trace_serves_several_targets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A build that changed it would make the next artifact fail, or differ from one made by itself."""
    traced = []
    true = exporter.trace
    monkeypatch.setattr(exporter, "trace", lambda *args, **named: (traced.append(args[2]), true(*args, **named))[1])
    pytest.importorskip("tensorrt_rtx")
    done = export(*BASE, "--target", "onnx,trt", "--out", tmp_path / "a")
    assert done.exit_code == 0, done.output
    assert len(traced) == 1 and "1 of 2, onnx in float32" in done.stderr
    alone = export(*BASE, "--target", "trt", "--out", tmp_path / "b")
    assert alone.exit_code == 0, alone.output
    onnx = [(folder / "model.onnx").read_bytes() for folder in (tmp_path / "a" / "trt", tmp_path / "b")]
    assert onnx[0] == onnx[1]


@pytest.mark.full
def test_one_that_is_rejected_does_not_stop_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from naflex_export.serving.onnx_runner import OnnxRunner

    true = OnnxRunner.run

    def wrong(self: OnnxRunner, *arguments: object) -> list[object]:
        factor = 1.5 if self.manifest.dtype == "float32" else 1
        return [factor * out for out in true(self, *arguments)]  # type: ignore[arg-type]

    monkeypatch.setattr(OnnxRunner, "run", wrong)
    failed = export(*BASE, "--target", "onnx", "--dtype", "float32,float16", "--out", tmp_path / "a", "--json")
    assert failed.exit_code == 1
    one, other = json.loads(failed.stdout)["artifacts"]
    assert not one["published"] and "the gate failed" in one["error"] and one["relative_l2"] > 0.1
    assert other["published"] and (tmp_path / "a" / "onnx-float16" / "manifest.json").is_file()
    assert "REJECTED" in failed.stderr and "passed" in failed.stderr


def test_a_dry_run_prints_the_plan_and_builds_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("naflex_export.cli.dry_run._seconds_of_eager", lambda adapter: 1e-6)
    done = export(*BASE, "--target", "onnx,aot", "--dtype", "bf16", "--out", tmp_path / "a", "--dry-run")
    assert done.exit_code == 0, done.output
    assert "in patches: bfloat16 [batch, tokens, 48]" in flat(done.stdout)
    assert "bucket and profile: 9 tokens, batches of 1 to 2, tuned for 2" in done.stdout
    assert f"onnx in bfloat16: about 52.5 KiB, to {tmp_path / 'a' / 'onnx'}" in done.stdout
    assert "gate: 4 cases, under a second on this CPU" in done.stdout
    assert (
        "model: tiny:shallow (naflexvit_base_patch16_siglip), 26,880 parameters" in done.stdout
        and " 0 " not in done.stdout
    )
    told = export(*BASE, "--target", "onnx,trt", "--outputs", "tokens", "--out", tmp_path / "a", "--dry-run", "--json")
    plan = json.loads(told.stdout)
    assert [one["target"] for one in plan["artifacts"]] == ["onnx", "trt"] and plan["outputs"] == ["tokens"]
    assert plan["models"][0]["parameters"] == 26880 and plan["text"] is None
    assert plan["models"][0]["inputs"][1] == {"name": "patch_coord", "dtype": "int64", "shape": ["batch", "tokens", 2]}
    assert plan["buckets"] == [{"tokens": 9, "batch": [1, 2, 2]}] and 0 < plan["artifacts"][0]["gate_seconds"] < 1
    assert "onnx in float32: about 105.0 KiB" in told.stderr
    assert not any(tmp_path.iterdir())


def test_a_plan_counts_the_tokens_of_the_batches_that_are_judged() -> None:
    bucket, selection = nx.Bucket(16, (1, 2, 5)), CaseSelection(seed=3)
    names = [*cases_of(bucket, selection, 2)[1:], *survey_names(bucket, selection)]  # the photos are one batch
    tokens = sum(generated_batch(name, bucket, 1).patch_valid.numel() for name in names)
    one, both = (tokens_run(bucket, selection, 2, models) for models in (1, 2))
    assert both - one == tokens + 2 * 16 and one > both - one


def test_options_come_from_a_file_and_the_command_line_wins(tmp_path: Path) -> None:
    config = tmp_path / "export.toml"
    config.write_text(
        'model = "tiny:shallow"\ntarget = ["onnx", "trt"]\nweights = "random"\nbucket = ["9:1,2,2", "16:1,1,1"]\n'
        "seed = 4\nquick = true\ntokens = true\ndry-run = true\n"
    )
    done = export("--config", config, "--target", "onnx", "--out", tmp_path / "a")
    assert done.exit_code == 0, done.output
    assert "tiny:shallow to onnx in float32" in done.stderr and "16 tokens" in done.stdout
    assert "outputs: features, tokens" in done.stdout and "trt" not in done.stdout


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("taget = 'onnx'", "sets 'taget', which is no option of this command. Did you mean 'target'?"),
        ("quick = 'yes'", "sets quick to 'yes': expected true or false"),
        ("target = 'tpu'", "'tpu' is not one of 'compile'"),
        ("target = ", "cannot be read as TOML"),
    ],
)
def test_a_file_with_other_words_is_refused(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_text(text)
    refused = export("--config", tmp_path / "c.toml")
    assert refused.exit_code == 2 and message in flat(refused.stderr)


@pytest.mark.parametrize(
    ("typed", "ends"),
    [("", ["compile", "aot", "onnx", "trt"]), ("o", ["onnx"]), ("onnx,T", ["onnx,trt"]), ("x", [])],
)
def test_a_shell_completes_the_words_of_a_target(typed: str, ends: list[str]) -> None:
    [target] = [param for param in export_command.params if param.name == "targets"]
    context = click.Context(export_command)
    assert [item.value for item in target.type.shell_complete(context, target, typed)] == ends
