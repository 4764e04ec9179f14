"""The figures of docs/deploy.md are those of the rows."""

from __future__ import annotations

import bench_deploy
from record import RESULTS, read


def test_the_committed_figures_are_of_the_rows() -> None:
    said = bench_deploy.figures(read(RESULTS / "bench_deploy.csv"))
    assert f"{bench_deploy.BEGIN}\n{said}\n{bench_deploy.END}" in bench_deploy.PAGE.read_text(), (
        "run python tools/bench_deploy.py page"
    )


def test_the_newest_row_of_each_kind_is_shown() -> None:
    row = dict.fromkeys(bench_deploy.FIELDS, "") | {"what": "first vector", "detail": "onnx", "device": "CPU"}
    rows = [{**row, "date": f"2026-11-2{day}", "value": str(day)} for day in (1, 2)]
    assert "| first vector | onnx | 2 |" in bench_deploy.figures(rows)
    assert "| first vector | onnx | 1 |" not in bench_deploy.figures(rows)
