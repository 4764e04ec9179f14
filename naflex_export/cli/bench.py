"""`naflex-bench`: parsing and printing only."""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path

import click

from naflex_export.cli.exits import exit_codes
from naflex_export.cli.options import (
    begin,
    device_option,
    quiet_libraries,
    reference_option,
    reference_weights_option,
    trust_source_option,
    verbose_option,
)
from naflex_export.errors import RequestError
from naflex_export.grid import GRID_RULES, SEEDS
from naflex_export.version import __version__


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("artifact", type=click.Path(path_type=Path))
@reference_option
@reference_weights_option
@trust_source_option
@click.option(
    "--batch", "batches", metavar="N,...", help="Images of a batch.  [default: each bucket's min, opt and max]"
)
@click.option("--tokens", metavar="N,...", help="Tokens that images are padded to.  [default: each bucket's]")
@click.option(
    "--grids",
    default=GRID_RULES[0],
    show_default=True,
    type=click.Choice(GRID_RULES),
    help="Of NaFlex's size rule up to 8:1, or all different in a batch.",
)
@click.option("--rounds", default=7, show_default=True, type=click.IntRange(1), help="In which everything runs once.")
@click.option("--seed", default=0, show_default=True, type=click.IntRange(0, SEEDS - 1), help="Of the batches.")
@device_option
@click.option("--csv", "path", type=click.Path(path_type=Path), help="Add the figures to this file, a row each.")
@click.option("--no-compile", is_flag=True, help="Leave out eager under torch.compile, which takes minutes to compile.")
@click.option("--stand-in", is_flag=True, help="Time what the gate would judge where the artifact cannot run here.")
@verbose_option
@click.version_option(__version__, package_name="naflex_export")
@partial(exit_codes, left="nothing was measured")
def bench_command(
    artifact: Path,
    reference: str | None,
    weights: str | None,
    trust_source: bool,
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

    What a compile, aot or trt artifact holds runs as code, as with nx.load: time such a one only if you know who made
    it.

    Exit codes: 0 measured, 2 the request was wrong, 3 a backend or device is missing, 70 something unexpected, 130 and
    143 interrupted.
    """
    from naflex_export.accuracy.report.suffix import check_can_be_written
    from naflex_export.bench.sizes import sizes_of
    from naflex_export.models.model_names import understood
    from naflex_export.models.model_sources import ModelSource
    from naflex_export.serving.device_name import check_device_name
    from naflex_export.serving.opened import SIZE, opened
    from naflex_export.serving.publish import check_outside_artifacts

    if path is not None:
        check_outside_artifacts(path)
        check_can_be_written(path)
    images, lengths = _counts(batches, "--batch"), _counts(tokens, "--tokens")
    compared_with = reference and understood(reference).name
    if device is not None:
        check_device_name(device)
    manifest = opened(artifact, lambda folder: folder.manifest, SIZE)
    source = ModelSource.noted(manifest, compared_with, weights, trusted=trust_source)
    source.check()
    sizes = sizes_of(manifest, images, lengths)
    begin(str(artifact))
    quiet_libraries(verbose)
    manifest = opened(artifact, lambda folder: folder.manifest)
    source.find()

    from naflex_export.accuracy.gate import check_same_weights
    from naflex_export.bench.artifact import FIELDS, ArtifactBench, BenchSettings, about, open_timed
    from naflex_export.bench.results_csv import append, check_columns
    from naflex_export.bench.workloads import drawn_grids
    from naflex_export.cli.console import err, out
    from naflex_export.cli.figures import LEGEND, named, print_figures, print_timed
    from naflex_export.progress import Stages
    from naflex_export.serving.device import check_device, resolve_device

    for batch, count in sizes:
        drawn_grids(grids, batch, count, seed)  # refused here where there are not so many, not after minutes
    if path is not None:
        check_columns(path, FIELDS)
    stages = Stages(err)
    with stages.stage(source.stage):
        timed = open_timed(artifact, resolve_device(None if device is None else check_device(device)), stand_in)
        loaded = source.load()
        check_same_weights(loaded, manifest)
    settings = BenchSettings(grids, seed, rounds, compiled=not no_compile)
    for one in timed:
        print_timed(one, manifest)
        bench = ArtifactBench(one, loaded, settings)
        for size in sizes:
            with stages.stage(named(size)):
                found = bench.measure(size, stages.announce)
            print_figures(found, size)
            if path is not None:
                head = about(artifact, manifest, one, settings)
                append(path, FIELDS, [{**head, **figures.row()} for figures in found])
    out.print(LEGEND, highlight=False)


def _counts(given: str | None, option: str) -> list[int]:
    """Return the numbers written as `1,8,32`; none where the option was not given."""
    if given is None:
        return []
    if not re.fullmatch(r"[1-9]\d*(,[1-9]\d*)*", given.replace(" ", "")):
        raise RequestError(f"{option} {given!r} is malformed: expected numbers of at least 1, such as 1,8,32")
    return [int(number) for number in given.split(",")]
