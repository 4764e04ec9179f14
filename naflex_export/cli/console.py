"""What the command lines share: the console, options, exit codes, and how a report is shown."""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import ParamSpec

import click
from rich.console import Console
from rich.markup import escape

from naflex_export.accuracy.report.formats import table
from naflex_export.accuracy.report.phrases import baseline_lines, effort_line, invariance_line
from naflex_export.accuracy.results import GateReport, Location
from naflex_export.errors import NaflexExportError

P = ParamSpec("P")


out = Console()


err = Console(stderr=True)


def exit_codes(command: Callable[P, None]) -> Callable[P, None]:
    """Turn the package's errors into one line on standard error and their exit code."""

    @wraps(command)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            command(*args, **kwargs)
        except NaflexExportError as error:
            err.print(f"[bold red]error:[/] {escape(str(error))}", soft_wrap=True)
            sys.exit(error.exit_code)

    return wrapped


images_option = click.option(
    "--images",
    type=click.Path(path_type=Path),
    help="Folder of photos to judge on.  [default: three that ship with the package]",
)


verbose_option = click.option("--verbose", is_flag=True, help="Let the backends' own logs through.")


require_run_option = click.option(
    "--require-run", is_flag=True, help="Fail (exit 3) where the artifact can be built and not run."
)


quick_option = click.option(
    "--quick",
    "effort",
    flag_value="quick",
    help="Judge on the photos, mixed grids and one column only, and check invariances in the largest bucket only.",
)


thorough_option = click.option(
    "--thorough",
    "effort",
    flag_value="thorough",
    help="Judge on four seeds, the grids of NaFlex's size rule up to 8:1, and the largest batch at full length.",
)


locate_option = click.option(
    "--locate",
    is_flag=True,
    help="Compare module by module even if the gate passes; after a failure that is done anyway.",
)


seed_option = click.option("--seed", default=0, show_default=True, help="Of generated batches and random weights.")


def print_report(report: GateReport) -> None:
    out.print(table(report))
    for line in [*baseline_lines(report), invariance_line(report), f"effort: {effort_line(report)}"]:
        out.print(escape(line), highlight=False, soft_wrap=True)
    if report.location is not None:
        print_location(report.location)
    for name, why in report.skipped_photos.items():
        out.print(f"[yellow]skipped[/] {escape(name)}: {why}", soft_wrap=True)
    if report.skipped_photos:
        out.print(f"[yellow]{len(report.skipped_photos)} of the files among the photos were skipped[/]")
    if report.not_run:
        out.print(f"[bold yellow]not run:[/] {escape(report.not_run)}; judged instead: {report.judged}", soft_wrap=True)


def print_location(location: Location) -> None:
    color = "red" if location.first else "green" if location.taps else "yellow"
    title, found = location.line.split(":", 1)
    out.print(f"[bold {color}]{title}:[/]{escape(found)}", highlight=False, soft_wrap=True)


def quiet_libraries(verbose: bool) -> None:
    """Keep the libraries' warnings off a user's screen, or ask the backends for their own logs."""
    if verbose:
        logging.getLogger("naflex_export").setLevel(logging.DEBUG)
    else:
        warnings.simplefilter("ignore")
        for name in ("torch", "timm", "huggingface_hub", "onnxscript", "onnx_ir"):
            logging.getLogger(name).setLevel(logging.ERROR)
