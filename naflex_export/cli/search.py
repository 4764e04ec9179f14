"""`naflex-search`: parsing and printing only."""

from __future__ import annotations

import json
from dataclasses import asdict
from functools import partial
from pathlib import Path

import click

from naflex_export.cli.exits import exit_codes
from naflex_export.cli.options import device_option, untrusted_option, verify_option
from naflex_export.cli.supervised import LEFT
from naflex_export.version import __version__

SHOWN = 5
"""Photos of a query that are printed; the page shows them all."""


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("vectors", type=click.Path(path_type=Path))
@click.argument("queries", nargs=-1, required=True)
@click.option("--top", default=24, show_default=True, type=click.IntRange(1), help="Photos of each query.")
@click.option(
    "--contact-sheet",
    "sheet",
    type=click.Path(path_type=Path),
    default=Path("search.html"),
    show_default=True,
    help="Write a page here that shows the photos.",
)
@click.option("--no-sheet", is_flag=True, help="Print paths, and write no page.")
@click.option(
    "--artifact",
    type=click.Path(path_type=Path),
    help="The artifact with the text tower.  [default: the one the photos were embedded with, where it was]",
)
@click.option(
    "--photos",
    multiple=True,
    type=click.Path(path_type=Path),
    help="The photos as naflex-embed was given them, where they have been moved; may be repeated.",
)
@click.option("--json", "for_programs", is_flag=True, help="Print what was found as JSON.")
@device_option
@untrusted_option
@verify_option
@click.version_option(__version__, package_name="naflex_export")
@partial(exit_codes, left=LEFT["search"])
def search_command(
    vectors: Path,
    queries: tuple[str, ...],
    top: int,
    sheet: Path,
    no_sheet: bool,
    artifact: Path | None,
    photos: tuple[Path, ...],
    for_programs: bool,
    device: str | None,
    untrusted: bool,
    verify: str,
) -> None:
    """Find the photos that are nearest to words: VECTORS is the folder that naflex-embed wrote, QUERIES are texts.

    The artifact must have been exported with --tower image,text. The page shows the photos of each query, the nearest
    first, with cosine and probability.

    Exit codes: 0 done, 2 the request was wrong, 3 a backend or device is missing, 70 something unexpected,
    130 and 143 interrupted.
    """
    from naflex_export.accuracy.report.suffix import check_can_be_written
    from naflex_export.embed.search import SearchRequest, search
    from naflex_export.embed.sources import source_of

    request = SearchRequest(vectors, queries, artifact, top=top, device=device, trusted=not untrusted, verify=verify)
    if not no_sheet:
        from naflex_export.embed.contact_sheet import check_sheet

        check_sheet(sheet, vectors)
        check_can_be_written(sheet)
        if photos:
            source_of(photos)
    result = search(request)
    if for_programs:
        found = {query: [asdict(one) for one in photos] for query, photos in result.found.items()}
        click.echo(json.dumps(found, indent=2))
    else:
        for query, nearest in result.found.items():
            click.echo(query)
            for one in nearest[:SHOWN]:
                click.echo(f"  {one.likeness:6.3f}  {one.name}")
    if not no_sheet:
        from naflex_export.embed.contact_sheet import write_found
        from naflex_export.embed.found_photos import FoundPhotos

        shown = (one for nearest in result.found.values() for one in nearest)
        pictures = FoundPhotos(result.run, result.origin, shown, photos)
        missing = pictures.check()
        write_found(sheet, result.run, pictures, result.found)
        for name, why in missing[:SHOWN]:
            click.echo(f"not shown {name}: {why}", err=True)
        if len(missing) > SHOWN:
            click.echo(f"and {len(missing) - SHOWN} more photos, whose gaps on the contact sheet say why", err=True)
        click.echo(f"contact sheet: {sheet}", err=for_programs)
