"""docs/reliability.md is what the rows say, and they say that nothing went wrong."""

from __future__ import annotations

import fuzz_artifacts
import fuzz_requests
import kill_exports
import record
import reliability_page
import steady_runner


def test_the_page_is_written_from_the_rows() -> None:
    text = reliability_page.PAGE.read_text(encoding="utf-8")
    assert reliability_page.page(text) == text, "python tools/reliability_page.py --write"


def test_the_rows_hold_no_fault() -> None:
    for row in record.read(fuzz_artifacts.RESULTS):
        assert [row[fault] for fault in ("silent_difference", "traceback", "hang", "crash")] == ["0"] * 4, row
    for row in record.read(fuzz_requests.RESULTS):
        assert [row[fault] for fault in ("refused_in_vain", "different", "traceback")] == ["0"] * 3, row
    for row in record.read(kill_exports.RESULTS):
        assert [row[fault] for fault in ("mixed", "absent", "errors", "left_over")] == ["0"] * 4, row


def test_memory_stays_flat_in_the_rows() -> None:
    rows = record.read(steady_runner.RESULTS)
    for target in ("aot", "compile", "onnx"):
        memory = [int(row["memory_mib"]) for row in rows if row["target"] == target]
        assert len(memory) == 10 and max(memory) - min(memory) <= 1, target


def test_tables_add_up() -> None:
    rows = [
        {"date": "d", "subject": "onnx", "damage": "a file", **dict.fromkeys(fuzz_artifacts.OUTCOMES, "2")},
        {"date": "d", "subject": "aot", "damage": "a file", **dict.fromkeys(fuzz_artifacts.OUTCOMES, "3")},
    ]
    made = reliability_page.fuzz_table(rows)
    assert made.startswith("35 cases, of aot, onnx, d:") and "| all | 5 |" in made
    assert reliability_page.fuzz_table([]) == reliability_page.kill_table([]) == "Not measured yet."
    counts = dict.fromkeys(("count", *fuzz_requests.OUTCOMES), "4")
    twice = [{"target": "aot", "torch": "2.14.1+cu130", **counts}] * 2
    assert "| aot | 2.14.1 | 8 | 8 |" in reliability_page.requests_table(twice)
