"""The console, and how a report and an error are shown on it."""

from __future__ import annotations

import contextlib
import shlex
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape

from naflex_export.cli.amounts import bytes_in_words

if TYPE_CHECKING:
    from naflex_export.accuracy.results import GateReport, Location, PrecisionSearch
    from naflex_export.exporter import Artifact
    from naflex_export.progress import Stages


class Lines(Console):
    """Where a command prints. What is a line of its own in a pipe or a file is broken between words on a terminal."""

    def print(self, *objects: Any, soft_wrap: bool | None = None, **options: Any) -> None:
        """Print as rich does; a terminal itself would break a line in the midst of a word."""
        super().print(*objects, soft_wrap=bool(soft_wrap) and not self.is_terminal, **options)


out = Lines(emoji=False)  # a word between colons is a word, as in module:factory
err = Lines(stderr=True, emoji=False)

MOST_SHOWN = 8000
"""Characters of a text that are printed."""


def print_error(error: Exception) -> None:
    """Print what an error says, in one line on standard error; of a very long text its first and last."""
    err.print(f"[bold red]error:[/] {escape(shown(str(error)))}", soft_wrap=True, highlight=False)


def print_note(text: str, title: str = "note") -> None:
    """Print a remark on standard error."""
    err.print(f"[bold yellow]{title}:[/] {escape(text)}", soft_wrap=True, highlight=False)


def shown(text: str) -> str:
    """Return a text, without its middle where nobody would read it: rich takes a minute for 100,000 letters."""
    if len(text) <= MOST_SHOWN:
        return text
    head, tail = text[: MOST_SHOWN * 3 // 4], text[-MOST_SHOWN // 4 :]
    return f"{head} [... {len(text) - len(head) - len(tail)} characters ...] {tail}"


def print_report(report: GateReport) -> None:
    """Print a report: its table, what stands beside it, where it deviates, and what was left out or not run."""
    from naflex_export.accuracy.report.formats import table
    from naflex_export.accuracy.report.phrases import baseline_lines, effort_line, invariance_line, survey_line
    from naflex_export.precision import FLOAT32

    out.print(table(report, out.width))
    beside = [invariance_line(report), survey_line(report), f"effort: {effort_line(report)}"]
    searched = report.neighbours.line if report.neighbours else ""
    for line in filter(None, [*baseline_lines(report), searched, *beside]):
        out.print(escape(line), highlight=False, soft_wrap=True)
    if report.search is not None:
        _print_search(report.search)
    if report.location is not None:
        _print_location(report.location)
    if report.diagnosis:
        title, found = report.diagnosis.split(":", 1)
        out.print(f"[bold red]{title}:[/]{escape(found)}", highlight=False, soft_wrap=True)
    if report.reference_precision != FLOAT32.dtype:
        said = (
            f"all weights of the reference are numbers of {report.reference_precision}: their checkpoint's, or rounded"
        )
        out.print(f"[bold yellow]note:[/] {said}", soft_wrap=True, highlight=False)
    if report.no_photos:
        out.print(
            f"[bold yellow]no photos:[/] {escape(report.no_photos)}; judged on generated batches alone",
            soft_wrap=True,
            highlight=False,
        )
    for name, why in report.skipped_photos.items():
        out.print(f"[yellow]skipped[/] {escape(name)}: {why}", soft_wrap=True)
    if report.skipped_photos:
        out.print(f"[yellow]{len(report.skipped_photos)} of the files among the photos were skipped[/]")
    if report.not_run:
        out.print(f"[bold yellow]not run:[/] {escape(report.not_run)}; judged instead: {report.judged}", soft_wrap=True)


def _print_search(found: PrecisionSearch) -> None:
    for number, step in enumerate(found.steps, 1):
        verdict = "[green]ok[/]" if step.passed else "[red]FAIL[/]"
        kept = ",".join(step.keep_float32) or "nothing"
        figures = f"relative L2 {step.relative_l2:.1e}, {step.cost:.2f}x"
        out.print(
            f"  {number}. {escape(kept)}: {verdict}, {figures} ({escape(step.why)})", soft_wrap=True, highlight=False
        )
    color = "red" if found.found is None else "green"
    title, said = found.line.split(":", 1)
    out.print(f"[bold {color}]{title}:[/]{escape(said)}", highlight=False, soft_wrap=True)


def _print_location(location: Location) -> None:
    color = "red" if location.first else "green" if location.taps else "yellow"
    title, found = location.line.split(":", 1)
    out.print(f"[bold {color}]{title}:[/]{escape(found)}", highlight=False, soft_wrap=True)


def print_artifact(artifact: Artifact, stages: Stages) -> None:
    """Print where an artifact is, its files, inputs and outputs, and how long each stage took."""
    from naflex_export.exporter import REPORT
    from naflex_export.serving.manifest import MANIFEST

    manifest = artifact.manifest
    out.print(f"[bold green]passed[/], published {escape(str(artifact.path))}", soft_wrap=True)
    for name, file in manifest.files.items():
        if Path(name).name not in (MANIFEST, REPORT.name):
            out.print(f"  {name}  {bytes_in_words(file['bytes'])}", soft_wrap=True, highlight=False)
    for spec in manifest.inputs:
        out.print(f"  in   {escape(str(spec))}", highlight=False, soft_wrap=True)
    for spec in manifest.outputs:
        out.print(f"  out  {escape(str(spec))}", highlight=False, soft_wrap=True)
    total = sum(file["bytes"] for file in manifest.files.values())
    out.print(f"  {bytes_in_words(total)} in all, with {artifact.path / REPORT}", soft_wrap=True, highlight=False)
    times = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in stages.seconds.items())
    out.print(f"  {times}", highlight=False, soft_wrap=True)
    for number, line in enumerate(_next(artifact)):  # to be copied, and so whole: a break of ours would be copied too
        command = f"{'      ' if number else 'next: '}{line}"
        out.print(command, markup=False, highlight=False, no_wrap=True, overflow="ignore", crop=False)


def _next(artifact: Artifact) -> list[str]:
    """Return what to do with an artifact; the bench takes padded batches, which a vision tower does not."""
    from naflex_export.models.model_sources import why_untrusted
    from naflex_export.serving.known_formats import input_format_of

    folder, inputs = shlex.quote(str(artifact.path)), artifact.manifest.inputs
    trusted = " --trust-source" if why_untrusted(artifact.manifest.model["source"].get("model", "")) else ""
    has_masks = input_format_of([spec.name for spec in inputs], inputs[0].shape).masks
    lines = [f"naflex-bench {folder}{trusted}"] if has_masks else []
    said = [] if artifact.manifest.text is None else [f"naflex-classify {folder} PHOTO --labels 'cat,dog'"]
    return [
        *lines,
        f"naflex-gate {folder}{trusted} --report gate.html",
        *said,
        f"python: run = naflex_export.load({str(artifact.path)!r})",
    ]


@contextlib.contextmanager
def spoken_on_stderr(asked: bool) -> Iterator[None]:
    """Have what is for people go to standard error for as long as the block runs, where the other is for programs."""
    before, out.stderr = out.stderr, asked
    try:
        yield
    finally:
        out.stderr = before


def print_lines(lines: Iterable[str]) -> None:
    """Print lines as they are."""
    for line in lines:
        out.print(line, markup=False, highlight=False, soft_wrap=True)


def print_written(path: Path) -> None:
    """Print that a report was written, and what opens it."""
    how = {".html": "open it in a browser", ".md": "for a CI summary", ".xml": "JUnit", ".json": "for programs"}
    print_lines([f"wrote {path} ({how.get(path.suffix, 'a report')})"])
