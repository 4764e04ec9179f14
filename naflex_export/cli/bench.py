"""`naflex-bench`: parsing and printing only."""

from __future__ import annotations

import datetime
import re
from pathlib import Path

import click
import torch
from rich.box import SIMPLE
from rich.markup import escape
from rich.table import Table

from naflex_export import __version__
from naflex_export.accuracy.judge_artifact import check_same_weights
from naflex_export.bench.artifact import Course, Match, Subject, open_subjects, sizes_of
from naflex_export.bench.results_csv import append, check_columns, mib, text
from naflex_export.bench.techniques import COLUMNS, Figures
from naflex_export.bench.timing import device_name
from naflex_export.bench.workloads import RULES, drawn_grids
from naflex_export.cli.console import err, exit_codes, out, quiet_libraries, verbose_option
from naflex_export.cli.progress import Stages
from naflex_export.errors import RequestError
from naflex_export.models.model_sources import ModelSource
from naflex_export.serving.manifest import Manifest
from naflex_export.targets.compile import resolve_device

FIELDS = (
    *("date", "device", "threads", "torch", "naflex_export", "artifact", "target", "dtype", "ran"),
    *("grids", "seed", "rounds", *COLUMNS),
)


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("artifact", type=click.Path(path_type=Path))
@click.option("--reference", metavar="MODEL", help="The model to compare with.  [default: the one exported]")
@click.option("--weights", help="Its weights.  [default: those it was exported with]")
@click.option(
    "--batch", "batches", metavar="N,...", help="Images of a batch.  [default: each bucket's min, opt and max]"
)
@click.option("--tokens", metavar="N,...", help="Tokens that images are padded to.  [default: each bucket's]")
@click.option(
    "--grids",
    default=RULES[0],
    show_default=True,
    type=click.Choice(RULES),
    help="Of NaFlex's size rule up to 8:1, or all different in a batch.",
)
@click.option("--rounds", default=7, show_default=True, type=click.IntRange(1), help="In which everything runs once.")
@click.option("--seed", default=0, show_default=True, help="Of the batches.")
@click.option("--device", help="Where to run, such as cpu or cuda:0.  [default: as nx.load]")
@click.option("--csv", "path", type=click.Path(path_type=Path), help="Add the figures to this file, a row each.")
@click.option("--no-compile", is_flag=True, help="Leave out eager under torch.compile, which takes minutes to compile.")
@click.option("--stand-in", is_flag=True, help="Time what the gate would judge where the artifact cannot run here.")
@verbose_option
@click.version_option(__version__, package_name="naflex_export")
@exit_codes
def bench_command(
    artifact: Path,
    reference: str | None,
    weights: str | None,
    batches: str | None,
    tokens: str | None,
    grids: str,
    rounds: int,
    seed: int,
    device: str | None,
    path: Path | None,
    no_compile: bool,
    stand_in: bool,
    verbose: bool,
) -> None:
    """Time ARTIFACT beside the eager model it was exported from, in the same dtype, on the same batches.

    Every round runs each of them once, on a batch of its own: padded images of mixed grids. With the times come the
    error of each against eager in float32, and its memory.

    Exit codes: 0 measured, 2 the request was wrong, 3 a backend or device is missing.
    """
    quiet_libraries(verbose)
    manifest = Manifest.read(artifact)
    source = ModelSource.noted(manifest, reference, weights)
    source.check()
    sizes = sizes_of(manifest, _counts(batches, "--batch"), _counts(tokens, "--tokens"))
    for images, count in sizes:
        drawn_grids(grids, images, count, seed)  # refused here where there are not so many, not after minutes
    if path is not None:
        check_columns(path, FIELDS)
    stages = Stages(err)
    with stages.stage("load"):
        subjects = open_subjects(artifact, _device(device), stand_in)
        loaded = source.load()
        check_same_weights(loaded, manifest)
    course = Course(grids, seed, rounds, compiled=not no_compile)
    for subject in subjects:
        _print_subject(subject, manifest)
        match = Match(subject, loaded, course)
        for size in sizes:
            with stages.stage(_named(size)):
                found = match.measure(size, stages.announce)
            _print_figures(found, size)
            if path is not None:
                about = _about(artifact, manifest, subject, course)
                append(path, FIELDS, [{**about, **figures.row()} for figures in found])
    out.print(_LEGEND, highlight=False)


_LEGEND = (
    "speed: eager's time over its time, the median of all rounds. error: relative L2 distance of the features from "
    "those of eager in float32. MiB: the most memory held beyond weights and inputs. position: what the position "
    "embedding takes of the time."
)


def _print_subject(subject: Subject, manifest: Manifest) -> None:
    where = device_name(subject.runner.device)
    threads = torch.get_num_threads()
    used = f", {threads} thread{'s' if threads > 1 else ''}" if subject.runner.device.type == "cpu" else ""
    if subject.not_run:
        out.print(f"[bold yellow]not run:[/] {escape(subject.not_run)}; timed instead: {subject.name}", soft_wrap=True)
    out.print(f"[bold]{escape(subject.name)}[/], {manifest.dtype}, on {escape(where)}{used}", soft_wrap=True)


def _print_figures(found: list[Figures], size: tuple[int, int]) -> None:
    rows = Table(
        title=_named(size),
        title_justify="left",
        box=SIMPLE,
        padding=(0, 1, 0, 0),
    )
    rows.add_column("", no_wrap=True)
    for heading in ("ms", "", "images/s", "speed", "error", "MiB", "position"):
        rows.add_column(heading, justify="right", no_wrap=True)
    for figures in found:
        timing = figures.timing
        if timing is None:
            rows.add_row(figures.technique, "not measured")
            continue
        rows.add_row(
            escape(figures.technique),
            f"{timing.ms:.1f}",
            f"± {timing.spread:.0%}" if len(timing.seconds) > 1 else "",
            text(figures.images_per_second, 1),
            f"{text(figures.speedup, 2)}x",
            f"{figures.error:.1e}",
            mib(figures.peak_bytes),
            "" if figures.position_share is None else f"{figures.position_share:.1%}",
        )
    out.print(rows)
    for figures in found:
        if figures.failure:
            out.print(f"[yellow]not measured:[/] {figures.technique}: {escape(figures.failure)}", soft_wrap=True)


def _named(size: tuple[int, int]) -> str:
    images, tokens = size
    return f"{images} {'image' if images == 1 else 'images'} of {tokens} tokens"


def _about(artifact: Path, manifest: Manifest, subject: Subject, course: Course) -> dict[str, object]:
    return {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "device": device_name(subject.runner.device),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "naflex_export": __version__,
        "artifact": artifact.resolve().name,
        "target": manifest.target,
        "dtype": manifest.dtype,
        "ran": subject.name,
        "grids": course.rule,
        "seed": course.seed,
        "rounds": course.rounds,
    }


def _counts(given: str | None, option: str) -> list[int]:
    """Return the numbers written as `1,8,32`; none where the option was not given."""
    if given is None:
        return []
    if not re.fullmatch(r"[1-9]\d*(,[1-9]\d*)*", given.replace(" ", "")):
        raise RequestError(f"{option} {given!r} is malformed: expected numbers of at least 1, such as 1,8,32")
    return [int(number) for number in given.split(",")]


def _device(given: str | None) -> torch.device | None:
    if given is None:
        return None
    try:
        device = torch.device(given)
    except RuntimeError as error:
        raise RequestError(f"--device {given!r} is no device of torch's: expected one such as cpu or cuda:0") from error
    if device.type not in ("cpu", "cuda"):
        raise RequestError(f"--device {given!r} is not served: expected cpu, or cuda and an index")
    return resolve_device(device)
