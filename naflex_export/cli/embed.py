"""`naflex-embed`: parsing and printing only."""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path

import click

from naflex_export.cli.exits import exit_codes
from naflex_export.cli.options import (
    device_option,
    quiet_libraries,
    untrusted_option,
    verbose_option,
    verify_option,
)
from naflex_export.cli.supervised import LEFT
from naflex_export.version import __version__

SHOWN = 5
"""Failures that are printed."""


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("artifact", type=click.Path(path_type=Path))
@click.argument("photos", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--out", required=True, type=click.Path(path_type=Path), help="The folder of the shards.")
@click.option("--tokens", type=click.IntRange(1), help="The most patches of a photo.  [default: the largest bucket's]")
@click.option("--batch", type=click.IntRange(1), help="Images of a batch.  [default: each bucket's opt]")
@click.option("--threads", default=2, show_default=True, type=click.IntRange(1), help="That decode photos, a worker.")
@click.option(
    "--workers", type=click.IntRange(1), help="Processes, or actors.  [default: 1; actors as there is room for]"
)
@click.option(
    "--ray",
    metavar="ADDRESS",
    help="Have actors of a Ray cluster do it: host:port, auto, or local for a Ray of this machine alone. Its machines "
    "share the disk of ARTIFACT, PHOTOS and --out.",
)
@click.option("--shard", default=1024, show_default=True, type=click.IntRange(1), help="Photos of a shard.")
@device_option
@click.option("--patch-size", type=click.IntRange(1), help="Which one, of an artifact of several.")
@click.option("--exif", type=click.Choice(["apply", "ignore"]), help="Turn photos upright.  [default: the artifact's]")
@click.option(
    "--fast-jpeg", is_flag=True, help="Decode large JPEGs at part of their size, never below twice the target."
)
@click.option("--most-pixels", type=click.IntRange(1), help="Of a photo; a larger one is a failure.")
@click.option("--strict", is_flag=True, help="Exit with 2 if a photo failed.")
@click.option(
    "--contact-sheet",
    "sheet",
    type=click.Path(path_type=Path),
    help="Write a page here that shows a sample of photos beside their nearest neighbours.",
)
@untrusted_option
@verify_option
@verbose_option
@click.version_option(__version__, package_name="naflex_export")
@partial(exit_codes, left=LEFT["embed"])
def embed_command(
    artifact: Path,
    photos: tuple[Path, ...],
    out: Path,
    tokens: int | None,
    batch: int | None,
    threads: int,
    workers: int | None,
    ray: str | None,
    shard: int,
    device: str | None,
    patch_size: int | None,
    exif: str | None,
    fast_jpeg: bool,
    most_pixels: int | None,
    strict: bool,
    sheet: Path | None,
    untrusted: bool,
    verify: str,
    verbose: bool,
) -> None:
    """Embed PHOTOS with ARTIFACT: into --out go parquet shards of path, grid (height, width), vector, error and sha256.

    PHOTOS are folders, .txt lists of paths, WebDataset .tar files, .parquet files with a column of image bytes, or
    photos. A shard is there whole or not at all. Whatever ends a run, the same command goes on where it was.

    A photo that cannot be read has an error in place of its vector, and fails nothing but itself.

    Exit codes: 0 done, 2 the request was wrong, or a photo failed and --strict was given, 3 a backend or device is
    missing or Ray does not answer, 70 something unexpected, 130 and 143 interrupted: begin again to go on.
    """
    from naflex_export.cli.console import err
    from naflex_export.cli.console import out as console
    from naflex_export.cli.embed_progress import Meter
    from naflex_export.embed.embed_files import embed_files
    from naflex_export.embed.embed_request import EmbedRequest
    from naflex_export.errors import PhotosFailed

    quiet_libraries(verbose)
    if sheet is not None:
        from naflex_export.accuracy.report.suffix import check_can_be_written
        from naflex_export.embed.contact_sheet import check_sheet

        check_sheet(sheet, out)
        check_can_be_written(sheet)
    chosen = {"exif": exif, "fast_jpeg": fast_jpeg or None, "most_pixels": most_pixels}
    request = EmbedRequest(
        artifact,
        photos,
        out,
        tokens=tokens,
        batch=batch,
        threads=threads,
        device=device,
        patch_size=patch_size,
        trusted=not untrusted,
        verify=verify,
        workers=workers,
        ray=ray,
        shard=shard,
        policy={name: value for name, value in chosen.items() if value is not None},
    )
    started = time.perf_counter()
    with Meter(err) as meter:
        found = embed_files(request, meter.tell, meter.began)
    made, failed = found.run.count - found.before, len(found.failures)
    seconds = time.perf_counter() - started
    rate = f", {made / seconds:.1f} photos/s" if made else ""
    before = f"; {found.before} were there before" if found.before else ""
    console.print(
        f"{found.run.count - failed} vectors of {found.run.count} photos in {out}{rate}{before}",
        highlight=False,
        soft_wrap=True,
        markup=False,
    )
    for name, why in found.failures[:SHOWN]:
        said = why if name in why else f"{name}: {why}"  # of a file the fault names it itself
        console.print(f"failed {said}", highlight=False, soft_wrap=True, markup=False)
    if failed > SHOWN:
        console.print(f"and {failed - SHOWN} more: the column error of the shards says why", highlight=False)
    if sheet is not None:
        from naflex_export.embed.contact_sheet import write_sheet

        missing = write_sheet(sheet, out, found.run, found.source)
        for name, why in missing[:SHOWN]:
            err.print(f"not shown {name}: {why}", highlight=False, soft_wrap=True, markup=False)
        if len(missing) > SHOWN:
            more = f"and {len(missing) - SHOWN} more photos, whose gaps on the contact sheet say why"
            err.print(more, highlight=False, soft_wrap=True)
        console.print(f"contact sheet: {sheet}", highlight=False, soft_wrap=True, markup=False)
    if failed and strict:
        raise PhotosFailed(f"{failed} of {found.run.count} photos failed, and --strict was given")
