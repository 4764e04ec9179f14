"""A trained model: every artifact of it reads the digits that eager reads, and true artifacts raise no false alarm."""

from __future__ import annotations

import copy
import csv
import functools
import math
from collections.abc import Callable
from pathlib import Path

import digits
import false_alarms
import pytest
import record
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import naflex_export as nx
from naflex_export.precision import DTYPES
from naflex_export.serving.manifest import Manifest
from naflex_export.targets import NAMES

ARTIFACTS = [
    ("onnx", "float32"),
    ("onnx", "float16"),
    ("onnx", "bfloat16"),
    ("trt", "float32"),
    *(pytest.param(*one, marks=pytest.mark.full) for one in (("compile", "bfloat16"), ("aot", "float16"))),
]
"""Every target and every dtype; `tools/digits.py` measures all pairs, a minute or more each where code is compiled."""

NEEDS_TARGET = {"trt": "tensorrt_rtx"}

Inputs = tuple[Tensor, Tensor, Tensor]


@pytest.fixture(scope="module")
def model() -> nn.Module:
    return digits.trained()


@pytest.fixture(scope="module")
def expected(model: nn.Module) -> Tensor:
    return digits.logits_of(model)


@pytest.fixture(scope="module")
def artifact_of(model: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], Path]:
    """Return what exports the model by the command line, once for each target and dtype."""
    folder = tmp_path_factory.mktemp("digits")
    weights, photos = folder / "digits.safetensors", folder / "photos"
    save_file(model.state_dict(), weights)
    digits.write_photos(photos)

    @functools.cache
    def exported(target: str, dtype: str) -> Path:
        out = folder / f"{target}-{dtype}"
        digits.export(target, dtype, weights, photos, out)
        return out

    return exported


@pytest.mark.full
def test_the_model_has_learned_to_read(expected: Tensor) -> None:
    """Ten classes: chance is 10 %."""
    assert digits.num_right(expected) > 0.9 * len(expected)


@pytest.mark.full
@pytest.mark.parametrize(("target", "dtype"), ARTIFACTS)
def test_an_artifact_reads_what_eager_reads(
    target: str,
    dtype: str,
    expected: Tensor,
    artifact_of: Callable[[str, str], Path],
    record_property: Callable[[str, object], None],
) -> None:
    """An image may be read otherwise only where eager's two highest classes tie in the dtype; 6 of 597 at most."""
    if target in NEEDS_TARGET:
        pytest.importorskip(NEEDS_TARGET[target])
    artifact = artifact_of(target, dtype)
    reading = digits.read(artifact, expected)
    record_property("accuracy", reading.line)
    assert reading.holds
    assert abs(reading.right - reading.eager_right) <= digits.MARGIN[dtype]
    gate = Manifest.read(artifact).gate
    runs_here = torch.cuda.is_available() or (target != "trt" and (target, dtype) != ("onnx", "bfloat16"))
    judged, _, rounded = gate["judged"].partition("; rounded/: ")
    assert (judged == "the artifact, on cpu") == runs_here == (not gate["not_run"])
    assert bool(rounded) == ((target, dtype) == ("onnx", "float16") and not torch.cuda.is_available())


@pytest.mark.full
@pytest.mark.parametrize(
    "fault",
    [
        lambda patches, coord, valid: (patches, coord.flip(-1), valid),
        lambda patches, coord, valid: (patches, coord, torch.ones_like(valid)),
        lambda patches, coord, valid: (patches, torch.zeros_like(coord), valid),
    ],
    ids=["swapped-height-and-width", "dropped-mask", "no-coordinates"],
)
def test_a_wrong_candidate_reads_worse(fault: Callable[..., Inputs], model: nn.Module, expected: Tensor) -> None:
    """So that the accuracy of an artifact says something, in every dtype."""
    wrong = digits.logits_of(lambda *inputs: model(*fault(*inputs)))
    for dtype in DTYPES:
        reading = digits.Reading.of(wrong, expected, "wrong", dtype, "eager with a fault")
        assert not reading.holds and reading.right < reading.eager_right - 50


@pytest.mark.full
def test_a_resize_without_antialias_reads_otherwise(model: nn.Module, expected: Tensor) -> None:
    wrong = copy.deepcopy(model)
    wrong.embeds.pos_embed_antialias = False
    reading = digits.Reading.of(digits.logits_of(wrong), expected, "wrong", "bfloat16", "eager without antialias")
    assert not reading.holds and reading.changed > 10


def test_each_digit_has_a_grid_of_its_own() -> None:
    batches, labels = digits.test_set()
    assert sum(len(batch.grids) for batch in batches) == len(labels) == 597
    assert all(set(batch.grids) == set(digits.GRIDS) for batch in batches)
    assert len({grid.height / grid.width for grid in digits.GRIDS}) > 15
    assert (torch.bincount(labels) > 40).all()


@pytest.mark.full
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_true_artifact_passes_under_any_seed(
    dtype: str, model: nn.Module, artifact_of: Callable[[str, str], Path]
) -> None:
    """Of 20 here, and of 100 in `tools/false_alarms.py`."""
    row = false_alarms.judge_artifact(artifact_of("onnx", dtype), model, "digits", range(20))
    assert row.passed == row.seeds == 20, row.failures
    assert max(share for share in row.used.values() if not math.isnan(share)) < 1


@pytest.mark.full
def test_a_false_alarm_would_be_counted(model: nn.Module) -> None:
    """Of a candidate that is wrong in float32 by a thousandth, and right in float16."""

    def judge(dtype: str, seed: int) -> nx.GateReport:
        def candidate(*inputs: Tensor) -> Tensor:
            return (1.001 * model(inputs[0].float(), *inputs[1:])).to(inputs[0].dtype)

        return nx.gate(candidate, model, buckets=[digits.BUCKET], dtype=dtype, seed=seed)

    wrong, right = (
        false_alarms.judged_under([0, 1], functools.partial(judge, dtype), ("digits", "eager", dtype), "eager")
        for dtype in ("float32", "float16")
    )
    assert wrong.passed == 0 and wrong.used["relative_l2"] == pytest.approx(100, rel=0.01)
    assert right.passed == 2 and 0.1 < right.used["relative_l2"] < 0.13  # a tenth of the limit, and rounded inputs


def test_what_was_measured_had_no_false_alarm() -> None:
    """Of the 100 seeds of each target and dtype that `tools/false_alarms.py` ran."""
    with false_alarms.RESULTS.open(encoding="utf-8") as file:
        found = list(csv.DictReader(file))
    assert found
    for row in found:
        assert row["model"] in false_alarms.MODELS and row["dtype"] in false_alarms.DTYPES_OF[row["target"]]
        assert int(row["passed"]) == int(row["seeds"]) >= 100, row
        shares = [float(row[name]) for name in false_alarms.COLUMNS if row[name]]
        assert len(shares) >= 7 and max(shares) < 1
    newest = record.newest(found, false_alarms.KIND)
    assert false_alarms.table(newest) in digits.DOCS.read_text(encoding="utf-8")


def test_every_artifact_was_measured_and_reads_what_eager_reads() -> None:
    """As `tools/digits.py` wrote it down: the rest of what is not exported here every time."""
    found = record.newest(record.read(digits.RESULTS), ("target", "dtype"))
    assert {(row["target"], row["dtype"]) for row in found} == {(target, dtype) for target in NAMES for dtype in DTYPES}
    for row in found:
        assert int(row["changed_untied"]) == 0 and int(row["changed"]) <= digits.MARGIN[row["dtype"]], row
        assert int(row["eager_right"]) > 0.9 * int(row["images"])
