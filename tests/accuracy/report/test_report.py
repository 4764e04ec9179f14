"""The gate's report in the formats that machines and CI systems read."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree
from xml.etree.ElementTree import Element

import pytest
import reports

import naflex_export as nx
from naflex_export.accuracy.metrics import LIMITS
from naflex_export.accuracy.report.formats import as_json, as_junit, as_markdown, write
from naflex_export.accuracy.report.phrases import baseline_lines, distance, limit_rows, number, percent, rerun_command
from naflex_export.accuracy.results import GateReport

DOCS = Path(__file__).parents[3] / "docs" / "gate.md"
HOSTILE = "<b>|`x`</b> [a](b)\n# __init__\x1b[31m"


def long() -> GateReport:
    """Return a failed report of many cases."""
    cases = tuple(reports.case(f"mixed-24-seed{seed}", {"4x6": 0.5 if seed % 2 else 1e-7}) for seed in range(40))
    return replace(reports.passing(), results=cases)


@pytest.mark.parametrize(
    ("value", "written"),
    [
        (3.14e-7, "3.1e-7"),
        (1e-4, "1e-4"),
        (0.2, "2e-1"),
        (0.0, "0"),
        (1.5, "1.5"),
        (286.0, "286"),
        (65504.0, "65504"),
        (3.4e38, "3.4e38"),
        (-2e-3, "-2e-3"),
        (math.nan, "NaN"),
        (math.inf, "infinite"),
    ],
)
def test_numbers_are_short(value: float, written: str) -> None:
    assert number(value) == written


def test_shares_are_rounded_down_and_cosines_are_never_above_one() -> None:
    assert [percent(share) for share in (1.0, 0.9996, 0.96, 0.85, 2 / 3, None)] == [
        "100%",
        "99.9%",
        "96%",
        "85%",
        "66.6%",
        "",
    ]
    assert percent(math.nan) == "NaN"
    assert [distance(cosine) for cosine in (1.0, 1 + 1e-15, 1 - 1e-6, math.nan)] == ["0", "0", "1e-6", "NaN"]


def test_markdown_begins_with_what_matters() -> None:
    passed, failed = as_markdown(reports.passing()), as_markdown(reports.failing())
    assert passed.startswith("### Accuracy gate: passed\n\n2 of 2 cases are within the limits of float32;")
    assert "FAIL" not in passed
    order = ["**FAILED**", "> Not run: no GPU is here", "**First deviation:**", "- photos-24-0: the candidate raised"]
    order += [
        "--case mixed-24-seed0",
        "| `max_share`: largest difference",
        "eager in float16",
        "Worst of each bucket",
        "| `mixed-24-seed0`",
    ]
    assert sorted(order, key=failed.index) == order
    assert "blocks.1.attn, relative L2 2.0e-01 (floor 2.0e-03), on mixed-24-seed0; keep" in failed
    assert "| `features` | 2e-1 | 7e-4 | 286x | 2x, 0.01 | **FAIL** |" in failed
    assert "| `24:1,4,8` | 4 | 4 | 2 | 2 |" in failed
    assert "| limit |  |  | float16 | 2e-2 | 1e-2 | 4.5e-4 |  |" in failed
    assert "| **2** | **2** |" in failed, "what exceeds its limit is bold"
    assert "| Model | naflexvit_base_patch16_siglip |" in failed
    assert "\n- all cases [features]: error 0.2 is more than 2 times eager's own 0.0007\n" in failed


def test_markdown_folds_what_is_long() -> None:
    text = as_markdown(long())
    above, _, below = text.partition("<details><summary>All 40 cases</summary>")
    assert "<details><summary>8 more</summary>" in above
    assert above.count("**FAIL** |\n") == 12 + 3 and "`mixed-24-seed0`" not in above  # and three measures
    assert all(f"| `mixed-24-seed{seed}` |" in below for seed in range(40))
    assert text.count("<details>") == text.count("</details>") == 3
    assert all(re.search(r"</summary>\n\n", part) for part in text.split("<details>")[1:]), (
        "Markdown needs a blank line"
    )


def test_markdown_shows_text_as_text() -> None:
    failed = replace(reports.failing(), problems=(HOSTILE,), judged=HOSTILE)
    failed = replace(failed, results=(replace(failed.results[0], case=HOSTILE, output="|"),))
    text = as_markdown(failed)
    assert "\n- \\<b>\\|\\`x\\`\\</b> [a\\](b) # \\_\\_init\\_\\_\N{REPLACEMENT CHARACTER}[31m\n" in text
    assert "\x1b" not in text and "\n# __init__" not in text.replace("```sh", "").split("Worst of all")[1]
    rows = [line for line in text.splitlines() if line.startswith("| `")]
    assert len({len(re.findall(r"(?<!\\)\|", row)) for row in rows if "<b>" in row}) == 1


@pytest.mark.parametrize("make", [reports.passing, reports.failing, reports.not_finite, reports.empty, long])
def test_every_row_of_a_markdown_table_has_its_columns(make: Callable[[], GateReport]) -> None:
    for block in as_markdown(make()).split("\n\n"):
        rows = [line for line in block.splitlines() if line.startswith("|")]
        assert len({len(re.findall(r"(?<!\\)\|", row)) for row in rows}) <= 1


def suite_of(report: GateReport) -> Element:
    return ElementTree.fromstring(as_junit(report))


def test_junit_counts_and_names_what_failed() -> None:
    good, bad = suite_of(reports.passing()), suite_of(reports.failing())
    assert (good.get("tests"), good.get("failures"), good.get("skipped")) == ("3", "0", "0")
    assert (bad.get("tests"), bad.get("failures"), bad.get("skipped")) == ("7", "5", "1")
    failed = {case.get("name"): case.find("failure") for case in bad.iter("testcase")}
    assert {name for name, failure in failed.items() if failure is not None} == {
        "behaviour: NaN in padding",
        "mixed-24-seed0 [features]",
        "photos-24-0",
        "invariance: padding's content [24]",
        "baseline [features]",
    }
    failure = failed["mixed-24-seed0 [features]"]
    assert failure is not None and "relative_l2 2 > 0.01" in str(failure.get("message"))
    skipped = bad.find("testcase[@name='the artifact itself']/skipped")
    assert skipped is not None and skipped.get("message") == "not run: no GPU is here"
    where = "first deviation: blocks.1.attn, relative L2 2.0e-01 (floor 2.0e-03), on mixed-24-seed0"
    assert where in str(bad.findtext("system-out"))
    properties = {found.get("name"): found.get("value") for found in bad.iter("property")}
    assert properties["Target"] == "onnx" and properties["Dtype"] == "float16"


def test_junit_fails_where_nothing_was_compared() -> None:
    suite = suite_of(reports.empty())
    assert (suite.get("tests"), suite.get("failures")) == ("1", "1")


def test_junit_holds_no_character_that_xml_cannot() -> None:
    suite = suite_of(replace(reports.failing(), problems=(f"photos-24-0 [features]: {HOSTILE}\0\ud800",)))
    failure = suite.find("testcase[@name='photos-24-0 [features]']/failure")
    assert failure is not None and "<b>|`x`</b> [a](b) # __init__" in str(failure.get("message"))


def test_failed_cases_are_run_again_by_name() -> None:
    assert rerun_command(reports.passing()) == ""
    command = rerun_command(replace(long(), problems=("patch8/photos-24-0 [tokens]: raised: it did",)), most=2)
    assert command == "naflex-gate ARTIFACT --case patch8/photos-24-0 --case mixed-24-seed1"


def fields_in(value: Any, path: str = "the report") -> set[tuple[str, str]]:
    """Return each object's path and field in plain JSON values, but for objects keyed by a file or a package."""
    if isinstance(value, list):
        return set().union(*(fields_in(item, f"{path}[]") for item in value))
    if not isinstance(value, dict) or path in ("skipped_photos", "artifact.versions"):
        return set()
    inside = {name: name if path == "the report" else f"{path}.{name}" for name in value}
    return {(path, name) for name in value}.union(*(fields_in(value[name], inside[name]) for name in value))


def documented_fields() -> set[tuple[str, str]]:
    section = DOCS.read_text(encoding="utf-8").partition("### report.json\n")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| ([^|]*) \| `(\w+)` \|", section, flags=re.MULTILINE)
    return {(path, name) for paths, name in rows for path in paths.replace("`", "").split(", ")}


@pytest.mark.parametrize("make", [reports.passing, reports.failing, reports.not_finite, reports.empty])
def test_json_holds_every_field(make: Callable[[], GateReport]) -> None:
    report = make()
    loaded = json.loads(as_json(report), parse_constant=pytest.fail)
    assert loaded["schema"] == 2 and loaded["passed"] == report.passed and loaded["failures"] == report.failures
    assert {field.name for field in fields(report)} <= set(loaded)


def test_the_docs_name_every_field_of_the_json_and_no_other() -> None:
    loaded = json.loads(as_json(reports.failing()))
    assert fields_in(loaded) == documented_fields()


def test_the_suffix_says_the_format(tmp_path: Path) -> None:
    for suffix, start in {".json": "{", ".md": "### ", ".xml": "<?xml", ".html": "<!doctype html>"}.items():
        write(reports.failing(), tmp_path / "new" / f"gate{suffix}")
        assert (tmp_path / "new" / f"gate{suffix}").read_text(encoding="utf-8").startswith(start)
    with pytest.raises(nx.RequestError, match="ends in '.txt': expected one of .html, .json, .md, .xml"):
        write(reports.failing(), tmp_path / "gate.txt")
    (tmp_path / "gate.md").mkdir()
    with pytest.raises(nx.RequestError, match="gate.md' cannot be written: it is a folder, expected a file"):
        write(reports.failing(), tmp_path / "gate.md")


def test_a_measure_above_its_limit_says_why_it_holds() -> None:
    """Eager in bfloat16 is half as far there."""
    near = reports.case("largest-batch-24-seed9", {"3x7": 0.05}, "bfloat16")
    held = replace(near, exceeded=(), baseline=replace(near.measures, relative_l2=0.03, max_share=0.06))
    report = replace(reports.passing(), dtype="bfloat16", limits=LIMITS["bfloat16"], results=(held,))
    rows = {row.measure: row for row in limit_rows(report)}
    assert rows["relative_l2"].holds and rows["relative_l2"].limit.endswith(", or 2 x eager's")
    assert not rows["worst_cosine"].limit.endswith("eager's")
    assert baseline_lines(report) == [
        "largest-batch-24-seed9: above a limit, and not 2 times as far as eager bfloat16",
    ]
    assert baseline_lines(reports.passing()) == []
