"""A model trained from scratch on drawings and captions: its artifact classifies as eager does, never-seen drawings."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("transformers")

import digest_cost
import record
import zero_shot


@pytest.mark.full
def test_an_artifact_is_as_accurate_as_eager_on_labels_nobody_trained(tmp_path: Path) -> None:
    model = zero_shot.trained(steps=150)
    pictures, _ = zero_shot.test_set(96)
    expected = zero_shot.eager_logits(model, pictures)
    zero_shot.save(model, tmp_path / "shapes")
    zero_shot.write_photos(pictures, tmp_path / "photos")
    zero_shot.export(tmp_path / "shapes", "onnx", "float32", tmp_path / "photos", tmp_path / "a")
    found = zero_shot.read(tmp_path / "a", "onnx", "float32", pictures, expected)
    assert found.right == found.eager_right and found.changed == 0 and found.largest < 1e-5
    assert found.right >= 3 * 96 / 24  # three times what chance gives


def test_the_table_of_the_page_is_of_the_rows() -> None:
    rows = record.read(zero_shot.RESULTS)[-len(zero_shot.RUNS) :]
    page = zero_shot.DOCS.read_text()
    assert f"{zero_shot.BEGIN}\n{zero_shot.table(rows)}\n{zero_shot.END}" in page, "run python tools/zero_shot.py"
    for row in rows:
        assert row["right"] == row["eager_right"] or row["dtype"] != "float32"


def test_the_cost_of_hashes_on_the_page_is_of_the_rows() -> None:
    page = digest_cost.PAGE.read_text()
    assert f"{digest_cost.BEGIN}\n{digest_cost.told()}\n{digest_cost.END}" in page, "run python tools/digest_cost.py"
    assert all(float(row["ratio"]) < 0.02 for row in record.read(digest_cost.ROWS)), (
        "the page says that they cost little"
    )
