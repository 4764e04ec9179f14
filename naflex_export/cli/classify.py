"""`naflex-classify`: parsing and printing only."""

from __future__ import annotations

import csv
import json
from functools import partial
from pathlib import Path

import click

from naflex_export.cli.exits import exit_codes
from naflex_export.cli.options import device_option, untrusted_option, verify_option
from naflex_export.cli.supervised import LEFT
from naflex_export.errors import PhotosFailed, RequestError
from naflex_export.version import __version__


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("artifact", type=click.Path(path_type=Path))
@click.argument("photos", nargs=-1, required=True, type=click.Path(path_type=Path, readable=False))
@click.option(
    "--labels",
    default="",
    metavar="WORDS,...",
    help="What to choose from, with commas between them; in quotes one may hold commas.",
)
@click.option("--labels-file", type=click.Path(path_type=Path), metavar="FILE", help="The same, one a line.")
@click.option(
    "--template",
    default="This is a photo of {}.",
    show_default=True,
    help="What a label is put into, in the place of {}. '{}' takes labels as they are.",
)
@click.option("--top", default=5, show_default=True, type=click.IntRange(1), help="Labels that are shown of a photo.")
@click.option("--json", "for_programs", is_flag=True, help="Print all labels of all photos as JSON.")
@device_option
@untrusted_option
@verify_option
@click.version_option(__version__, package_name="naflex_export")
@partial(exit_codes, left=LEFT["classify"])
def classify_command(
    artifact: Path,
    photos: tuple[Path, ...],
    labels: str,
    labels_file: Path | None,
    template: str,
    top: int,
    for_programs: bool,
    device: str | None,
    untrusted: bool,
    verify: str,
) -> None:
    """Say which of a few labels go with PHOTOS, by an ARTIFACT that was exported with --tower image,text.

    PHOTOS are photos, folders of them, or what else naflex-embed takes.

    Each label has the probability that the model's training gives the pair. SigLIP judges each pair by itself: those
    of a photo need not sum to 1, and none may be likely.

    Exit codes: 0 done, 2 the request was wrong or a photo could not be read, 3 a backend or device is missing,
    70 something unexpected, 130 and 143 interrupted.
    """
    from naflex_export.embed.classify import Classifier, check_labels
    from naflex_export.embed.sources import source_of

    words = check_labels([*_words(labels), *([] if labels_file is None else _lines(labels_file))])
    source = source_of(photos)
    classifier = Classifier(artifact, words, template, device=device, trusted=not untrusted, verify=verify)
    rows: list[dict[str, object]] = []
    failed = 0
    for photo, found in zip(source.names, classifier(source.read(0, len(source.names))), strict=True):
        if not isinstance(found, list):
            failed += 1
            rows.append({"photo": photo, "error": str(found)})
            click.echo(f"{photo}: {found}", err=True)
            continue
        rows.append({"photo": photo, "labels": [vars(one) for one in found]})
        if not for_programs:
            click.echo(photo)
            for one in found[:top]:
                click.echo(f"  {one.probability:7.1%}  {one.label}")
    if for_programs:
        click.echo(json.dumps(rows, indent=2))
    if failed:
        raise PhotosFailed(f"{failed} of {len(source.names)} photos could not be read")


def _words(text: str) -> list[str]:
    """Return what stands between commas; a word in quotes may hold some."""
    try:
        return next(csv.reader([text], skipinitialspace=True, strict=True), [])
    except csv.Error as error:
        raise RequestError(
            f"--labels {text!r}: a label begins with a quote and does not end with one ({error}); expected words with "
            "commas between them, such as 'cat,\"salt, pepper\"', or a --labels-file"
        ) from error


def _lines(path: Path) -> list[str]:
    """Return the lines of a file that hold something."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, ValueError) as error:
        raise RequestError(
            f"--labels-file {str(path)!r} cannot be read ({error}): expected text in UTF-8, a label a line"
        ) from error
    return [line for line in lines if line.strip()]
