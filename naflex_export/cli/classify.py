"""`naflex-classify`: parsing and printing only."""

from __future__ import annotations

import json
from pathlib import Path

import click

from naflex_export.cli.options import device_option, exit_codes, untrusted_option, verify_option
from naflex_export.errors import PhotosFailed, RequestError
from naflex_export.version import __version__


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("artifact", type=click.Path(path_type=Path))
@click.argument("photos", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--labels", default="", metavar="WORDS,...", help="What to choose from, with commas between them.")
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
@exit_codes
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

    Each label has the probability that the model's training gives the pair. SigLIP judges each pair by itself: those
    of a photo need not sum to 1, and none may be likely.

    Exit codes: 0 done, 1 a photo could not be read, 2 the request was wrong, 3 a backend or device is missing,
    70 something unexpected, 130 and 143 interrupted.
    """
    from naflex_export.embed.classify import Classifier, check_labels

    words = [word for word in labels.split(",") if labels]
    if labels_file is not None:
        try:
            words += labels_file.read_text(encoding="utf-8").splitlines()
        except (OSError, ValueError) as error:
            raise RequestError(f"--labels-file {str(labels_file)!r} cannot be read: {error}") from error
    check_labels(words)
    classifier = Classifier(artifact, words, template, device=device, trusted=not untrusted, verify=verify)
    rows: list[dict[str, object]] = []
    failed = 0
    for photo, found in zip(photos, classifier(photos), strict=True):
        if not isinstance(found, list):
            failed += 1
            rows.append({"photo": str(photo), "error": str(found)})
            click.echo(f"{photo}: {found}", err=True)
            continue
        rows.append({"photo": str(photo), "labels": [vars(one) for one in found]})
        if not for_programs:
            click.echo(str(photo))
            for one in found[:top]:
                click.echo(f"  {one.probability:7.1%}  {one.label}")
    if for_programs:
        click.echo(json.dumps(rows, indent=2))
    if failed:
        raise PhotosFailed(f"{failed} of {len(photos)} photos could not be read")
