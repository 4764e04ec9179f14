"""transformers' own ONNX export: rejected where it has the batch baked in, and passed since it has not."""

from __future__ import annotations

from pathlib import Path

import judge_transformers_export as tool
import pytest
import record

transformers = pytest.importorskip("transformers")


def release(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".")[:2])


def test_the_rows_say_which_releases_pass() -> None:
    rows = record.newest(record.read(tool.ROWS), ("transformers",))
    assert {"5.23.0", "5.24.0"} <= {row["transformers"] for row in rows}
    for row in rows:
        assert (row["passed"] == "true") == (release(row["transformers"]) >= (5, 24)), row


@pytest.mark.full
def test_the_release_that_is_installed_is_judged(tmp_path: Path) -> None:
    by, verdict = tool.judged(tmp_path)
    is_right = release(transformers.__version__) >= (5, 24)
    assert verdict.passed == is_right, verdict.failures
    if is_right:
        assert by == "OnnxExporter" and not verdict.unanswered and not any(one.refused for one in verdict.asked)
    else:
        assert not any(not one.exceeded for one in verdict.cases)
