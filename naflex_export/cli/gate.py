"""`naflex-gate`: parsing and printing only."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import click
from click.shell_completion import CompletionItem

from naflex_export.cli.compare import compare_command
from naflex_export.cli.exits import exit_codes, leaves
from naflex_export.cli.options import (
    ArgumentsCommand,
    begin,
    images_option,
    json_option,
    locate_option,
    model_args_option,
    quick_option,
    quiet_libraries,
    reference_option,
    reference_weights_option,
    require_run_option,
    seed_option,
    thorough_option,
    trust_source_option,
    untrusted_option,
    verbose_option,
)
from naflex_export.cli.pack import judge_command, pack_command
from naflex_export.errors import RequestError
from naflex_export.version import __version__


class GateCommand(ArgumentsCommand):
    """Judges an artifact, or does what its first word says: `naflex-gate pack`, `judge` or `compare`.

    A folder by such a name is judged as `./pack`.
    """

    def make_context(
        self, info_name: str | None, args: list[str], parent: click.Context | None = None, **extra: Any
    ) -> click.Context:
        """Return the context of the command that the first word names, or of this one."""
        if args and args[0] in COMMANDS:
            return COMMANDS[args[0]].make_context(f"{info_name} {args[0]}", args[1:], parent, **extra)
        return super().make_context(info_name, args, parent, **extra)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the context's own command."""
        return super().invoke(ctx) if ctx.command is self else ctx.command.invoke(ctx)

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Add the other commands to the help."""
        with formatter.section("Other commands"):
            formatter.write_dl([(f"{name} ...", found.get_short_help_str()) for name, found in COMMANDS.items()])


COMMANDS: dict[str, click.Command] = {"pack": pack_command, "judge": judge_command, "compare": compare_command}


def _folders_and_commands(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    others = [
        CompletionItem(name, help=found.get_short_help_str())
        for name, found in COMMANDS.items()
        if name.startswith(incomplete)
    ]
    return [CompletionItem(incomplete, type="dir"), *others]


@click.command(cls=GateCommand, context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("artifact", type=click.Path(path_type=Path), shell_complete=_folders_and_commands)
@reference_option
@reference_weights_option
@trust_source_option
@untrusted_option
@model_args_option
@click.option(
    "--tokenizer",
    metavar="FOLDER",
    help="Of an artifact with a text tower, the tokenizer to judge it with.  [default: where the model is loaded from]",
)
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
@click.option(
    "--card",
    is_flag=True,
    help="Write the artifact's model card, README.md, anew from its manifest, print it on standard output, and judge "
    "nothing.",
)
@images_option
@seed_option
@quick_option
@thorough_option
@locate_option
@require_run_option
@json_option
@verbose_option
@click.version_option(__version__, package_name="naflex_export")
@partial(exit_codes, left="there is no verdict")
def gate_command(
    artifact: Path,
    reference: str | None,
    weights: str | None,
    trust_source: bool,
    untrusted: bool,
    model_args: tuple[str, ...],
    tokenizer: str | None,
    reports: tuple[Path, ...],
    cases: tuple[str, ...],
    card: bool,
    images: Path | None,
    seed: int,
    effort: str | None,
    locate: bool,
    require_run: bool,
    for_programs: bool,
    verbose: bool,
) -> None:
    """Judge ARTIFACT again, against the eager model it was exported from.

    Every file of it is verified before anything that it holds or names is made use of. What a compile, aot or trt
    artifact holds then runs as code, as with nx.load: judge such a one only if you know who made it, or give
    --untrusted. The hashes show damage and mix-ups, and not who made a file.

    Exit codes: 0 passed, 1 the gate failed, 2 the request was wrong, 3 a backend or device is missing,
    70 something unexpected, 130 and 143 interrupted.
    """
    from naflex_export.accuracy.case_names import check_case_names
    from naflex_export.accuracy.efforts import STANDARD, CaseSelection
    from naflex_export.accuracy.photos import check_folder
    from naflex_export.accuracy.report.suffix import check_report
    from naflex_export.models.model_args import parse_model_args
    from naflex_export.models.model_names import understood
    from naflex_export.models.model_sources import ModelSource
    from naflex_export.serving.opened import SIZE, opened
    from naflex_export.serving.publish import check_outside_artifacts
    from naflex_export.serving.trust import check_trusted

    for path in reports:
        check_report(path)
        check_outside_artifacts(path)
    arguments = parse_model_args(model_args)
    judged_by = reference and understood(reference).name
    if card and (reports or cases or for_programs):
        raise RequestError("--card judges nothing, and --report, --case or --json was given too: give one of them")
    manifest = opened(artifact, lambda folder: folder.manifest, SIZE)
    if card:
        _renew_card(artifact)
        return
    source = ModelSource.noted(manifest, judged_by, weights, arguments, trust_source)
    source.check()
    check_trusted(manifest, not untrusted)
    check_case_names(cases, manifest.buckets, () if manifest.text is None else (manifest.text["folder"],))
    selection = CaseSelection(seed, effort or STANDARD, cases)
    if images is not None:
        check_folder(images)
    if tokenizer is not None and manifest.text is None:
        raise RequestError(f"--tokenizer {tokenizer!r} was given and {str(artifact)!r} has no text tower: leave it out")
    begin(str(artifact))
    quiet_libraries(verbose)
    opened(artifact, lambda folder: check_trusted(folder.manifest, not untrusted))
    source.find()

    from naflex_export.accuracy.judge_artifact import JudgeRequest, judge_artifact
    from naflex_export.accuracy.report.formats import as_json, write
    from naflex_export.cli.console import err, print_report
    from naflex_export.cli.verdict import tell
    from naflex_export.progress import Stages

    stages = Stages(err)
    with stages.stage(source.stage):
        loaded = source.load()
    with stages.stage("gate"):
        found = judge_artifact(
            artifact,
            loaded,
            JudgeRequest(
                images,
                selection,
                locate,
                require_run,
                not untrusted,
                stages.announce,
                tokenizer,
            ),
        )
    again = [
        *(["--reference", judged_by] if judged_by else []),
        *(["--weights", weights] if weights else []),
        *(part for given in model_args for part in ("--model-args", given)),
        *(["--trust-source"] if trust_source else []),
        *(["--tokenizer", tokenizer] if tokenizer else []),
        *(["--images", str(images)] if images else []),
    ]
    found = replace(found, again=tuple(again))
    tell(found, reports, show=print_report, write=write, as_json=as_json, for_programs=for_programs)


def _renew_card(artifact: Path) -> None:
    """Write an artifact's model card anew, say where it is, and print it as it stands there."""
    from naflex_export.accuracy.report.card import CARD, renew_card

    renew_card(artifact)
    leaves(f"{artifact / CARD} was written")
    click.echo(f"wrote {artifact / CARD} (the model card)", err=True)
    click.echo((artifact / CARD).read_bytes(), nl=False)
