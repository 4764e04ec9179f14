"""`naflex-gate pack` and `naflex-gate judge`: parsing and printing only."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import click

from naflex_export.cli.completion import model_words, weights_words
from naflex_export.cli.exits import exit_codes
from naflex_export.cli.options import (
    ArgumentsCommand,
    begin,
    json_option,
    model_args_option,
    quiet_libraries,
    seed_option,
    verbose_option,
)
from naflex_export.errors import RequestError


@click.command(cls=ArgumentsCommand, context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("model", shell_complete=model_words)
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder to write; it must not exist yet.")
@click.option(
    "--weights",
    default="pretrained",
    show_default=True,
    shell_complete=weights_words,
    help="As naflex-export takes them.",
)
@click.option("--small", is_flag=True, help="Under 10 MiB, for a folder of tests; else under 200.")
@model_args_option
@seed_option
@verbose_option
@exit_codes
def pack_command(
    model: str, out: Path, weights: str, small: bool, model_args: tuple[str, ...], seed: int, verbose: bool
) -> None:
    """Write a golden pack of MODEL: inputs and right answers, for ports in any language.

    Exit codes: 0 written, 2 the request was wrong, 3 a backend is missing, 70 something unexpected, 130 and 143
    interrupted.
    """
    from naflex_export.models.model_args import parse_model_args
    from naflex_export.models.model_names import understood
    from naflex_export.models.model_sources import ModelSource
    from naflex_export.packs.opened import check_place

    arguments, meant = parse_model_args(model_args), understood(model)
    check_place(out)
    source = ModelSource(meant.name, weights, seed, model_args=arguments)
    source.check()
    begin(f"a golden pack of {meant.name}")
    quiet_libraries(verbose)
    source.find()

    from rich.markup import escape

    from naflex_export.cli.amounts import bytes_in_words
    from naflex_export.cli.console import out as console
    from naflex_export.cli.console import print_note
    from naflex_export.packs.write import write_pack

    if meant.note:
        print_note(meant.note)
    if weights == "random":
        print_note("a dry run; the pack proves nothing of use", "random weights")
    manifest = write_pack(source.load(), out, small, meant.name)
    size = sum(found["bytes"] for found in manifest["files"].values())
    console.print(
        f"[bold green]written[/] {escape(str(out))}: {len(manifest['cases'])} cases, "
        f"{len(manifest['fingerprints'])} typical faults, {bytes_in_words(size)}",
        soft_wrap=True,
        highlight=False,
    )


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("pack", type=click.Path(path_type=Path))
@click.argument("answers", type=click.Path(path_type=Path), required=False)
@click.option("--onnx", type=click.Path(path_type=Path), help="An ONNX file, anyone's: it is run on each case.")
@click.option(
    "--input",
    "inputs",
    multiple=True,
    metavar="NAME=NAME",
    help="The ONNX file's, or Triton model's, name of an input of the pack; may be repeated.",
)
@click.option("--output", default="", metavar="NAME", help="The ONNX file's output that holds the features.")
@click.option("--command", default="", help="A command that prints a photo's vector: './port {photo}'.")
@click.option(
    "--url",
    default="",
    help="An endpoint: .../v1/embeddings (OpenAI's requests, with photos), .../embed (naflex-serve) or "
    ".../v2/models/NAME (Triton).",
)
@click.option(
    "--protocol",
    default="",
    type=click.Choice(["", "openai", "naflex-serve", "kserve"]),
    help="Which of these an endpoint speaks whose URL does not say it.",
)
@click.option("--url-model", default="", help="The model that OpenAI's request names.")
@click.option("--dtype", default="float32", show_default=True, help="That the port computes in.")
@click.option(
    "--normalized",
    is_flag=True,
    help="The port scales its vectors to length 1, as most endpoints of embeddings do: judge their directions.",
)
@click.option("--report", "reports", multiple=True, type=click.Path(path_type=Path), help="Write .json or .html here.")
@json_option
@partial(exit_codes, left="there is no verdict")
def judge_command(
    pack: Path,
    answers: Path | None,
    onnx: Path | None,
    inputs: tuple[str, ...],
    output: str,
    command: str,
    url: str,
    protocol: str,
    url_model: str,
    dtype: str,
    normalized: bool,
    reports: tuple[Path, ...],
    for_programs: bool,
) -> None:
    """Judge a port by PACK: ANSWERS is the folder or .safetensors file that it wrote.

    Or give --onnx, --command or --url.

    Exit codes: 0 right, 1 wrong, 2 the request was wrong, 3 a backend is missing, 70 something unexpected,
    130 and 143 interrupted.
    """
    from naflex_export.accuracy.report.suffix import SUFFIXES_OF_VERDICTS, check_report, write_report
    from naflex_export.packs import answers as origins
    from naflex_export.packs.opened import Pack

    given = [bool(found) for found in (answers, onnx, command, url)]
    if sum(given) != 1:
        raise RequestError(f"{sum(given)} of ANSWERS, --onnx, --command and --url were given: expected one of them")
    if output and onnx is None:
        raise RequestError("--output was given without --onnx: expected it with an ONNX file, whose output it names")
    if inputs and not (onnx or url):
        raise RequestError("--input was given without --onnx or --url: expected it where inputs have names")
    for path in reports:
        check_report(path, SUFFIXES_OF_VERDICTS)
    opened, pairs = Pack.open(pack), dict(_pair(text) for text in inputs)
    opened.check_dtype(dtype)
    if answers is not None:
        found = origins.from_files(opened, answers)
    elif onnx is not None:
        found = origins.from_onnx(opened, onnx, pairs, output)
    elif command:
        found = origins.from_command(opened, command)
    else:
        from naflex_export.packs.endpoints import from_url

        found = from_url(opened, url, url_model, protocol, pairs)
    from naflex_export.cli.console import print_lines
    from naflex_export.cli.verdict import tell
    from naflex_export.packs.judge import judge_answers
    from naflex_export.packs.report import FORMATS, as_json, lines

    verdict = judge_answers(opened, found, dtype, normalized)
    tell(
        verdict,
        reports,
        show=lambda found: print_lines(lines(found)),
        write=lambda found, path: write_report(found, path, FORMATS),
        as_json=as_json,
        for_programs=for_programs,
    )


def _pair(text: str) -> tuple[str, str]:
    name, found, other = text.partition("=")
    if not found or not name or not other:
        raise RequestError(f"--input {text!r}: expected the pack's name, =, and the file's name of the same input")
    return name, other
