"""The gate on quantized layers: neighbours, what to keep, and artifacts that ModelOpt calibrated."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import digits
import pytest
import quantized
import record
import reports
import tiny
import torch
from click.testing import CliRunner
from torch import nn
from tower_tiny import qwen3_vl

import naflex_export as nx
from naflex_export.accuracy.comparison import Comparison
from naflex_export.accuracy.layers_to_keep import layers_to_keep
from naflex_export.accuracy.metrics import LIMITS
from naflex_export.accuracy.neighbours import LEAST_RECALL, neighbours_of, recall
from naflex_export.accuracy.report.formats import as_markdown
from naflex_export.accuracy.report.html import as_html
from naflex_export.batch import Batch, noise_batch
from naflex_export.cli.export import export_command
from naflex_export.grid import Grid
from naflex_export.models import adapter_of
from naflex_export.precision import QUANTIZED, Precision
from naflex_export.serving.manifest import Manifest

BUCKET = nx.Bucket(32, (1, 4, 8))


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos") / "some"
    digits.write_photos(folder, 16)
    return folder


def test_recall_counts_neighbours_that_are_found() -> None:
    draw = torch.Generator().manual_seed(0)
    wanted = torch.randn(40, 8, generator=draw, dtype=torch.float64)
    assert recall(wanted, wanted, 5) == recall(3 * wanted, wanted, 5) == 1
    near = wanted + 0.05 * torch.randn(40, 8, generator=draw, dtype=torch.float64)
    other = torch.randn(40, 8, generator=draw, dtype=torch.float64)
    assert 0.7 < recall(near, wanted, 5) < 1 and recall(other, wanted, 5) < 0.3
    assert recall(wanted * torch.nan, wanted, 5) == 0


def test_neighbours_fail_where_too_few_are_found() -> None:
    batches = [noise_batch(f"photos-{number}", [Grid(2, 2)] * 8, 4, 6) for number in range(2)]

    def vectors(batch: Batch) -> torch.Tensor:
        return batch.patches.mean(dim=1)

    def others(batch: Batch) -> torch.Tensor:
        return batch.patches[:, 0].abs()

    right = neighbours_of(batches, vectors, vectors, vectors, LEAST_RECALL["int8"])
    wrong = neighbours_of(batches, vectors, others, vectors, LEAST_RECALL["int8"])
    assert right is not None and (right.photos, right.count, right.recall, right.failure) == (16, 4, 1.0, "")
    assert wrong is not None and wrong.baseline == 1 and "expected 85% or more" in wrong.failure
    few = [noise_batch("photos-0", [Grid(2, 2)] * 7, 4, 6)]
    assert neighbours_of(few, vectors, vectors, vectors, 0.85) is None


def test_what_to_keep_is_where_outliers_were_planted(mixed: Batch) -> None:
    """In a model that computes the same as before."""
    plain, planted = tiny.siglip(), tiny.siglip()
    block = planted.blocks[1]
    with torch.no_grad():
        block.norm2.weight[3] *= 3e3
        block.norm2.bias[3] *= 3e3
        block.mlp.fc1.weight[:, 3] /= 3e3
    for model, kept in ((planted, ("blocks.1.mlp.fc1",)), (plain, None)):
        comparison = Comparison(model, adapter_of(model), ("features",), Precision.of("int8"))
        found = layers_to_keep(comparison, mixed)
        assert kept is None or found == kept


def test_limits_do_not_give_way_to_a_baseline_as_wrong() -> None:
    model = tiny.siglip()
    comparison = Comparison(model, adapter_of(model), ("features",), Precision.of("int8"))
    batch = noise_batch("any", [Grid(3, 3)] * 2, 9, 48)
    wanted = comparison.reference_of(batch)["features"]
    measures, baseline, limits = comparison.compared(batch, "features", 2 * wanted, wanted, 2 * wanted)
    assert baseline == measures and limits == LIMITS["int8"] and limits.exceeded_by(measures)


def test_generated_batches_hold_patches_of_photos(mixed: Batch) -> None:
    model = tiny.siglip()
    comparison = Comparison(model, adapter_of(model), ("features",), Precision.of("int8"))
    assert comparison.filled(mixed) is mixed
    comparison.contents = torch.arange(5.0).unsqueeze(1).expand(5, 48) + 1
    filled = comparison.filled(mixed)
    assert set(filled.patches[mixed.patch_valid].unique().tolist()) == {1, 2, 3, 4, 5}
    assert not filled.patches[~mixed.patch_valid].any() and filled.grids == mixed.grids
    assert not torch.equal(filled.patches[0, 0], filled.patches[1, 0])


def test_nothing_is_quantized_without_photos(tmp_path: Path, photos: Path) -> None:
    model = tiny.siglip()
    with pytest.raises(
        nx.RequestError, match=r"'int8' is calibrated on photos of yours, and none were given: .*--images"
    ):
        nx.export(model, "onnx", tmp_path / "a", BUCKET, "int8")
    few = tmp_path / "few"
    digits.write_photos(few, 3)
    with pytest.raises(
        nx.RequestError, match=r"3 photos in .* are too few to calibrate dtype 'fp8': expected 16 or more"
    ):
        nx.export(model, "onnx", tmp_path / "a", BUCKET, "fp8", images=few)
    damaged = tmp_path / "damaged"
    digits.write_photos(damaged, 20)
    for index in range(5):
        (damaged / f"digit{index}.png").write_bytes(b"damaged")
    with pytest.raises(
        nx.RequestError, match=r"^15 photos in .*; digit0\.png is left out: not an image; .*; 2 more are$"
    ):
        nx.export(model, "onnx", tmp_path / "a", BUCKET, "fp8", images=damaged)
    assert not (tmp_path / "a").exists()


def test_packs_are_not_quantized_and_photos_are_no_matter(tmp_path: Path, photos: Path) -> None:
    """A vision tower takes packs alone: it is not told to leave photos out that int8 needs."""
    pytest.importorskip("transformers")
    for options in ({}, {"images": photos}):
        with pytest.raises(nx.RequestError, match="'int8' .* is a vision tower, .*: ask for float16 or bfloat16$"):
            nx.export(qwen3_vl(), "onnx", tmp_path / "a", BUCKET, "int8", **options)
    with pytest.raises(nx.RequestError, match="'int8' .* packed inputs were asked for: .* without packed=True"):
        nx.export(tiny.siglip(), "onnx", tmp_path / "a", BUCKET, "int8", packed=True)
    with pytest.raises(nx.RequestError, match="towers=image,text and dtype int8 were both given"):
        nx.export(tiny.siglip(), "onnx", tmp_path / "a", BUCKET, "int8", towers=("image", "text"))


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (("--target", "onnx"), 2, "none were given"),
        (("--target", "aot", "--images", "PHOTOS"), 2, "quantized is exported to onnx and trt"),
        (("--target", "compile", "--images", "PHOTOS"), 2, "quantized is exported to onnx and trt"),
        (("--target", "onnx", "--images", "PHOTOS"), 3, "pip install 'naflex_export[quant]'"),
    ],
    ids=["no-photos", "aot", "compile", "no-modelopt"],
)
def test_exit_codes(
    arguments: tuple[str, ...], code: int, says: str, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out_folder = photos.with_name("a")
    monkeypatch.setattr("naflex_export.graph.calibration.NEEDED", ("a_package_that_nobody_has",))
    given = [str(photos) if argument == "PHOTOS" else argument for argument in arguments]
    out = ("--weights", "random", "--bucket", "32:1,4,8", "--dtype", "int8", "--out", str(out_folder))
    done = CliRunner().invoke(export_command, ["tiny:siglip", *given, *out])
    assert done.exit_code == code, done.output
    assert says in " ".join(done.output.split())
    assert not out_folder.exists()


@pytest.fixture(scope="module")
def model() -> nn.Module:
    pytest.importorskip("modelopt")  # ahead of the training
    return digits.trained()


@pytest.mark.full
def test_a_trained_model_in_int8(model: nn.Module, tmp_path: Path) -> None:
    """Calibrated by ModelOpt, it reads what eager reads; with outliers it is refused, and passes as it is advised."""
    pytest.importorskip("modelopt")
    folder, kept = tmp_path / "photos", quantized.PLANTED
    digits.write_photos(folder, quantized.NUM_PHOTOS)
    plain = quantized.row_of(model, (quantized.PLAIN, "onnx", "int8", ""), folder, tmp_path / "plain")
    assert plain.passed and plain.right is not None and abs(plain.right - plain.eager_right) <= 6
    said = Manifest.read(tmp_path / "plain").build["quantized"]
    assert said["to"] == "int8" and said["photos"] == quantized.NUM_PHOTOS // 2 and len(said["layers"]) == 8
    assert said["by"].startswith("nvidia-modelopt 0.") and said["method"] == "max"
    again = nx.gate(nx.load(tmp_path / "plain"), model, images=folder)
    assert again.passed and again.neighbours is not None and again.neighbours.recall == plain.recall
    assert nx.gate(nx.load(tmp_path / "plain"), model).neighbours is None  # of three photos

    planted = digits.untrained().eval()
    planted.load_state_dict(model.state_dict())
    quantized.plant(planted)
    row = quantized.row_of(planted, (quantized.PLANTED_IN, "onnx", "int8", ""), folder, tmp_path / "planted")
    assert not row.passed and row.advice == f"--keep-unquantized {kept}" and not (tmp_path / "planted").exists()
    row = quantized.row_of(planted, (quantized.PLANTED_IN, "onnx", "int8", kept), folder, tmp_path / "planted")
    assert row.passed
    assert Manifest.read(tmp_path / "planted").precision == Precision("float32", (), "int8", (kept,))


@pytest.mark.full
@pytest.mark.parametrize(("target", "dtype"), [("trt", "int8"), ("trt", "fp8"), ("onnx", "fp8")])
def test_a_trained_model_where_a_stand_in_is_judged(target: str, dtype: str, model: nn.Module, tmp_path: Path) -> None:
    pytest.importorskip("modelopt")
    if target == "trt":
        pytest.importorskip("tensorrt_rtx")
    folder = tmp_path / "photos"
    digits.write_photos(folder, quantized.NUM_PHOTOS)
    row = quantized.row_of(model, (quantized.PLAIN, target, dtype, ""), folder, tmp_path / "a")
    assert row.passed and row.right is not None and abs(row.right - row.eager_right) <= 12
    if target == "onnx" and not torch.cuda.is_available():
        with pytest.raises(nx.BackendError, match="multiplies no FP8"):
            nx.load(tmp_path / "a")


def test_what_was_measured_is_what_the_page_says() -> None:
    found = record.newest(record.read(quantized.RESULTS), quantized.KEY)
    assert {tuple(row[name] for name in quantized.KEY) for row in found} == set(quantized.TRIED)
    assert {row["dtype"] for row in found} == set(QUANTIZED)
    assert quantized.table(found) in quantized.DOCS.read_text(encoding="utf-8")
    for row in found:
        assert row["passed"] == "True" or row["advice"] == f"--keep-unquantized {quantized.PLANTED}"


def test_a_report_says_how_many_neighbours_are_found() -> None:
    """In every format, and with its exit code: the gate fails by it alone."""
    said = "recall of the 8 nearest of 32 photos 50.0%, eager's 90.0%"
    found = replace(reports.passing(), neighbours=reports.failing().neighbours)
    assert not found.passed and found.failures == [f"neighbours: {said}: expected 85% or more"]
    assert said in as_markdown(found) and said in as_html(found).replace("&#x27;", "'")
    assert replace(found, neighbours=None).passed
