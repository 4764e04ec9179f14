"""`naflex-gate compare`: parsing and printing only."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import click

from naflex_export.cli.exits import exit_codes
from naflex_export.cli.options import (
    device_option,
    json_option,
    quiet_libraries,
    untrusted_option,
    verbose_option,
)


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("old", type=click.Path(path_type=Path))
@click.argument("new", type=click.Path(path_type=Path))
@click.option(
    "--photos",
    multiple=True,
    required=True,
    type=click.Path(path_type=Path),
    help="Yours: a folder, a .txt list, a .tar or a .parquet file, as for naflex-embed; may be repeated.",
)
@click.option("--k", default=10, show_default=True, type=click.IntRange(1), help="How many nearest photos count.")
@click.option(
    "--min-recall", default=0.95, show_default=True, type=float, help="The mean recall@k that passes, up to 1."
)
@click.option("--tokens", type=click.IntRange(1), help="The most patches of a photo.  [default: each largest bucket's]")
@device_option
@untrusted_option
@click.option(
    "--report",
    "reports",
    multiple=True,
    type=click.Path(path_type=Path),
    help="Write the report here: .html (a page with photos), .json, .md or .xml (JUnit). May be repeated.",
)
@json_option
@verbose_option
@partial(exit_codes, left="there is no verdict")
def compare_command(
    old: Path,
    new: Path,
    photos: tuple[Path, ...],
    k: int,
    min_recall: float,
    tokens: int | None,
    device: str | None,
    untrusted: bool,
    reports: tuple[Path, ...],
    for_programs: bool,
    verbose: bool,
) -> None:
    """Say whether an index built with artifact OLD may be searched with NEW.

    Exit codes: 0 it may, 1 it must be built anew, 2 the request was wrong, 3 a backend or device is missing,
    70 something unexpected, 130 and 143 interrupted.
    """
    from naflex_export.accuracy.report.suffix import check_report
    from naflex_export.cli.console import err, print_lines
    from naflex_export.cli.verdict import tell
    from naflex_export.progress import Stages
    from naflex_export.reindex.compare import CompareRequest, compare_artifacts
    from naflex_export.reindex.report_formats import as_json, lines, write
    from naflex_export.serving.publish import check_outside_artifacts

    quiet_libraries(verbose)
    for path in reports:
        check_report(path)
        check_outside_artifacts(path)
    stages = Stages(err)
    with stages.stage("compare"):
        request = CompareRequest(k, min_recall, tokens, device, not untrusted, stages.announce)
        found = compare_artifacts(old, new, photos, request)
    tell(
        found,
        reports,
        show=lambda found: print_lines(lines(found)),
        write=write,
        as_json=as_json,
        for_programs=for_programs,
        means=": the index may be kept",
    )
