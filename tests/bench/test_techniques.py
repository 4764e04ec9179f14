"""Workloads, techniques beside each other, and `naflex-bench`."""

from __future__ import annotations

import csv
import dataclasses
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import bench_encoder
import pytest
import tiny
import torch
from click.testing import CliRunner, Result
from torch import nn

import naflex_export as nx
from naflex_export.batch import noise_batch
from naflex_export.bench.artifact import FIELDS, eager_name
from naflex_export.bench.techniques import COLUMNS, Bench, Figures, Technique, count_flops, matrix_rate
from naflex_export.bench.timing import Timing
from naflex_export.bench.workloads import drawn_grids, workload
from naflex_export.cli.bench import bench_command
from naflex_export.errors import RequestError
from naflex_export.grid import Grid
from naflex_export.models import adapter_of
from naflex_export.models.model_sources import ModelSource
from naflex_export.precision import Precision
from naflex_export.serving.manifest import Manifest

CPU = torch.device("cpu")
GRIDS = [Grid(3, 4), Grid(1, 9), Grid(5, 2)]


def test_different_grids_differ_and_fit() -> None:
    grids = drawn_grids("different", 256, 256)
    assert len(set(grids)) == 256
    assert all(64 <= grid.tokens <= 256 and max(grid) <= 8 * min(grid) for grid in grids)
    assert grids == drawn_grids("different", 256, 256) != drawn_grids("different", 256, 256, seed=1)


def test_grids_of_the_size_rule_nearly_fill_their_tokens() -> None:
    grids = drawn_grids("naflex", 64, 256)
    assert all(200 <= grid.tokens <= 256 for grid in grids)
    assert 1 < len(set(grids)) < 64
    assert grids != drawn_grids("naflex", 64, 256, seed=1)


def test_grids_that_there_are_not_are_refused() -> None:
    with pytest.raises(RequestError, match="30 images cannot all have different grids: 16 tokens admit 29 grids"):
        drawn_grids("different", 30, 16)
    with pytest.raises(RequestError, match="grids 'square' are unknown: expected one of naflex, different"):
        drawn_grids("square", 1, 16)


def test_a_workload_is_padded_and_seeded() -> None:
    batch = workload("different", 3, 16, 48, seed=5)
    assert batch.patches.shape == (3, 16, 48)
    assert list(batch.grids) == drawn_grids("different", 3, 16, seed=5)
    assert torch.equal(batch.patches, workload("different", 3, 16, 48, seed=5).patches)
    assert not torch.equal(batch.patches, workload("different", 3, 16, 48, seed=6).patches)


MODELS: dict[str, Any] = {
    "learned": tiny.siglip,
    "prefix": tiny.classifier,
    "factorized": lambda: tiny.naflexvit(pos_embed="factorized"),
    "rope": lambda: tiny.naflexvit("naflexvit_base_patch16_gap", rope_type="axial", pos_embed="none"),
    "rope-mixed": lambda: tiny.naflexvit("naflexvit_base_patch16_gap", rope_type="mixed", class_token=True),
}


def test_a_packed_model_is_run_on_packs_of_the_same_batches() -> None:
    bench = Bench(tiny.siglip(), Precision("float32"), CPU)
    batches = bench.batches("different", 3, 16, 0, 1)
    _, found = bench.measure([bench.eager(), bench.ours_packed(backend="eager")], batches, 1)
    assert (found.technique, found.failure) == ("ours packed, torch.compile", "")
    assert found.error is not None and found.error < 1e-5


@pytest.mark.parametrize("name", MODELS)
def test_an_embedding_is_what_the_first_block_gets(name: str) -> None:
    model = MODELS[name]()
    adapter = adapter_of(model)
    inputs = adapter.input_format.arrange(noise_batch("embedding", GRIDS, 12, 48))
    got: list[torch.Tensor] = []

    def keep(module: nn.Module, positional: Any, named: Any) -> None:
        got.extend([positional[0], *([] if named.get("rope") is None else [named["rope"]])])

    model.blocks[0].register_forward_pre_hook(keep, with_kwargs=True)
    with torch.no_grad():
        adapter.encoder(("features",))(*inputs)
        given = adapter.embedding()(*inputs)
    assert len(got) == (2 if "rope" in name else 1)
    for found, expected in zip(given, got, strict=False):
        assert torch.equal(found, expected)


@pytest.mark.parametrize("name", MODELS)
def test_without_position_tells_no_grids_apart(name: str) -> None:
    model = MODELS[name]()
    adapter = adapter_of(model)
    one, other = (noise_batch("same", [grid], 12, 48) for grid in (Grid(3, 4), Grid(2, 6)))
    bare = adapter.without_position()
    with torch.no_grad():
        of_bare = [bare.encoder(("features",))(*bare.input_format.arrange(batch))[0] for batch in (one, other)]
        of_model = [adapter.encoder(("features",))(*adapter.input_format.arrange(batch))[0] for batch in (one, other)]
    assert torch.equal(*of_bare)
    assert not torch.allclose(*of_model, rtol=1e-3)
    shared = dict(model.named_parameters())
    assert all(parameter is shared[key] for key, parameter in bare.model.named_parameters())


def test_flops_are_those_of_the_formula() -> None:
    """All matmuls of a classifier without a position embedding's: projection, blocks, head."""
    model, (B, N, D, C, M, heads) = tiny.classifier(), (3, 16, 48, 32, 64, 10)
    T = N + model.num_prefix_tokens
    attention, mlp = 4 * T * C * C + 2 * T * T * C, 2 * T * C * M
    assert count_flops(model, B, N) == 2 * B * (N * D * C + 2 * (attention + mlp) + C * heads)
    assert next(model.parameters()).device == CPU and next(model.parameters()).requires_grad


def test_flops_of_siglip2_are_counted_without_its_loop() -> None:
    """Projection, block, and the pooling head, whose query is one token."""
    transformers = pytest.importorskip("transformers")
    C, M, B, N, D = 32, 64, 3, 16, 48
    sizes = {"hidden_size": C, "intermediate_size": M, "num_attention_heads": 2, "patch_size": 4, "num_patches": 25}
    model = transformers.Siglip2VisionModel(transformers.Siglip2VisionConfig(**sizes, num_hidden_layers=1))
    block = 4 * N * C * C + 2 * N * N * C + 2 * N * C * M
    pooling = (2 * N + 2) * C * C + 2 * N * C + 2 * C * M
    assert count_flops(model, B, N) == 2 * B * (N * D * C + block + pooling)


def test_a_matrix_rate_is_work_over_time() -> None:
    assert 1e8 < matrix_rate(CPU, torch.float32, size=256, rounds=2) < 1e14


def test_techniques_beside_each_other(siglip: nn.Module) -> None:
    bench = Bench(siglip, Precision("float32"), CPU)
    seen: list[Grid] = []

    def wrong(patches: torch.Tensor, coord: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
        seen.append(Grid(*(coord[0].amax(dim=0) + 1).tolist()))
        return 1.5 * right(patches, coord, valid)

    def broken(*inputs: torch.Tensor) -> torch.Tensor:
        raise ValueError("no kernel\nfor this")

    eager = bench.eager()
    right = eager.run
    batches = bench.batches("naflex", 2, 16, seed=0, num_batches=4)
    steps: list[str] = []
    found = bench.measure([eager, Technique("wrong", wrong), Technique("broken", broken)], batches, 2, steps.append)
    first, second, third = found
    assert (first.technique, first.images, first.tokens, first.speedup, first.error) == ("eager", 2, 16, 1.0, 0.0)
    assert first.timing is not None and first.images_per_second == pytest.approx(2000 / first.timing.ms)
    assert first.embed_share is not None and 0 < first.embed_share < 1
    assert first.position_share is not None and first.position_share < first.embed_share
    assert second.error == pytest.approx(0.5) and second.embed_share is None
    assert third == Figures("broken", 2, 16, failure="ValueError: no kernel")
    assert steps[:3] == ["eager: first run", "wrong: first run", "broken: first run"]
    # twice for error and memory, then a batch of its own for each round, those of the warmup too
    assert seen == [batches[number].grids[0] for number in (0, 0, 0, 1, 2, 3)]


def test_low_precision_is_measured_against_float32(siglip: nn.Module) -> None:
    bench = Bench(siglip, Precision("bfloat16"), CPU)
    (found,) = bench.measure([bench.eager()], bench.batches("naflex", 2, 16, 0, 1), 1)
    assert found.error is not None and 1e-4 < found.error < 0.1
    assert next(siglip.parameters()).dtype == torch.float32


def test_a_mixed_artifact_is_timed_beside_eager_in_the_same_mixture() -> None:
    """In plain float16 this model overflows: it would be another model that is timed."""
    model, kept = tiny.with_large_residual(), ("residual", "norm", "softmax")
    errors = []
    for names in ((), kept):
        bench = Bench(model, Precision("float16", names), CPU)
        (found,) = bench.measure([bench.eager()], bench.batches("naflex", 2, 16, 0, 1), 1)
        errors.append(found.error)
    plain, mixed = errors
    assert plain is not None and mixed is not None and not plain < 1 and mixed < 0.01
    assert eager_name(Precision("float16")) == eager_name(Precision("float32")) == "eager"
    assert eager_name(Precision("float16", kept)) == "eager, residual,norm,softmax in float32"
    assert eager_name(Precision.of("int8")) == "eager, float16 and not quantized"


def test_figures_as_a_row() -> None:
    figures = Figures("x", 8, 256, Timing((0.1, 0.1, 0.1)), 2.0, 3 * 2**20, 1.23e-6, 0.05, 0.01)
    row = figures.row()
    assert tuple(row) == COLUMNS
    assert ",".join(row.values()) == "8,256,x,100.00,0.000,80.00,2.000,3.0,0.0500,0.0100,1.2e-06,"
    assert ",".join(Figures("x", 8, 256, failure="why").row().values()) == "8,256,x,,,,,,,,,why"


def bench(*arguments: object) -> Result:
    return CliRunner().invoke(bench_command, [*(str(argument) for argument in arguments), "--trust-source"])


def flat(text: str) -> str:
    return " ".join(text.split())


@pytest.fixture(scope="module")
def sizes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An artifact with a single patch size among its sizes."""
    folder = tmp_path_factory.mktemp("speed") / "a"
    source = ModelSource("tiny:flexible", "random", patch_interpolator=True)
    nx.export(
        source.load(), "onnx", folder, [nx.Bucket(16, (1, 2, 4))], patch_sizes=(4,), effort="quick",
        source=source.describe(),
    )  # fmt: skip
    return folder


@pytest.fixture
def artifact(sizes: Path) -> Path:
    """An artifact of one patch size."""
    return sizes / "patch4"


def test_onnx_runtime_takes_as_many_threads_as_torch(artifact: Path) -> None:
    runner: Any = nx.load(artifact, "cpu")
    assert runner._session.get_session_options().intra_op_num_threads == torch.get_num_threads()


def test_trim_shrinks_what_onnx_runtime_keeps(artifact: Path) -> None:
    runner: Any = nx.load(artifact, "cpu")
    session, shrunk = runner._session, []

    class Spy:
        def run(self, names: Any, arrays: Any, options: Any) -> Any:
            key = "memory.enable_memory_arena_shrinkage"
            shrunk.append(None if options is None else options.get_run_config_entry(key))
            return session.run(names, arrays, options)

    runner._session = Spy()
    runner.trim()
    batch = workload("naflex", 2, 16, 48)
    runner(batch.patches, batch.patch_coord, batch.patch_valid)
    assert shrunk == ["cpu:0", None]


@pytest.mark.full
def test_bench_prints_a_table_and_writes_rows(artifact: Path, tmp_path: Path) -> None:
    done = bench(artifact, "--no-compile", "--rounds", "2", "--csv", tmp_path / "r.csv")
    assert done.exit_code == 0, done.output
    assert "the artifact (onnx), float32, on" in done.stdout
    assert all(f"{size} of 16 tokens" in done.stdout for size in ("1 image", "2 images", "4 images"))
    # how far it is stands there each ten seconds, where the machine is slow
    said = [line for line in done.stderr.splitlines() if not re.fullmatch(r"  \S.* \(\d+ s\)", line)]
    assert said == [f"{artifact}: loading torch"] and "\x1b" not in done.output
    rows = list(csv.DictReader((tmp_path / "r.csv").open()))
    assert tuple(rows[0]) == FIELDS
    assert [(row["batch"], row["technique"]) for row in rows] == [
        (size, name) for size in "124" for name in ("eager", "artifact")
    ]
    assert all(float(row["ms"]) > 0 and float(row["error"]) < 1e-5 for row in rows)
    assert all(row["position_share"] for row in rows[::2])


def test_bench_says_what_it_could_not_measure(artifact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(module: nn.Module, **options: Any) -> Any:
        def run(*inputs: torch.Tensor) -> torch.Tensor:
            raise RuntimeError("graph break")

        return run

    monkeypatch.setattr(torch, "compile", refuse)
    done = bench(artifact, "--rounds", "1", "--batch", "2")
    assert done.exit_code == 0, done.output
    assert "not measured: eager, torch.compile: RuntimeError: graph break" in flat(done.stdout)


@pytest.mark.skipif(torch.cuda.is_available(), reason="here an engine would have to run")
def test_an_engine_without_a_gpu_is_exit_3_and_its_onnx_is_timed_if_asked_for(artifact: Path, tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx")
    engine = tmp_path / "engine"
    engine.mkdir()
    (engine / "model.onnx").write_bytes((artifact / "model.onnx").read_bytes())
    (engine / "model.plan").write_bytes(b"an engine")
    dataclasses.replace(Manifest.read(artifact), target="trt").write(engine)
    refused = bench(engine, "--no-compile")
    assert refused.exit_code == 3
    assert "torch finds no CUDA device" in flat(refused.stderr) and "with --stand-in" in flat(refused.stderr)
    done = bench(engine, "--no-compile", "--stand-in", "--batch", "2", "--rounds", "1")
    assert done.exit_code == 0, done.output
    assert "not run: model.plan was built and not run" in flat(done.stdout)
    assert "timed instead: model.onnx on ONNX Runtime's CPU provider" in flat(done.stdout)
    assert "stand-in" in done.stdout and "artifact" not in done.stdout


def test_each_patch_size_is_timed(sizes: Path) -> None:
    done = bench(sizes, "--no-compile", "--rounds", "1", "--batch", "2")
    assert done.exit_code == 0, done.output
    assert "the artifact (onnx) at patch size 4, float32, on" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--batch", "9"], "no bucket takes 9 images of 16 tokens: expected one of 16:1,2,4"),
        (["--tokens", "17"], "17 tokens are more than any bucket takes: expected one of 16:1,2,4"),
        (["--batch", "1,x"], "--batch '1,x' is malformed: expected numbers of at least 1, such as 1,8,32"),
        (["--tokens", "0"], "--tokens '0' is malformed"),
        (["--device", "tpu"], "device 'tpu' is not served: expected cpu, or cuda and an index"),
        (["--device", "mps"], "device 'mps' is not served: expected cpu, or cuda and an index"),
        (["--rounds", "0"], "0 is not in the range x>=1"),
        (["--grids", "square"], "'square' is not one of"),
        (["--tokens", "1", "--grids", "different", "--batch", "4"], "1 tokens admit 1 grids"),
        (["--csv", "other.csv"], "'other.csv' has the columns a, b: expected date,"),
        (["--reference", "tiny:classifier"], "are not those the artifact was made from"),
    ],
)
def test_a_wrong_request_is_refused(
    arguments: list[str], message: str, artifact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("other.csv").write_text("a,b\n1,2\n")
    refused = bench(artifact, "--no-compile", *arguments)
    assert refused.exit_code == 2, refused.output
    assert message in flat(refused.stderr)
    assert not refused.stdout and Path("other.csv").read_text() == "a,b\n1,2\n"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is one")
def test_a_missing_device_is_exit_3(artifact: Path) -> None:
    refused = bench(artifact, "--device", "cuda")
    assert refused.exit_code == 3 and "torch finds no CUDA device" in refused.stderr


def test_what_is_no_artifact_is_refused(tmp_path: Path) -> None:
    refused = bench(tmp_path)
    assert refused.exit_code == 2 and "is no artifact: it has no manifest.json" in flat(refused.stderr)


def test_an_artifact_that_does_not_run_is_no_measurement(artifact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from naflex_export.serving.onnx_runner import OnnxRunner

    def fail(self: OnnxRunner, inputs: Any) -> Any:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(OnnxRunner, "execute", fail)
    refused = bench(artifact, "--no-compile", "--batch", "2", "--rounds", "1")
    assert refused.exit_code == 3
    assert "cannot run 2 images of 16 tokens: RuntimeError: out of memory" in flat(refused.stderr)


def test_the_encoder_bench_writes_a_row_for_each_technique(
    artifact: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "rows.csv"
    monkeypatch.setattr(bench_encoder, "exported", lambda *arguments: nx.load(artifact))
    bench_encoder.main([
        "--model", "tiny:flexible", "--device", "cpu", "--batches", "2", "--tokens", "16", "--rounds", "1", "--grids",
        "different", "--out", str(path), "--techniques", "timm eager", "ours ONNX Runtime", "ours CUDA graphs",
    ])  # fmt: skip
    rows = list(csv.DictReader(path.open()))
    assert tuple(rows[0]) == bench_encoder.FIELDS
    by_name = {row["technique"]: row for row in rows}
    assert list(by_name) == ["timm eager", "ours ONNX Runtime", "ours CUDA graphs"]
    assert 0 < float(by_name["timm eager"]["matrix_share"]) < 1
    assert float(by_name["ours ONNX Runtime"]["error"]) < 1e-5
    assert by_name["ours CUDA graphs"]["failure"] == "CUDA graphs need a GPU"
    assert not by_name["ours CUDA graphs"]["ms"]
    assert "ours ONNX Runtime" in capsys.readouterr().out


@pytest.mark.full
def test_the_encoder_bench_packs_what_timm_defines(tmp_path: Path) -> None:
    bench_encoder.main([
        "--model", "tiny:siglip", "--device", "cpu", "--batches", "2", "--tokens", "16", "--rounds", "1", "--grids",
        "different", "--out", str(tmp_path / "rows.csv"), "--techniques", "timm eager", bench_encoder.PACKED,
        "ours packed ONNX Runtime",
    ])  # fmt: skip
    rows = {row["technique"]: row for row in csv.DictReader((tmp_path / "rows.csv").open())}
    assert all(float(rows[name]["error"]) < 1e-5 for name in (bench_encoder.PACKED, "ours packed ONNX Runtime"))


SUITE = Path(__file__).parents[2] / "tools" / "gpu_suite.sh"
LATE = ("not run, the time is up", "out of time")
"""What it says of a step for which too little is left of the total."""


def test_the_encoder_bench_names_the_library_that_eager_is_of(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2, "num_hidden_layers": 1}
    transformers.Siglip2VisionConfig(**sizes, architectures=["Siglip2VisionModel"]).save_pretrained(tmp_path)
    bench_encoder.main([
        "--model", f"hf:{tmp_path}", "--device", "cpu", "--batches", "2", "--tokens", "16", "--rounds", "1", "--grids",
        "naflex", "--out", str(tmp_path / "rows.csv"), "--techniques", "timm eager",
    ])  # fmt: skip
    (row,) = csv.DictReader((tmp_path / "rows.csv").open())
    assert row["technique"] == "transformers eager"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is one")
def test_the_gpu_suite_says_that_there_is_no_gpu(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHON": sys.executable, "OUT": str(tmp_path / "out")}
    done = subprocess.run([SUITE], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 3
    assert done.stderr.startswith("no GPU: torch finds no CUDA device. Nothing was run")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "message"), [(["--quick"], "takes --smoke or nothing"), ([], "on a CPU there is only the smoke run")]
)
def test_the_gpu_suite_refuses_what_it_does_not_know(arguments: list[str], message: str) -> None:
    environment = {**os.environ, "DEVICE": "cpu"}
    done = subprocess.run([SUITE, *arguments], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and message in done.stderr


@pytest.mark.full
def test_the_gpu_suite_goes_on_with_what_has_not_passed(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHON": sys.executable, "DEVICE": "cpu", "OUT": str(tmp_path), "TOTAL": "0"}
    environment |= {"STEPS": "towers tests-memory", "NAFLEX_COMMIT": "abc"}

    def said() -> list[str]:
        done = subprocess.run([SUITE, "--smoke"], env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 1
        return [line for line in done.stdout.splitlines() if line.startswith("==")]

    assert said() == [f"== {name}: {what}" for name in ("towers", "tests memory") for what in LATE]
    rows = tmp_path / "gpu_suite.csv"
    assert rows.read_text().count(",124\n") == 2
    rows.write_text(rows.read_text().replace("towers,0,124", "towers,12,0"))
    assert said() == ["== towers: passed before", *(f"== tests memory: {what}" for what in LATE)]
