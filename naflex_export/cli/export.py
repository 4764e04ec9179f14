"""The command lines: parsing and printing only."""

from __future__ import annotations

import logging
import re
import sys
import warnings
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import ParamSpec

import click
from rich.console import Console
from rich.markup import escape

from naflex_export import __version__
from naflex_export.accuracy.cases import STANDARD, Scope
from naflex_export.accuracy.report.formats import table, write
from naflex_export.accuracy.report.phrases import baseline_lines, effort_line, invariance_line
from naflex_export.accuracy.results import GateReport, Location
from naflex_export.cli.progress import Stages
from naflex_export.errors import NaflexExportError
from naflex_export.exporter import REPORT, Artifact, export, judge_artifact
from naflex_export.graph.trace import DTYPES
from naflex_export.grid import Bucket, check_buckets, parse_patch_sizes
from naflex_export.models.model_sources import DEFAULT_MODEL, TRANSFORMERS_PREFIX, ModelSource
from naflex_export.serving.manifest import MANIFEST, Manifest, check_destination
from naflex_export.targets import NAMES, BuildSettings

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


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("model", default=DEFAULT_MODEL)
@click.option("--target", required=True, type=click.Choice(NAMES), help="What to build.")
@click.option(
    "--weights",
    default="pretrained",
    show_default=True,
    help="'pretrained' (from the hub), 'random' (a dry run) or a .safetensors or .pth file.",
)
@click.option("--dtype", default="float32", show_default=True, type=click.Choice(list(DTYPES)))
@click.option(
    "--bucket",
    "buckets",
    multiple=True,
    metavar="TOKENS:MIN,OPT,MAX",
    help="Token budget and batch sizes; may be repeated.  [default: 256:1,8,32]",
)
@click.option(
    "--patch-size",
    "patch_sizes",
    metavar="SIZE,...",
    help="Patch sizes in pixels, such as 8,16,32: an entry point for each, in its own folder patchSIZE, with the patch "
    "projection resampled and folded into the weight.  [default: the model's own]",
)
@click.option("--out", "folder", type=click.Path(path_type=Path), help="[default: artifacts/MODEL-TARGET]")
@click.option("--tokens", "with_tokens", is_flag=True, help="Give the encoder's tokens beside its features.")
@images_option
@seed_option
@quick_option
@thorough_option
@require_run_option
@verbose_option
@click.version_option(__version__, package_name="naflex_export")
@exit_codes
def export_command(
    model: str,
    target: str,
    weights: str,
    dtype: str,
    buckets: tuple[str, ...],
    patch_sizes: str | None,
    folder: Path | None,
    with_tokens: bool,
    images: Path | None,
    seed: int,
    effort: str | None,
    require_run: bool,
    verbose: bool,
) -> None:
    """Export MODEL to TARGET and judge the artifact against the eager model.

    MODEL is a timm name, hf: and a transformers model's folder or hub id, or module:factory. With --patch-size a timm
    model is made with enable_patch_interpolator=True; a factory must return one that was.

    Exit codes: 0 done and passed, 1 the gate failed, 2 the request was wrong, 3 a backend or device is missing.
    """
    quiet_libraries(verbose)
    folder = folder or Path("artifacts") / f"{_file_name(model)}-{target}"
    chosen = check_buckets([Bucket.parse(text) for text in buckets] or [Bucket()])
    sizes = None if patch_sizes is None else parse_patch_sizes(patch_sizes)
    source = ModelSource(model, weights, seed, patch_interpolator=sizes is not None)
    source.check()
    check_destination(folder)
    if weights == "random":
        err.print("[bold yellow]random weights:[/] a dry run; the artifact computes nothing of use", soft_wrap=True)

    stages = Stages(err)
    with stages.stage("load"):
        loaded = source.load()
    artifact = export(
        loaded,
        target,
        folder,
        chosen,
        dtype,
        outputs=("features", "tokens") if with_tokens else ("features",),
        patch_sizes=sizes,
        images=images,
        seed=seed,
        effort=effort or STANDARD,
        require_run=require_run,
        source=source.describe(),
        stages=stages,
        settings=BuildSettings(verbose=verbose),
        on_report=_print_report,
    )
    _print_artifact(artifact, stages)


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("artifact", type=click.Path(path_type=Path))
@click.option("--reference", metavar="MODEL", help="The model to compare with.  [default: the one exported]")
@click.option("--weights", help="Its weights.  [default: those it was exported with]")
@click.option(
    "--report",
    "reports",
    multiple=True,
    type=click.Path(path_type=Path),
    help="Write the report here: .html (a page with drawings), .json, .md (for a CI summary) or .xml (JUnit). "
    "May be repeated.",
)
@click.option(
    "--case",
    "cases",
    multiple=True,
    metavar="NAME",
    help="Judge on this case only, by the name that a report gives it; may be repeated. It says its seed itself.",
)
@images_option
@seed_option
@quick_option
@thorough_option
@locate_option
@require_run_option
@verbose_option
@click.version_option(__version__, package_name="naflex_export")
@exit_codes
def gate_command(
    artifact: Path,
    reference: str | None,
    weights: str | None,
    reports: tuple[Path, ...],
    cases: tuple[str, ...],
    images: Path | None,
    seed: int,
    effort: str | None,
    locate: bool,
    require_run: bool,
    verbose: bool,
) -> None:
    """Judge ARTIFACT again, against the eager model it was exported from.

    Exit codes: 0 passed, 1 the gate failed, 2 the request was wrong, 3 a backend or device is missing.
    """
    quiet_libraries(verbose)
    manifest = Manifest.read(artifact)
    source = ModelSource.noted(manifest, reference, weights)
    stages = Stages(err)
    with stages.stage("load"):
        loaded = source.load()
    with stages.stage("gate"):
        found = judge_artifact(artifact, loaded, images, Scope(seed, effort or STANDARD, cases), require_run, locate)
    for path in reports:
        write(found, path)
    _print_report(found)
    found.raise_for_failure()
    out.print("[bold green]passed[/]")


def _print_report(report: GateReport) -> None:
    out.print(table(report))
    for line in [*baseline_lines(report), invariance_line(report), f"effort: {effort_line(report)}"]:
        out.print(escape(line), highlight=False, soft_wrap=True)
    if report.location is not None:
        _print_location(report.location)
    for name, why in report.skipped_photos.items():
        out.print(f"[yellow]skipped[/] {escape(name)}: {why}", soft_wrap=True)
    if report.skipped_photos:
        out.print(f"[yellow]{len(report.skipped_photos)} of the files among the photos were skipped[/]")
    if report.not_run:
        out.print(f"[bold yellow]not run:[/] {escape(report.not_run)}; judged instead: {report.judged}", soft_wrap=True)


def _print_location(location: Location) -> None:
    color = "red" if location.first else "green" if location.taps else "yellow"
    title, found = location.line.split(":", 1)
    out.print(f"[bold {color}]{title}:[/]{escape(found)}", highlight=False, soft_wrap=True)


def _print_artifact(artifact: Artifact, stages: Stages) -> None:
    manifest = artifact.manifest
    out.print(f"[bold green]passed[/], published {escape(str(artifact.path))}", soft_wrap=True)
    for name, file in manifest.files.items():
        if Path(name).name not in (MANIFEST, REPORT.name):
            out.print(f"  {name}  {file['bytes'] / 2**20:.1f} MiB", soft_wrap=True, highlight=False)
    for spec in manifest.inputs:
        out.print(f"  in   {escape(str(spec))}", highlight=False, soft_wrap=True)
    for spec in manifest.outputs:
        out.print(f"  out  {escape(str(spec))}", highlight=False, soft_wrap=True)
    times = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in stages.seconds.items())
    out.print(f"  {times}", highlight=False, soft_wrap=True)


def _file_name(model: str) -> str:
    if model.startswith(TRANSFORMERS_PREFIX):  # the folder's own name, or the hub id's after its owner
        model = Path(model.removeprefix(TRANSFORMERS_PREFIX)).resolve().name
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", model)


def quiet_libraries(verbose: bool) -> None:
    """Keep the libraries' warnings off a user's screen, or ask the backends for their own logs."""
    if verbose:
        logging.getLogger("naflex_export").setLevel(logging.DEBUG)
    else:
        warnings.simplefilter("ignore")
        for name in ("torch", "timm", "huggingface_hub", "onnxscript", "onnx_ir"):
            logging.getLogger(name).setLevel(logging.ERROR)
