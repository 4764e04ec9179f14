"""The command lines, as a user types them."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result
from safetensors.torch import save_file

from naflex_export.cli.bench import bench_command
from naflex_export.cli.export import export_command
from naflex_export.cli.gate import gate_command
from naflex_export.models.model_sources import ModelSource


def export(*arguments: object) -> Result:
    return CliRunner().invoke(export_command, [str(argument) for argument in arguments])


def gate(*arguments: object) -> Result:
    """Judge an artifact whose model is a factory of the tests'."""
    return CliRunner().invoke(gate_command, [*(str(argument) for argument in arguments), "--trust-source"])


def flat(text: str) -> str:
    return " ".join(text.split())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cli") / "a"


@pytest.fixture(scope="module")
def done(folder: Path) -> Result:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("naflex_export.progress.INTERVAL", 600.0)  # however slow the machine is
        return export(
            "tiny:classifier", "--target", "onnx", "--weights", "random", "--bucket", "16:1,2,4", "--out", folder
        )


@pytest.fixture(scope="module")
def artifact(folder: Path, done: Result) -> Path:
    assert done.exit_code == 0, done.output
    return folder


def test_export_prints_the_verdict_the_signature_and_the_times(tmp_path: Path) -> None:
    done = export(
        "tiny:shallow", "--target", "onnx", "--weights", "random", "--bucket", "16:1,2,4", "--bucket", "9",
        "--tokens", "--seed", "3", "--out", tmp_path / "a", "--triton", tmp_path / "models",
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    assert "random weights: a dry run" in flat(done.stderr)
    assert "mixed-16 features" in done.stdout and "mixed-9 tokens" in done.stdout
    assert "passed, published" in flat(done.stdout)
    assert "in patches: float32 [batch, tokens, 48]" in flat(done.stdout)
    assert "out tokens: float32 [batch, tokens, 32]" in flat(done.stdout)
    assert all(f"{stage} " in done.stdout for stage in ("load", "trace", "build", "reload", "gate"))
    assert f"for Triton: {tmp_path / 'models' / 'a'}" in done.stdout
    assert (tmp_path / "models" / "a" / "1" / "artifact" / "manifest.json").is_file()
    manifest = json.loads((tmp_path / "a" / "manifest.json").read_text())
    assert manifest["model"]["source"] == {"model": "tiny:shallow", "weights": "random", "seed": 3}
    assert [bucket["tokens"] for bucket in manifest["buckets"]] == [9, 16]


def test_quiet_when_not_a_terminal(done: Result) -> None:
    assert done.stderr.splitlines() == [
        "tiny:classifier to onnx in float32: loading torch",
        "random weights: a dry run; the artifact computes nothing of use",
    ]
    assert "\x1b" not in done.output


def test_trt_says_plainly_that_the_engine_was_not_run(tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx")
    arguments = ("tiny:shallow", "--target", "trt", "--weights", "random", "--bucket", "16:1,2,4")
    done = export(*arguments, "--out", tmp_path / "a")
    assert done.exit_code == 0, done.output
    assert "not run: model.plan was built and not run: there is no CUDA device" in flat(done.stdout)
    refused = export(*arguments, "--require-run", "--out", tmp_path / "b")
    assert refused.exit_code == 3
    assert not (tmp_path / "b").exists()


def test_gate_judges_an_artifact_again(artifact: Path, tmp_path: Path) -> None:
    wanted = [argument for suffix in ("json", "md", "html") for argument in ("--report", tmp_path / f"r.{suffix}")]
    done = gate(artifact, *wanted, "--seed", "7")
    assert done.exit_code == 0, done.output
    assert done.stdout.rstrip().endswith("passed")
    assert "### Accuracy gate: passed" in (tmp_path / "r.md").read_text()
    report = json.loads((tmp_path / "r.json").read_text())
    assert report["passed"] and report["seed"] == 7 and report["results"][2]["case"] == "mixed-16-seed7"
    assert report["artifact"]["target"] in (page := (tmp_path / "r.html").read_text()) and "tiny:" in page
    assert report["artifact"]["weights"] == "random" and "Random weights: a dry run." in page


def test_gate_refuses_a_reference_with_other_weights(artifact: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.safetensors"
    save_file(ModelSource("tiny:classifier", "random", seed=9).load().state_dict(), other)
    refused = gate(artifact, "--weights", other)
    assert refused.exit_code == 2
    assert "are not those the artifact was made from" in flat(refused.stderr)


def test_gate_fails_with_exit_code_1(artifact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from naflex_export.serving.onnx_runner import OnnxRunner

    true = OnnxRunner.run
    monkeypatch.setattr(OnnxRunner, "run", lambda *arguments: [1.1 * out for out in true(*arguments)])
    failed = gate(artifact)
    assert failed.exit_code == 1
    assert "FAIL" in failed.stdout and "error: the gate failed" in failed.stderr
    assert "first deviation: embeds.proj, relative L2 1.0e-01" in failed.stdout
    assert "first deviation: embeds.proj, relative L2 1.0e-01" in failed.stderr


def test_programs_get_the_report_alone_on_standard_output(artifact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from naflex_export.serving.onnx_runner import OnnxRunner

    done = gate(artifact, "--quick", "--json")
    report = json.loads(done.stdout)
    assert done.exit_code == 0 and report["passed"] and report["effort"] == "quick"
    assert "rel L2" in done.stderr and done.stderr.rstrip().endswith("passed")
    true = OnnxRunner.run
    monkeypatch.setattr(OnnxRunner, "run", lambda *arguments: [1.1 * out for out in true(*arguments)])
    failed = gate(artifact, "--quick", "--json")
    assert failed.exit_code == 1 and not json.loads(failed.stdout)["passed"]
    assert "error: the gate failed" in failed.stderr and "passed" not in failed.stderr
    refused = gate(artifact, "--card", "--json")
    assert refused.exit_code == 2 and refused.stdout == ""


def test_gate_looks_into_an_artifact_that_passes_where_asked_to(artifact: Path, tmp_path: Path) -> None:
    quick = flat(gate(artifact, "--quick").stdout)
    assert "first deviation" not in quick and "effort: quick, seed 0: without one-row, square" in quick
    done = gate(artifact, "--quick", "--locate", "--report", tmp_path / "r.json")
    assert done.exit_code == 0, done.output
    assert "first deviation: none in 19 modules and outputs on photos-16-0\n" in done.stdout
    assert len(json.loads((tmp_path / "r.json").read_text())["location"]["taps"]) == 19


def test_an_artifact_from_python_needs_its_reference_named(shallow_artifact: Path) -> None:
    refused = gate(shallow_artifact)
    assert refused.exit_code == 2 and "give --reference MODEL and --weights WEIGHTS" in flat(refused.stderr)
    assert gate(shallow_artifact, "--reference", "tiny:shallow", "--weights", "pretrained").exit_code == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["nope", "--target", "onnx"],
            "model 'nope' does not exist; no name of a NaFlexVit is close to it; naflex-export --list",
        ),
        (["--target", "onnx", "--weights", "w.pth"], "checkpoint 'w.pth' does not exist"),
        (["--target", "onnx", "--bucket", "256:1,8"], "bucket '256:1,8' is malformed"),
        (["--target", "onnx", "--bucket", "64", "--bucket", "64"], "have the same tokens"),
        (["tiny:siglip", "--target", "onnx", "--images", "nowhere"], "image folder 'nowhere' cannot be read"),
        (["tiny:siglip", "--target", "tpu"], "'tpu' is not one of"),
        (["tiny:siglip"], "Missing option '--target'. Choose from compile, aot, onnx, trt"),
        (["tiny:siglip", "--target", "onnx", "--dtype", "int4"], "'int4' is not one of"),
    ],
)
def test_a_wrong_request_is_exit_code_2_with_a_message(
    arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    refused = export(*arguments)
    assert refused.exit_code == 2, refused.output
    assert message in flat(refused.stderr)
    assert not any(tmp_path.iterdir())


def test_folders_that_are_no_artifacts_are_never_touched(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years")
    refused = export("tiny:siglip", "--target", "onnx", "--weights", "random", "--out", tmp_path)
    assert refused.exit_code == 2
    assert "exists and is no artifact: give another folder" in flat(refused.stderr)
    assert (tmp_path / "thesis.txt").read_text() == "years"
    refused = gate(tmp_path)
    assert refused.exit_code == 2 and "is no artifact: it has no manifest.json" in flat(refused.stderr)


def test_a_missing_backend_is_exit_code_3(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    there = importlib.util.find_spec
    missing = ("onnx", "onnxscript", "onnxruntime")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name in missing else there(name))
    refused = export("tiny:siglip", "--target", "onnx", "--weights", "random", "--out", tmp_path / "a")
    assert refused.exit_code == 3 and "package 'onnx' is missing: pip install onnx" in flat(refused.stderr)


@pytest.mark.parametrize(
    "buckets",
    [pytest.param(["1:1,1,1"], marks=pytest.mark.full), ["2:1,1,1", "3:2,2,2", "16:5,5,8"]],
    ids=["one", "three"],
)
def test_any_bucket_can_be_judged(buckets: list[str], tmp_path: Path) -> None:
    """Fewer photos than the smallest batch, and budgets below what a model is traced with."""
    wanted = [argument for bucket in buckets for argument in ("--bucket", bucket)]
    done = export("tiny:shallow", "--target", "onnx", "--weights", "random", *wanted, "--out", tmp_path / "a")
    assert done.exit_code == 0, done.output


def test_odd_photos_are_judged_or_named(artifact: Path, tmp_path: Path) -> None:
    """Every mode that Pillow opens, the same picture twice, and shapes far from any grid."""
    from PIL import Image

    folder = tmp_path / "photos"
    folder.mkdir()
    for name, mode, size in [
        ("gray.png", "L", (50, 40)), ("copy.png", "L", (50, 40)), ("alpha.png", "RGBA", (50, 40)),
        ("print.jpg", "CMYK", (50, 40)), ("deep.png", "I;16", (50, 40)), ("few.gif", "P", (30, 90)),
        ("dot.png", "RGB", (1, 1)), ("tall.png", "RGB", (1, 5000)), ("wide.png", "RGB", (9000, 10)),
    ]:  # fmt: skip
        Image.new(mode, size).save(folder / name)
    done = gate(artifact, "--images", folder)
    assert done.exit_code == 0, done.output
    assert "photos-4" in done.stdout


def test_skipped_photos_are_counted_and_named(artifact: Path, tmp_path: Path) -> None:
    from PIL import Image

    (tmp_path / "photos").mkdir()
    Image.new("RGB", (64, 32), "teal").save(tmp_path / "photos" / "sea.png")
    (tmp_path / "photos" / "notes.txt").write_text("no image")
    done = gate(artifact, "--images", tmp_path / "photos")
    assert done.exit_code == 0, done.output
    assert "skipped notes.txt: not an image" in flat(done.stdout)
    assert "1 of the files among the photos were skipped" in flat(done.stdout)


def test_arguments_a_state_and_outputs_are_taken_and_noted(tmp_path: Path) -> None:
    """As timm's command lines spell them: several behind one option, and other options after them."""
    weights = tmp_path / "w.pth.tar"
    arguments = {"num_classes": 30, "in_chans": 3, "embed_dim": 32, "depth": 1, "num_heads": 2, "patch_size": 4}
    made = ModelSource("naflexvit_base_patch16_gap", "random", model_args=arguments).load()
    state = {f"module.{name}": tensor for name, tensor in made.state_dict().items()}
    torch.save({"state_dict": {n: 2 * t for n, t in state.items()}, "state_dict_ema": state, "epoch": 3}, weights)
    given = [f"{name}={value}" for name, value in arguments.items()]
    done = export(
        "naflexvit_base_patch16_gap", "--model-args", *given[:3], "--target", "onnx", "--weights", weights, "--quick",
        "--model-args", *given[3:], "--bucket", "16:1,2,4", "--outputs", "tokens", "--out", tmp_path / "a",
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    assert "note: checkpoint" in flat(done.stderr) and "took 'state_dict_ema', an average (EMA)" in flat(done.stderr)
    source = json.loads((tmp_path / "a" / "manifest.json").read_text())["model"]["source"]
    assert source["model_args"] == arguments and source["checkpoint_state"] == "state_dict_ema"
    assert "out tokens" in flat(done.stdout) and "out features" not in flat(done.stdout)
    again = gate(tmp_path / "a", "--quick")
    assert again.exit_code == 0, again.output
    other = gate(tmp_path / "a", "--quick", "--model-args", *given[:2], "depth=2", "embed_dim=32", "num_heads=2")
    assert other.exit_code == 2, other.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["tiny:siglip", "--outputs", "logits"], "outputs=('logits',): expected 'features', 'tokens' or both"),
        (["tiny:siglip", "--outputs", "tokens", "--tokens"], "--outputs tokens and --tokens were both given"),
        (["tiny:siglip", "--model-args", "num_classes"], "--model-args 'num_classes' is malformed"),
        (["tiny:siglip", "--model-args", "nope=3"], "cannot be called with --model-args nope=3"),
        (["tiny:siglip", "--checkpoint-state", "ema"], "state 'ema' cannot be taken of pretrained weights"),
        (["tiny:siglip", "--keep-float32", "norm"], "keep_float32 'norm' changes nothing in dtype float32"),
        (["tiny:siglip", "--dtype", "float16", "--keep-float32", "blocks.1.mpl"], "such as blocks.1.mlp, "),
        (["naflexvit_base_patch16_siglip", "--model-args", "depth=1", "30", "--weights", "random"], "unexpected extra"),
    ],
)
def test_wrong_arguments_and_outputs_are_exit_code_2(arguments: list[str], message: str, tmp_path: Path) -> None:
    refused = export(*arguments, "--target", "onnx", "--bucket", "9", "--out", tmp_path / "a")
    assert refused.exit_code == 2, refused.output
    assert message in flat(refused.stderr)
    assert not (tmp_path / "a").exists()


def test_a_checkpoint_of_other_classes_says_what_to_give(tmp_path: Path) -> None:
    weights, arguments = tmp_path / "w.ckpt", {"num_classes": 30, "depth": 1, "embed_dim": 24, "num_heads": 2}
    made = ModelSource("naflexvit_base_patch16_gap", "random", model_args=arguments).load()
    torch.save({"state_dict": made.state_dict()}, weights)
    refused = export(
        "naflexvit_base_patch16_gap", "--weights", weights, "--target", "onnx", "--out", tmp_path / "a",
        "--model-args", "depth=1", "embed_dim=24", "num_heads=2",
    )  # fmt: skip
    assert refused.exit_code == 2
    assert "it is one of num_classes=30: give --model-args num_classes=30" in flat(refused.stderr)


@pytest.mark.parametrize("word", ["ONNX", "onnxruntime"])
def test_other_words_for_a_target_and_a_dtype_are_taken(word: str, tmp_path: Path) -> None:
    refused = export(
        "tiny:nothing", "--target", word, "--dtype", "FP16", "--weights", "random", "--out", tmp_path / "a"
    )
    assert refused.exit_code == 2 and "factory 'tiny:nothing' cannot be imported" in flat(refused.stderr)
    refused = export("tiny:siglip", "--target", "tensorrrt", "--dtype", "fp16")
    assert "'tensorrrt' is not one of 'compile', 'aot', 'onnx', 'trt'." in flat(refused.stderr)


def test_a_tag_that_timm_lacks_is_no_traceback(tmp_path: Path) -> None:
    wrong = ("naflexvit_base_patch16_siglip.nope", "--target", "onnx", "--weights", "random", "--out", tmp_path / "a")
    refused = export(*wrong)
    assert refused.exit_code == 2 and "timm has no weights 'nope' of naflexvit_base_patch16_siglip" in refused.stderr


def test_models_are_listed_without_a_target() -> None:
    listed = export("--list", "siglip")
    assert listed.exit_code == 0
    lines = listed.stdout.splitlines()
    assert "naflexvit_base_patch16_siglip  v2_webli" in lines and all("siglip" in line for line in lines)
    assert len(export("--list").stdout.splitlines()) > len(lines)
    none = export("--list", "nope*")
    assert none.exit_code == 2 and "no model matches 'nope*'" in none.stderr


def test_a_folder_that_is_not_there_is_told_from_one_without_a_manifest(artifact: Path) -> None:
    refused = gate(artifact.with_name("nope"))
    assert refused.exit_code == 2
    assert f"there is no folder '{artifact.with_name('nope')}': expected an artifact" in flat(refused.stderr)
    assert f"beside it there is {artifact}" in flat(refused.stderr)


@pytest.mark.parametrize("kept", [False, True], ids=["deleted", "kept"])
def test_a_rejection_says_where_its_page_is_and_how_to_go_on(
    kept: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The command in the page is run as it stands there: on the same photos, and by whoever named the factory."""
    import html
    import re
    import shlex

    from PIL import Image

    from naflex_export.serving.onnx_runner import OnnxRunner

    rejected = tmp_path / "it's a.rejected"
    photos = tmp_path / "my photos"
    photos.mkdir()
    Image.new("RGB", (9, 7), (200, 20, 90)).save(photos / "one.png")
    with monkeypatch.context() as wrong:
        true = OnnxRunner.run
        wrong.setattr(OnnxRunner, "run", lambda *arguments: [1.1 * out for out in true(*arguments)])
        failed = export(
            "tiny:shallow", "--target", "onnx", "--weights", "random", "--bucket", "9:1,2,2", "--quick",
            "--out", tmp_path / "it's a", *(["--keep-rejected"] if kept else []), "--images", photos,
        )  # fmt: skip
    assert failed.exit_code == 1 and f"report: {rejected}.html (open it" in flat(failed.stderr)
    page = Path(f"{rejected}.html").read_text()
    [command] = re.findall(r"<pre>(naflex-gate .*?)</pre>", page)
    _, folder, *cases = shlex.split(html.unescape(command))
    assert not (tmp_path / "it's a").exists()
    if not kept:
        assert folder == "OUT.rejected" and "export again with --keep-rejected" in page
        assert "the artifact is not kept (--keep-rejected" in flat(failed.stderr)
        return
    assert folder == str(rejected) and f"is kept in {folder}" in flat(failed.stderr)
    assert f"to judge it again: {html.unescape(command)}" in flat(failed.stderr)
    again = CliRunner().invoke(gate_command, [folder, *cases, "--report", str(tmp_path / "r.html")])
    assert again.exit_code == 0, again.output
    assert f"wrote {tmp_path / 'r.html'} (open it in a browser)" in again.stdout
    assert json.loads((rejected / "manifest.json").read_text())["gate"]["passed"] is False


def test_an_export_ends_with_what_to_do_next(done: Result, artifact: Path) -> None:
    assert "KiB in all, with" in done.stdout
    assert f"next: naflex-bench {artifact} --trust-source" in done.stdout
    assert f"naflex-gate {artifact} --trust-source --report" in done.stdout


def test_a_report_of_no_format_is_refused_ahead_of_all_work(artifact: Path, tmp_path: Path) -> None:
    refused = gate(artifact, "--report", tmp_path / "r.pdf")
    assert refused.exit_code == 2 and refused.stdout == ""
    assert "ends in '.pdf': expected one of .html" in flat(refused.stderr)


def test_a_path_that_cannot_be_written_is_refused_ahead_of_all_work(tmp_path: Path) -> None:
    """No artifact is there either, which would be told next."""
    for path in (tmp_path, Path(__file__) / "r.csv"):
        refused = CliRunner().invoke(bench_command, ["no-artifact", "--csv", str(path)])
        assert refused.exit_code == 2 and f"{str(path)!r} cannot be written: " in flat(refused.stderr)


WRONG: dict[str, tuple[str, list[str], str]] = {
    "report": ("gate", ["a", "--report", "gate.pdf"], "report 'gate.pdf' ends in '.pdf': expected one of .html"),
    "report-beneath-a-file": ("gate", ["a", "--report", f"{__file__}/r.md"], "r.md' cannot be written: "),
    "compared-beneath-a-file": (
        "compare",
        ["a", "b", "--photos", ".", "--report", f"{__file__}/r.md"],
        "r.md' cannot be written: ",
    ),
    "bucket": ("export", ["--target", "onnx", "--bucket", "256:8,1"], "bucket '256:8,1'"),
    "keep-float32": ("export", ["--target", "onnx", "--dtype", "float16", "--keep-float32", "norm,"], "keep_float32"),
    "patch-size": ("export", ["--target", "onnx", "--patch-size", "8,x"], "8,x"),
    "outputs": (
        "export",
        ["--target", "onnx", "--outputs", "tokens", "--tokens"],
        "--outputs tokens and --tokens were both",
    ),
    "out-a-file": ("export", ["--target", "onnx", "--out", __file__], f"'{__file__}' exists and is no artifact"),
    "out-in-proc": ("export", ["--target", "onnx", "--out", "/proc/none"], "cannot write to '/proc'"),
    "no-checkpoint": ("export", ["--target", "onnx", "--weights", "none.pth"], "checkpoint 'none.pth' does not exist"),
    "model-args": ("export", ["--target", "onnx", "--model-args", "depth"], "--model-args 'depth' is malformed"),
    "seed": ("export", ["--target", "onnx", "--seed", "-1"], "-1 is not in the range 0<=x<=2147483647"),
    "bench-seed": ("bench", ["a", "--seed", "-1"], "-1 is not in the range 0<=x<=2147483647"),
    "tower": ("export", ["--target", "onnx", "--tower", "text"], "towers='text': expected image, or image,text"),
    "preprocessing": (
        "export",
        ["--target", "onnx", "--preprocessing", "none.json"],
        "preprocessing 'none.json' cannot be read",
    ),
    "triton": ("export", ["--target", "onnx", "--triton", __file__], f"--triton '{__file__}' is no folder"),
    "both-efforts": ("export", ["--target", "onnx", "--quick", "--thorough"], "--quick and --thorough were both given"),
    "embed-no-artifact": ("embed", ["no artifact", ".", "--out", "none"], "there is no folder 'no artifact'"),
    "no-artifact": ("gate", ["no artifact"], "there is no folder 'no artifact'"),
    "file-as-artifact": ("gate", [__file__], f"'{__file__}' is no artifact"),
    "reference": ("gate", ["a", "--reference", "naflexvit_bse"], "naflexvit_bse"),
    "bench-no-artifact": ("bench", ["no artifact"], "there is no folder 'no artifact'"),
    "bench-batch": ("bench", ["no artifact", "--batch", "0"], "--batch '0' is malformed"),
    "pack-model": ("pack", ["naflexvit_bse", "--out", "none"], "naflexvit_bse"),
    "pack-out": ("pack", ["naflexvit_base_patch16_gap", "--out", __file__], f"--out '{__file__}' exists"),
}
"""Requests by name: a command, what it is given, and what it says of that."""

ASKED_WITHOUT_TORCH = """
import contextlib, importlib, io, json, sys

for command, arguments in json.loads(sys.argv[1]):
    run = getattr(importlib.import_module(f"naflex_export.cli.{command}"), f"{command}_command")
    with contextlib.redirect_stderr(io.StringIO()) as said:
        try:
            run(arguments)
        except SystemExit as end:
            print(json.dumps([end.code, "torch" in sys.modules, said.getvalue()]))
"""


@pytest.fixture(scope="module")
def told() -> dict[str, tuple[int, bool, str]]:
    """What one process says of all wrong requests: exit code, whether torch is imported by then, and the message."""
    asked = {
        name: wrong[:2] for name, wrong in WRONG.items() if wrong[0] != "embed" or importlib.util.find_spec("pyarrow")
    }
    command = [sys.executable, "-c", ASKED_WITHOUT_TORCH, json.dumps(list(asked.values()))]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return dict(zip(asked, map(json.loads, done.stdout.splitlines()), strict=True))


@pytest.mark.parametrize("name", WRONG)
def test_wrong_values_are_told_before_torch_is_imported(name: str, told: dict[str, tuple[int, bool, str]]) -> None:
    command, _, expected = WRONG[name]
    if command == "embed":
        pytest.importorskip("pyarrow")
    code, is_torch_imported, said = told[name]
    assert (code, is_torch_imported) == (2, False) and expected in " ".join(said.split()), said
