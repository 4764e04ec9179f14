"""Comparing two artifacts by photos: what is found again, and every way in which a request can be wrong."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import onnx
import pytest
from artifacts import edit, fill_pooling
from click.testing import CliRunner
from onnx import numpy_helper
from PIL import Image

import naflex_export as nx
from naflex_export.cli.gate import gate_command
from naflex_export.reindex.neighbours import searched, unit
from naflex_export.serving.manifest import Manifest

COUNT = 30


@pytest.fixture(scope="module")
def old(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fill_pooling(tmp_path_factory.mktemp("compare") / "old")


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("compare") / "photos"
    folder.mkdir()
    draw = np.random.default_rng(0)
    for index in range(COUNT):
        coarse = draw.integers(0, 256, (2, 3, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize((14, 11), Image.Resampling.BICUBIC).save(folder / f"{index:02}.png")
    return folder


def bent(folder: Path, share: float) -> Path:
    """Return an artifact like `fill_pooling`'s whose weights are off by a share of their size."""
    fill_pooling(folder)
    model = onnx.load(folder / "model.onnx")
    (weights,) = (one for one in model.graph.initializer if one.name == "weights")
    values = numpy_helper.to_array(weights)
    noise = np.random.default_rng(1).standard_normal(values.shape).astype(np.float32)
    weights.CopyFrom(numpy_helper.from_array(values + share * noise, "weights"))
    onnx.save(model, folder / "model.onnx")
    Manifest.read(folder).write(folder)
    return folder


def nearest(photo: int, queries: Any, index: Any, k: int) -> set[int]:
    others = (one for one in range(len(index)) if one != photo)
    return set(sorted(others, key=lambda one: -float(queries[photo] @ index[one]))[:k])


def obvious(old_NC: Any, new_NC: Any, k: int) -> tuple[list[float], list[float]]:
    """Return recall and overlap of each photo, by sorting."""
    found: tuple[list[float], list[float]] = ([], [])
    for photo in range(len(old_NC)):
        truth = nearest(photo, old_NC, old_NC, k)
        found[0].append(len(truth & nearest(photo, new_NC, old_NC, k)) / k)
        found[1].append(len(truth & nearest(photo, new_NC, new_NC, k)) / k)
    return found


def test_recall_and_overlap_are_what_sorting_says() -> None:
    draw = np.random.default_rng(0)
    old_NC = draw.standard_normal((60, 8)).astype(np.float32)
    new_NC = old_NC + 0.4 * draw.standard_normal(old_NC.shape).astype(np.float32)
    sides = unit(old_NC), unit(new_NC)
    recall, overlap = obvious(*sides, 5)
    found = searched(*sides, 5)
    np.testing.assert_allclose(found.recall, recall)
    np.testing.assert_allclose(found.overlap, overlap)
    assert 0.3 < np.mean(recall) < 0.95 and recall != overlap
    assert (np.diff(found.old_cosines, axis=1) <= 0).all() and not (found.new == np.arange(60)[:, None]).any()


def test_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    sides = [unit(np.random.default_rng(seed).standard_normal((23, 4)).astype(np.float32)) for seed in (0, 1)]
    whole = searched(*sides, 3)
    monkeypatch.setattr("naflex_export.reindex.neighbours.BLOCK", 50)
    for one, other in zip(vars(whole).values(), vars(searched(*sides, 3)).values(), strict=True):
        np.testing.assert_allclose(one, other)


def test_copies_of_a_photo_may_come_in_any_order() -> None:
    draw = np.random.default_rng(0)
    old_NC = unit(np.repeat(draw.standard_normal((4, 6)), 8, axis=0).astype(np.float32))
    jitter = unit((old_NC + 1e-8 * draw.standard_normal(old_NC.shape)).astype(np.float32))
    assert searched(old_NC, jitter, 3).recall.min() == 1


def test_what_has_no_direction_finds_nothing() -> None:
    vectors = np.random.default_rng(0).standard_normal((9, 4)).astype(np.float32)
    for value in (0.0, np.nan):
        dead = vectors.copy()
        dead[2] = value
        for sides in ((vectors, dead), (dead, vectors)):
            found = searched(*map(unit, sides), 2)
            assert found.recall[2] == found.overlap[2] == 0 and not found.finds_itself[2]


def test_an_artifact_finds_what_it_embedded(old: Path, photos: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "naflex_export")
    found = nx.compare(old, old, photos, k=5, progress=True)
    assert caplog.messages[0] == "compare begins" and "searching" in caplog.messages
    assert found.passed and found.recall == found.overlap == found.finds_itself == 1
    assert found.photos == COUNT and not found.differences and min(found.cosines) == pytest.approx(1)
    assert found.moves()[0] == COUNT and found.quantiles()["least"] == pytest.approx(1)
    found.raise_for_failure()


def test_the_command_line_tells_an_index_that_must_be_built_anew(old: Path, photos: Path, tmp_path: Path) -> None:
    new = bent(tmp_path / "new", 2.0)
    edit(new, lambda content: content["preprocessing"].update(interpolation="bilinear"))
    paths = [tmp_path / f"r{suffix}" for suffix in (".html", ".json", ".md", ".xml")]
    code, said = run(old, new, "--photos", photos, "--k", 5, *(word for path in paths for word in ("--report", path)))
    assert code == 1 and "the index must be built anew" in said and "recall@5 is 0." in said
    assert "preprocessing interpolation: bicubic in the old, bilinear in the new" in said
    page, data, summary, tests = (path.read_text(encoding="utf-8") for path in paths)
    assert "<script" not in page and "http" not in page and page.count("data:image/jpeg;base64,") == 12 * 2 * 6
    assert 'class="alone"' in page
    told = json.loads(data)
    assert (
        told["schema"] == 1
        and not told["passed"]
        and len(told["worst"]) == 12
        and sum(one["photos"] for one in told["moves"]) == COUNT
    )
    assert told["recall"] == pytest.approx(nx.compare(old, new, photos, k=5).recall) and told["recall"] < 0.95
    worst = [one["recall"] for one in told["worst"]]
    assert worst == sorted(worst) and worst[0] < told["recall"]
    assert "**the index must be built anew**" in summary and "photo of which least" in summary
    suite = ElementTree.fromstring(tests)
    assert suite.get("failures") == "1" and len(suite.findall("testcase")) == 3
    least = str(told["recall"] - 0.01)
    assert run(old, new, "--photos", photos, "--k", 5, "--min-recall", least)[0] == 0


def run(*words: object) -> tuple[int, str]:
    done = CliRunner().invoke(gate_command, ["compare", *(str(word) for word in words)])
    return done.exit_code, " ".join(done.output.split())


def test_bad_photos_are_counted_and_named(old: Path, photos: Path, tmp_path: Path) -> None:
    (tmp_path / "broken.jpg").write_bytes(b"no photo")
    (tmp_path / "cut.png").write_bytes((photos / "00.png").read_bytes()[:60])
    page, tests = tmp_path / "r.html", tmp_path / "r.xml"
    code, said = run(old, old, "--photos", photos, "--photos", tmp_path, "--report", page, "--report", tests)
    assert code == 0 and "2 photos cannot be read, and are left out:" in said
    assert "broken.jpg: " in said and "cut.png: " in said and f"of {COUNT} photos" in said
    assert ElementTree.parse(tests).getroot().get("skipped") == "2" and "broken.jpg" in page.read_text()
    words = ["compare", old, old, "--photos", photos, "--photos", tmp_path, "--json"]
    told = CliRunner().invoke(gate_command, [str(word) for word in words])
    found = json.loads(told.stdout)
    assert found["passed"] and len(found["bad_photos"]) == 2 and "the index may be kept" in told.stderr


def test_vectors_that_are_no_number_fail(old: Path, photos: Path, tmp_path: Path) -> None:
    new = bent(tmp_path / "new", float("nan"))
    found = nx.compare(old, new, photos, k=5, min_recall=0.01)
    assert not found.passed and found.recall == 0
    assert f"the new artifact's vectors of {COUNT} photos are zero or not finite" in found.failures[-1]
    with pytest.raises(nx.GateFailure, match="the index must be built anew"):
        found.raise_for_failure()


def test_a_request_that_cannot_be_met_says_why(old: Path, photos: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    code, said = run(old, old, "--photos", tmp_path / "empty")
    assert code == 2 and "there is no photo in" in said
    code, said = run(old, old, "--photos", photos, "--k", 15)
    assert code == 2 and "there are 30 photos that can be read: expected more than 30" in said
    for least in ("0", "1.5", "nan"):
        code, said = run(old, old, "--photos", photos, "--min-recall", least)
        assert code == 2 and "expected a share above 0 and up to 1" in said
    assert run(old, tmp_path / "nowhere", "--photos", photos)[0] == 2
    code, said = run(old, old, "--photos", photos, "--report", old / "r.html")
    assert code == 2 and "lies in the artifact" in said
    assert run(old, old, "--photos", photos, "--report", tmp_path / "r.pdf")[0] == 2
    narrow = narrowed(tmp_path / "narrow")
    code, said = run(old, narrow, "--photos", photos)
    assert code == 2 and "gives vectors of 32 values" in said and "of 16: expected the same width" in said


def narrowed(folder: Path) -> Path:
    """Return an artifact like `fill_pooling`'s with vectors of 16 values."""
    fill_pooling(folder)
    model = onnx.load(folder / "model.onnx")
    (weights,) = (one for one in model.graph.initializer if one.name == "weights")
    weights.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weights)[:, :16].copy(), "weights"))
    model.graph.output[0].type.tensor_type.shape.dim[1].dim_value = 16
    onnx.save(model, folder / "model.onnx")
    edit(folder, lambda content: content["outputs"][0].update(shape=["batch", 16]))
    Manifest.read(folder).write(folder)
    return folder


def test_onnx_artifacts_are_compared_without_torch(old: Path, photos: Path) -> None:
    code = (
        "import sys; sys.modules['torch'] = None; import naflex_export as nx; "
        "from naflex_export.reindex.report_formats import as_html; "
        "found = nx.compare(sys.argv[1], sys.argv[1], sys.argv[2], k=5); print(found.recall, len(as_html(found)) > 999)"
    )
    done = subprocess.run([sys.executable, "-c", code, old, photos], capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["1.0", "True"], done.stderr
