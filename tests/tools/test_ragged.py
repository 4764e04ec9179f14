"""The page on packs of unequal images: it says what the rows say, and calls wrong what is."""

from __future__ import annotations

from typing import Any

import ragged
import record


def row(pack: str, **changed: str) -> dict[str, Any]:
    versions = dict.fromkeys(ragged.PACKAGES, "1")
    said = {"date": "2026-11-27", "family": "glm4v", "exporter": "transformers", "traced_on": "unequal"}
    return {**versions, **said, "pack": pack, "error": "2.0e-07", "refused": "", **changed}


def test_the_page_is_that_of_its_rows() -> None:
    text = ragged.PAGE.read_text(encoding="utf-8")
    assert ragged.page(text) == text, "python tools/ragged.py --page"
    measured = {(one["family"], one["exporter"]) for one in record.read(ragged.ROWS)}
    assert {exporter for _, exporter in measured} == set(ragged.EXPORTERS)


def test_rows_say_what_is_wrong_and_what_was_refused() -> None:
    first, equal, unequal = ragged.PACKS
    rows = [row(first), row(equal, error="2.0e-07"), row(unequal, error="1.7e-01")]
    made = ragged.rows_table(rows)
    assert "| glm4v | transformers' OnnxExporter | 1 | unequal | right, 2.0e-07 | right, 2.0e-07 |" in made
    assert "**wrong, 1.7e-01** |" in made and "refuse" not in made
    refused = [row(pack, traced_on="", error="", refused="ValueError: no") for pack in ragged.PACKS]
    made = ragged.rows_table([*rows, *refused])  # the newest count
    assert "| - | refused | refused | refused |" in made and made.count("ValueError: no") == 1
    assert "| fails |" in ragged.rows_table([row(first), row(equal), row(unequal, error="", refused="RuntimeError: x")])
    assert ragged.rows_table([]) == "Not measured yet."
