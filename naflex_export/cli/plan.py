"""`naflex-plan`: parsing and printing only."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

import click

from naflex_export.cli.exits import exit_codes
from naflex_export.cli.options import json_option, quiet_libraries
from naflex_export.cli.supervised import LEFT
from naflex_export.errors import RequestError
from naflex_export.grid import Bucket
from naflex_export.version import __version__

if TYPE_CHECKING:
    from naflex_export.embed.plan import BucketPlan

MOST_PLANNED = 6
"""Buckets of the largest plan that is shown."""

ROWS = 16
"""Of the histogram."""

BAR = 40
"""Characters of its longest bar."""

SHOWN = 5
"""Files that are named of those that are no photos."""


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("photos", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--tokens", default=256, show_default=True, help="The budget that photos are resized to.")
@click.option("--patch-size", default=16, show_default=True, help="Of the model, in pixels.")
@click.option(
    "--no-upscale", is_flag=True, help="Photos are never enlarged.  [default: they are, to fill the budget, as by timm]"
)
@click.option("--most", "k", default=4, show_default=True, type=click.IntRange(1, MOST_PLANNED), help="Buckets to use.")
@click.option("--batch", default="1,8,32", show_default=True, metavar="MIN,OPT,MAX", help="Of each bucket.")
@click.option("--plot", type=click.Path(path_type=Path), help="Draw histogram and waste to this .svg, .png or .pdf.")
@json_option
@click.version_option(__version__, package_name="naflex_export")
@partial(exit_codes, left=LEFT["plan"])
def plan_command(
    photos: tuple[Path, ...],
    tokens: int,
    patch_size: int,
    no_upscale: bool,
    k: int,
    batch: str,
    plot: Path | None,
    for_programs: bool,
) -> None:
    """Say which buckets suit PHOTOS: folders, .txt lists of paths, or files.

    Headers are read, and no pixel is decoded. A photo goes to the smallest bucket that holds its tokens and is padded
    to it; shown are how many tokens the photos have, what share of all tokens is padding with 1 to 6 buckets, and the
    options for naflex-export.

    Exit codes: 0 planned, 2 the request was wrong, 3 matplotlib is missing and --plot was given, 70 something
    unexpected, 130 and 143 interrupted.
    """
    from naflex_export.cli.plan_plot import check_plot, draw
    from naflex_export.embed.photo_sizes import photo_paths, sizes_in_headers
    from naflex_export.embed.plan import plans_up_to, token_counts, worthwhile

    quiet_libraries(verbose=False)
    usual = Bucket.parse(f"{tokens}:{batch}").batch
    token_counts([], tokens, patch_size=patch_size)  # refused here, not after all headers
    if plot is not None:
        check_plot(plot)
    unreadable: dict[Path, str] = {}
    sizes = list(_counted(sizes_in_headers(photo_paths(photos), unreadable)))
    _tell_unreadable(unreadable)
    if not sizes:
        given = ", ".join(map(click.format_filename, photos))
        raise RequestError(f"no photo among the {len(unreadable)} files of {given}: expected at least one")
    counts = token_counts(sizes, tokens, not no_upscale, patch_size)
    plans = plans_up_to(counts, MOST_PLANNED, tokens, batch=usual)
    taken = worthwhile(plans, k)
    enlarged = "never enlarged" if no_upscale else "enlarged to fill it"
    said = chain(
        [f"{_photos(len(sizes))}, a budget of {tokens} tokens of {patch_size}x{patch_size} pixels, {enlarged}", ""],
        _histogram(counts, tokens),
        _costs(plans),
        _advice(plans, taken, k, no_upscale),
    )
    for line in said:
        click.echo(line, err=for_programs)
    if plot is not None:
        draw(counts, plans, taken, plot)
        click.echo(f"\ndrawn to {click.format_filename(plot)}", err=for_programs)
    if for_programs:
        click.echo(_as_json(counts, plans, taken, unreadable))


def _counted(sizes: Iterator[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """Yield what is given and say on a terminal how many there have been."""
    shown = sys.stderr.isatty()
    for number, size in enumerate(sizes, start=1):
        if shown and number % 1000 == 0:
            click.echo(f"\r{number} headers read", err=True, nl=False)
        yield size
    if shown:
        click.echo("\r\x1b[K", err=True, nl=False)


def _tell_unreadable(unreadable: dict[Path, str]) -> None:
    for path, why in list(unreadable.items())[:SHOWN]:
        click.echo(f"skipped {click.format_filename(path)}: {why}", err=True)
    if len(unreadable) > SHOWN:
        click.echo(f"skipped {len(unreadable) - SHOWN} more: {len(unreadable)} files are no photos", err=True)


def _histogram(counts: dict[int, int], tokens: int) -> Iterator[str]:
    width = -(-tokens // ROWS)
    rows = [0] * -(-tokens // width)
    for count, photos in counts.items():
        rows[(count - 1) // width] += photos
    numbers = [str(photos) for photos in rows]
    labels = [f"{row * width + 1}-{min((row + 1) * width, tokens)}" for row in range(len(rows))]
    room = max(map(len, [*labels, "tokens"]))
    yield f"{'tokens':>{room}}  photos"
    for label, number, photos in zip(labels, numbers, rows, strict=True):
        bar = "#" * -(-BAR * photos // max(rows))
        yield f"{label:>{room}}  {number:>{max(map(len, [*numbers, 'photos']))}}  {bar}".rstrip()


def _costs(plans: Sequence[BucketPlan]) -> Iterator[str]:
    yield "\nbuckets  padding  tokens  of"
    for found in plans:
        of = " ".join(str(bucket.tokens) for bucket in found.buckets)
        share = found.cost / plans[0].cost
        yield f"{len(found.buckets):>7}  {found.waste:>7.1%}  {share:>6.1%}  {of}"


def _advice(plans: Sequence[BucketPlan], taken: BucketPlan, k: int, no_upscale: bool) -> Iterator[str]:
    waste = f"One bucket pads {plans[0].waste:.1%} of the tokens"
    best = max((found for found in plans if len(found.buckets) <= k), key=lambda found: len(found.buckets))
    if len(taken.buckets) > 1:
        yield f"\n{waste}; {len(taken.buckets)} buckets save {1 - taken.cost / plans[0].cost:.1%} of all:\n"
    elif len(best.buckets) > 1:
        yield f"\n{waste}. {len(best.buckets)} buckets would save {1 - best.cost / plans[0].cost:.1%} of all,"
        yield "which their smaller batches cost again: more buckets gain nothing here.\n"
    else:
        yield f"\n{waste}, and more buckets would save none of it.\n"
    options = [*(["--no-upscale"] if no_upscale else []), *(f"--bucket {bucket}" for bucket in taken.buckets)]
    pairs = [" ".join(options[start : start + 2]) for start in range(0, len(options), 2)]
    yield "  " + " \\\n  ".join(pairs)


def _as_json(
    counts: Mapping[int, int], plans: Sequence[BucketPlan], taken: BucketPlan, unreadable: Mapping[Path, str]
) -> str:
    """Return the plan as JSON: how many photos have so many tokens, each plan with its padding, and the one to take."""
    told = {
        "photos": sum(counts.values()),
        "unreadable": {str(path): why for path, why in unreadable.items()},
        "tokens": {str(count): counts[count] for count in sorted(counts)},
        "plans": [
            {
                "buckets": [str(bucket) for bucket in found.buckets],
                "padding": found.waste,
                "cost": found.cost / plans[0].cost,
                "taken": found == taken,
            }
            for found in plans
        ],
    }
    return json.dumps(told, indent=2)


def _photos(count: int) -> str:
    return f"{count} photo{'s' if count > 1 else ''}"
