"""What is shown while work goes on: where nobody watches, in a library's log, and on a narrow screen."""

from __future__ import annotations

import io
import logging
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import reports
import tiny
from rich.console import Console

import naflex_export as nx
from naflex_export.accuracy.report.formats import table
from naflex_export.accuracy.report.tables import baseline_table
from naflex_export.accuracy.results import MOST_FAILURES, BaselineResult, Location
from naflex_export.cli.console import Lines, out
from naflex_export.export_request import ExportRequest
from naflex_export.exporter import Exporter
from naflex_export.graph.build_settings import BuildSettings
from naflex_export.precision import Precision
from naflex_export.progress import Stages


def test_a_log_gets_plain_lines_and_none_ahead_of_the_interval() -> None:
    log = io.StringIO()
    stages = Stages(Console(file=log, width=200), interval=0.05)
    with stages.stage("load"):
        pass
    assert log.getvalue() == ""
    with stages.stage("gate"):
        stages.announce("case 4 of 9: mixed-256 [seed0]")
        time.sleep(0.3)
    lines = log.getvalue().splitlines()
    assert 1 <= len(lines) <= 6
    assert lines[0] == "  gate: case 4 of 9: mixed-256 [seed0] (0 s)"
    assert list(stages.seconds) == ["load", "gate"]


def test_an_export_counts_its_stages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The target builds nothing here: what is counted is the export's own."""
    built: list[str] = []

    def build(program: object, folder: Path, settings: BuildSettings) -> dict[str, str]:
        settings.announce("translating")
        time.sleep(0.1)
        built.append(folder.name)
        raise nx.BuildError("enough")

    monkeypatch.setattr("naflex_export.targets.compile.build", build)
    log = io.StringIO()
    stages = Stages(Console(file=log, width=200), interval=0.02)
    request = ExportRequest("compile", tmp_path / "a", [nx.Bucket(4)], Precision("float32"))
    with pytest.raises(nx.BuildError, match="enough"):
        Exporter(tiny.shallow(), request, stages).run()
    lines = log.getvalue().splitlines()
    assert built and all(line.startswith(("  1/4 trace (", "  2/4 build: translating (")) for line in lines)
    assert any(line.startswith("  2/4") for line in lines)


def test_short_stages_one_after_the_other_are_not_silent() -> None:
    """The interval is one of lines, and not of stages, each of which may be shorter."""
    log = io.StringIO()
    stages, started = Stages(Console(file=log, width=200), interval=0.25), time.monotonic()
    for number in range(10):
        with stages.stage(f"stage {number}"):
            time.sleep(0.1)
    assert 2 <= len(log.getvalue().splitlines()) <= (time.monotonic() - started) / 0.25


def test_a_pipe_that_nobody_reads_ends_nothing() -> None:
    """Neither the work, nor what is told later, nor standard output, which rich would send nowhere."""
    code = (
        "import time; from naflex_export import progress; progress.INTERVAL = 0.01\n"
        "stages = progress.shown_progress()\n"
        "with stages.stage('gate'):\n    time.sleep(0.2)\n"
        "with stages.stage('build'):\n    time.sleep(0.2)\n"
        "print('all of it')\n"
    )
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=write, text=True, check=False)
    os.close(write)
    assert done.returncode == 0 and done.stdout == "all of it\n"


def test_a_terminal_shows_the_stage_and_how_far_it_is() -> None:
    screen = io.StringIO()
    stages = Stages(Console(file=screen, force_terminal=True, width=100))
    with stages.stage("gate"):
        stages.announce("case 4 of 9: mixed-256-seed0")
        time.sleep(0.2)
    shown = screen.getvalue()
    assert "case 4 of 9: mixed-256-seed0" in shown and "done" in shown


def test_a_gate_from_python_counts_its_cases(
    caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.DEBUG, "naflex_export")
    model = tiny.siglip()
    asked = ("mixed-9-seed0", "one-row-9-seed0")
    report = nx.gate(model, model, buckets=9, cases=asked, effort="quick", progress=True)
    assert report.passed
    assert [message for message in caplog.messages if message.startswith("case")] == [
        "case 1 of 2: mixed-9-seed0",
        "case 2 of 2: one-row-9-seed0",
    ]
    assert "gate begins" in caplog.messages
    assert capsys.readouterr() == ("", "")  # it was over before there was anything to say


@pytest.mark.usefixtures("survey")
def test_a_gate_says_where_it_is_from_the_first_call_to_the_last(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "naflex_export")
    model = tiny.shallow()
    assert nx.gate(model, model, buckets=[nx.Bucket(4, (1, 1, 2))]).passed
    said = caplog.messages
    count = next(line.rpartition(" of ")[2].partition(" ")[0] for line in said if line.startswith("survey: batch 1 "))
    places = ["first call", "case 1 of", "invariances in", "survey: eager's answers", "survey: batch 1 of"]
    places += [f"survey: batch {count} of {count} in 4:1,1,2", "survey: the same inputs again"]
    found = [next(place for place, line in enumerate(said) if line.startswith(start)) for start in places]
    assert found == sorted(found) and int(count) > 1


@pytest.mark.parametrize("width", [60, 80, 200])
def test_the_verdict_is_never_cut(width: int) -> None:
    screen = io.StringIO()
    console = Console(file=screen, width=width)
    report = reports.failing()
    console.print(table(report, width))
    lines = screen.getvalue().splitlines()
    assert max(map(len, lines)) <= width
    failed = sum(bool(result.exceeded) for result in report.results)
    assert sum(line.rstrip().endswith("FAIL") for line in lines) == failed > 0


@pytest.mark.parametrize("width", [60, 70, 80, 90, 120])
def test_no_name_of_a_case_is_broken_in_the_midst_of_a_word(width: int) -> None:
    """Of a classifier, whose table is the widest: it has a column of top-1 too."""
    one = reports.failing().results[0]
    measures = replace(one.measures, top1_agreement=1.0)
    cases = ("largest-batch-16-seed0", "one-column-16-seed0", "every-grid-16-10-seed0")
    grids = ("15x1", "4x4", "2x8", "1x16")
    results = tuple(replace(one, case=case, bucket="16:1,2,4", grids=grids, measures=measures) for case in cases)
    screen = io.StringIO()
    console = Console(file=screen, width=width)
    console.print(table(replace(reports.failing(), results=results), width))
    lines = screen.getvalue().splitlines()
    assert all(any(line.startswith(f" {name} ") for line in lines) for name in ("largest-batch", "one-column"))
    assert max(map(len, lines)) <= width
    assert ("1x16" in screen.getvalue() or "images, grids" in screen.getvalue()) == (width >= 80)
    assert ("max abs" in screen.getvalue()) == (width >= 90)


def test_the_console_is_as_wide_as_a_test_says(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whichever test of a process prints first, and whatever the terminal's width was that the tests began in."""
    monkeypatch.setenv("COLUMNS", "93")
    assert out.width == 93
    monkeypatch.delenv("COLUMNS")
    assert out.width != 93


@pytest.mark.parametrize("terminal", [True, False])
def test_a_note_is_broken_between_words_on_a_terminal_and_nowhere_else(terminal: bool) -> None:
    screen = io.StringIO()
    console = Lines(file=screen, force_terminal=terminal, width=40, no_color=True, color_system=None)
    said = "effort: quick, seed 0: without one-row, square, smallest, padding, large-values, largest-batch"
    console.print(said, soft_wrap=True, highlight=False)
    lines = screen.getvalue().splitlines()
    assert " ".join(line.strip() for line in lines) == said
    assert (len(lines) > 1 and max(map(len, lines)) <= 40) if terminal else len(lines) == 1


def test_a_ratio_that_is_no_number_has_no_times() -> None:
    found = (BaselineResult("features", float("nan"), 1e-3, 1e-2), BaselineResult("tokens", 1e-3, 2e-3, 1e-2))
    rows = baseline_table(replace(reports.passing(), baselines=found)).rows
    assert [row[3].text for row in rows] == ["-", "0.5x"]


def test_an_error_lists_a_few_cases_and_ends_in_where_it_deviates() -> None:
    one = reports.failing().results[0]
    many = tuple(replace(one, case=f"case{number}", exceeded=("relative_l2 1",)) for number in range(12))
    report = replace(reports.failing(), results=many, problems=(), location=Location("case0", unavailable="of no use"))
    with pytest.raises(nx.GateFailure) as failed:
        report.raise_for_failure()
    head, *some, more, last = str(failed.value).splitlines()
    assert head == "the gate failed (docs/errors.md#the-gate-failed):"
    assert last.strip().startswith("first deviation: not known")
    assert len(some) == MOST_FAILURES and more.endswith("more, which the report lists")
