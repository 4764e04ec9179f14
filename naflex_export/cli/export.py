"""`naflex-export`: parsing and printing only."""

from __future__ import annotations

import re
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from naflex_export.cli.completion import model_words, weights_words
from naflex_export.cli.exits import exit_codes, leaves
from naflex_export.cli.options import (
    ArgumentsCommand,
    Word,
    begin,
    checkpoint_state_option,
    config_option,
    images_option,
    json_option,
    model_args_option,
    preprocessing_option,
    quick_option,
    quiet_libraries,
    require_run_option,
    seed_option,
    thorough_option,
    verbose_option,
)
from naflex_export.errors import RejectedError, RequestError
from naflex_export.grid import MATRICES, Bucket, check_buckets, parse_patch_sizes
from naflex_export.models import DEFAULT_MODEL, TRANSFORMERS_PREFIX
from naflex_export.models.model_names import understood
from naflex_export.models.timm_names import timm_names
from naflex_export.precision import DTYPES, QUANTIZED, Precision, dtype_named
from naflex_export.targets import NAMES, target_word
from naflex_export.targets.needs import check_needs
from naflex_export.version import __version__

if TYPE_CHECKING:
    from naflex_export.accuracy.results import GateReport
    from naflex_export.cli.outcome import Outcome
    from naflex_export.export_request import ExportRequest
    from naflex_export.exporter import Exporter
    from naflex_export.models.model_sources import ModelSource
    from naflex_export.progress import Stages


def _list_models(ctx: click.Context, param: click.Parameter, pattern: str | None) -> None:
    if pattern is None or ctx.resilient_parsing:
        return
    names = timm_names()
    found = {} if names is None else names.matching(pattern)
    if not found:
        why = "timm is not installed" if names is None else "'naflex-export --list' without a pattern shows all"
        raise click.BadParameter(f"no model matches {pattern!r}: {why}.", ctx, param)
    exit_codes(_print_models, left="not all models were listed")(found)
    ctx.exit(0)


def _print_models(found: dict[str, tuple[str, ...]]) -> None:
    for name, tags in found.items():
        click.echo(f"{name}  {' '.join(tags)}".rstrip())
    click.echo(
        f"{len(found)} models of timm's, each with the tags of its weights. NAME or NAME.TAG is taken.", err=True
    )


@click.command(cls=ArgumentsCommand, context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("model", default=DEFAULT_MODEL, shell_complete=model_words)
@click.option("--target", "targets", required=True, type=Word(NAMES, target_word), help="What to build.")
@click.option(
    "--weights",
    default="pretrained",
    show_default=True,
    shell_complete=weights_words,
    help="'pretrained' (from the hub), 'random' (a dry run), or a checkpoint: a .safetensors, .pth, .pth.tar, .ckpt or "
    ".bin file, or a folder of shards.",
)
@checkpoint_state_option
@model_args_option
@click.option(
    "--dtype",
    "dtypes",
    default="float32",
    show_default=True,
    type=Word((*DTYPES, *QUANTIZED), dtype_named),
    help="Of weights, and of floating inputs and outputs; int8 and fp8 quantize layers, calibrated on the photos of "
    "--images. Several targets and dtypes make an artifact for each pair.",
)
@click.option(
    "--keep-float32",
    default="",
    metavar="NAME,...",
    help="What computes in float32 all the same, beside --dtype float16 or bfloat16: residual, norm, softmax, pooling, "
    "embedding, or modules by name, such as blocks.7.attn. auto searches for the cheapest that passes.",
)
@click.option(
    "--keep-unquantized",
    default="",
    metavar="NAME,...",
    help="Modules whose layers are not quantized, beside --dtype int8 or fp8, such as blocks.7.mlp.fc2.",
)
@click.option(
    "--matrices",
    type=click.Choice(MATRICES),
    help="Where the graph has the resampling matrices of a learned grid from: constants for every side that a bucket "
    "admits, or its own arithmetic.  [default: stored where they take at most 3 % of the weights]",
)
@click.option(
    "--bucket",
    "buckets",
    multiple=True,
    metavar="TOKENS:MIN,OPT,MAX",
    help="Token budget and batch sizes; may be repeated.  [default: 256:1,8,32]",
)
@click.option(
    "--patch-size",
    "patch_sizes",
    metavar="SIZE,...",
    help="Patch sizes in pixels, such as 8,16,32: an entry point for each, in its own folder patchSIZE, with the patch "
    "projection resampled and folded into the weight.  [default: the model's own]",
)
@click.option(
    "--packed",
    is_flag=True,
    help="Take the images of a batch one after the other, with no padding between them, as nx.pack gives them.",
)
@click.option(
    "--tower",
    "towers",
    default="image",
    show_default=True,
    metavar="image|image,text",
    help="image,text exports the text tower of a SigLIP 2 too, with its tokenizer: for naflex-classify, naflex-search "
    "and run.text.",
)
@click.option(
    "--tokenizer",
    metavar="FOLDER",
    help="The text tower's tokenizer.  [default: where the model is loaded from]",
)
@click.option(
    "--out",
    "folder",
    type=click.Path(path_type=Path),
    help="Of several artifacts the folder that they lie in.  [default: artifacts/MODEL-TARGET]",
)
@click.option(
    "--outputs",
    metavar="NAME,...",
    help="features (pooled, through the head), tokens (the encoder's), or features,tokens.  [default: features, or "
    "tokens of a model without a pooling head]",
)
@click.option("--tokens", "with_tokens", is_flag=True, help="The same as --outputs features,tokens.")
@preprocessing_option
@click.option(
    "--no-upscale",
    is_flag=True,
    help="Enlarge no photo: a small one has few tokens, and a smaller bucket (naflex-plan --no-upscale shows which).  "
    "[default: they are enlarged, as by the model's library]",
)
@images_option
@seed_option
@quick_option
@thorough_option
@click.option(
    "--opset",
    type=int,
    metavar="NUMBER",
    help="The version of ONNX's operators.  [default: 23 of onnx, 20 of trt, the fastest there]",
)
@click.option(
    "--compile-cache",
    is_flag=True,
    help="Keep in a compile artifact what it was compiled to while it was judged: first calls take a quarter of the "
    "time on a machine of the same kind, and as long as ever on any other.",
)
@require_run_option
@click.option(
    "--triton",
    "repository",
    type=click.Path(path_type=Path),
    metavar="REPO",
    help="Write a model for Triton Inference Server into this model repository too, named as the artifact's folder.",
)
@click.option(
    "--list",
    "listed",
    is_flag=False,
    flag_value="*",
    metavar="[PATTERN]",
    is_eager=True,
    expose_value=False,
    callback=_list_models,
    help="Print timm's models that can be exported, with the tags of their weights, and do nothing else; those that "
    "hold a word, or match a pattern such as 'naflexvit*', if there is one.",
)
@click.option(
    "--keep-rejected",
    is_flag=True,
    help="Keep an artifact that the gate rejects, as OUT.rejected: to be judged again and looked into, not for use.",
)
@click.option(
    "--dry-run",
    is_flag=True,
    help="Load the model and print the plan: its inputs, profiles, sizes and how long the gate takes; build nothing.",
)
@json_option
@config_option
@verbose_option
@click.version_option(__version__, package_name="naflex_export")
@exit_codes
def export_command(
    model: str,
    targets: str,
    weights: str,
    state: str,
    model_args: tuple[str, ...],
    dtypes: str,
    keep_float32: str,
    keep_unquantized: str,
    matrices: str | None,
    buckets: tuple[str, ...],
    patch_sizes: str | None,
    packed: bool,
    towers: str,
    tokenizer: str | None,
    folder: Path | None,
    outputs: str | None,
    with_tokens: bool,
    preprocessing: Path | None,
    no_upscale: bool,
    images: Path | None,
    seed: int,
    effort: str | None,
    opset: int | None,
    compile_cache: bool,
    require_run: bool,
    repository: Path | None,
    keep_rejected: bool,
    dry_run: bool,
    for_programs: bool,
    verbose: bool,
) -> None:
    """Export MODEL to TARGET and judge the artifact against the eager model.

    MODEL is a timm name (--list shows them; hf-hub: and a hub id, or local-dir: and a folder, too), a transformers
    model's folder or hub id, with hf: before it or without, or module:factory. With --patch-size a timm model is made
    with enable_patch_interpolator=True; a factory must return one that was.

    Exit codes: 0 done and passed, 1 the gate failed, 2 the request was wrong, 3 a backend or device is missing,
    70 something unexpected, 130 and 143 interrupted.
    """
    from naflex_export.accuracy.efforts import STANDARD
    from naflex_export.export_request import ExportRequest, check_images, check_request
    from naflex_export.graph.build_settings import BuildSettings
    from naflex_export.models.model_args import parse_model_args
    from naflex_export.models.model_sources import ModelSource
    from naflex_export.models.preprocessing import settings_of
    from naflex_export.models.tower_names import check_towers
    from naflex_export.server.triton_repository import check_repository

    meant = understood(model)
    model = meant.name
    precisions = [Precision.of(dtype, keep_float32, keep_unquantized) for dtype in dtypes.split(",")]
    asked_for = [(one, precision.for_target(one)) for precision in precisions for one in targets.split(",")]
    sizes = None if patch_sizes is None else parse_patch_sizes(patch_sizes)
    asked_buckets = check_buckets([Bucket.parse(text) for text in buckets] or [Bucket()])
    asked_outputs = _outputs(outputs, with_tokens)
    asked_towers, arguments = check_towers(towers), parse_model_args(model_args)
    settings = None if preprocessing is None else settings_of(preprocessing)
    folders = _folders(folder, model, asked_for)
    if repository is not None and sizes is not None:
        raise RequestError("--triton and --patch-size were both given: a model of Triton's has one patch size")
    if repository is not None and len(asked_for) > 1:
        raise RequestError(f"--triton and {len(asked_for)} artifacts were asked for: give one target and one dtype")
    if repository is not None:
        check_repository(repository, folders[0].resolve().name)
    source = ModelSource(model, weights, seed, sizes is not None, arguments, state)
    source.check()
    requests = [
        ExportRequest(
            target,
            one,
            asked_buckets,
            precision,
            outputs=asked_outputs,
            matrices=matrices,
            patch_sizes=sizes,
            packed=packed,
            towers=asked_towers,
            tokenizer=tokenizer,
            preprocessing=settings,
            upscale=not no_upscale,
            images=images,
            seed=seed,
            effort=effort or STANDARD,
            require_run=require_run,
            keep_rejected=keep_rejected,
            settings=BuildSettings(verbose=verbose, compile_cache=compile_cache, opset=opset),
        )
        for (target, precision), one in zip(asked_for, folders, strict=True)
    ]
    for request in requests:
        check_request(request)
        check_images(request)
    begin(f"{model} to {targets.replace(',', ', ')} in {dtypes.replace(',', ', ')}")

    from naflex_export.cli.console import print_note, spoken_on_stderr

    quiet_libraries(verbose)
    source.find()
    for target in dict.fromkeys(request.target for request in requests):
        check_needs(target)
    if meant.note:
        print_note(meant.note)
    if weights == "random":
        print_note("a dry run; the artifact computes nothing of use", "random weights")
    with spoken_on_stderr(for_programs):
        _export(source, requests, repository, for_programs=for_programs, dry_run=dry_run)


def _export(
    source: ModelSource, requests: list[ExportRequest], repository: Path | None, *, for_programs: bool, dry_run: bool
) -> None:
    """Load the model once, and make and judge each artifact asked for; with `dry_run` print what would be made.

    Raises:
        RejectedError: one was rejected, the first if several were.
    """
    from naflex_export.cli.console import err, out, print_lines, print_note, print_report
    from naflex_export.cli.outcome import as_json, outcome_table
    from naflex_export.exporter import Exporter, Traced
    from naflex_export.models.towers import remarks_on
    from naflex_export.progress import Stages
    from naflex_export.server.triton_repository import write_repository

    reports: list[GateReport] = []

    def judged(report: GateReport) -> None:
        reports.append(report)
        print_report(report)

    stages = Stages(err, on_report=judged)
    with stages.stage(source.stage):
        opened = source.open()
    for note in (*opened.notes, *remarks_on(opened.model, requests[0].preprocessing)):
        print_note(note)
    traced: Traced | None = {} if len(requests) > 1 else None
    described = opened.source.describe()
    exporters = [Exporter(opened.model, replace(one, source=described), stages, traced) for one in requests]
    if dry_run:
        from naflex_export.cli.dry_run import plan_of

        plan = plan_of(exporters)
        print_lines(plan.lines())
        if for_programs:
            click.echo(plan.as_json())
        return
    outcomes, failures = _run_all(exporters, stages, reports)
    if len(exporters) > 1:
        out.print(outcome_table(outcomes))
    if repository is not None and not failures:
        written = write_repository(requests[0].out, repository, requests[0].out.resolve().name)
        out.print(f"for Triton: {written}", soft_wrap=True, highlight=False, markup=False)
    if for_programs:
        click.echo(as_json(outcomes))
    if failures:
        raise failures[0]


def _run_all(
    exporters: list[Exporter], stages: Stages, reports: list[GateReport]
) -> tuple[list[Outcome], list[RejectedError]]:
    """Return what came of each export, and the errors of those that were rejected: one does not stop the others."""
    from naflex_export.cli.console import print_artifact, print_error
    from naflex_export.cli.outcome import Outcome

    outcomes, failures = [], []
    for number, exporter in enumerate(exporters, 1):
        request, started = exporter.request, time.perf_counter()
        if len(exporters) > 1:
            stages.named(f"{number} of {len(exporters)}, {request.target} in {request.precision}")
        reports.clear()
        try:
            artifact = exporter.run()
        except RejectedError as error:
            failures.append(error)
            seconds, report = time.perf_counter() - started, reports[-1] if reports else None
            outcomes.append(Outcome.rejected(request, report, seconds, str(error)))
            if len(exporters) > 1:
                print_error(error)
        else:
            outcomes.append(Outcome.of(artifact, time.perf_counter() - started))
            there = [one.folder for one in outcomes if one.published]
            leaves(f"{', '.join(there)} {'was' if len(there) == 1 else 'were'} published")
            print_artifact(artifact, stages)
    return outcomes, failures


def _folders(given: Path | None, model: str, asked_for: list[tuple[str, Precision]]) -> list[Path]:
    """Return the folder of each artifact: of one its own, of several one in the folder given for each."""
    if given is not None and len(asked_for) == 1:
        return [given]
    several_dtypes = len({precision.name for _, precision in asked_for}) > 1
    names = [f"{target}-{precision.name}" if several_dtypes else target for target, precision in asked_for]
    if given is not None:
        return [given / name for name in names]
    return [Path("artifacts") / f"{_file_name(model)}-{name}" for name in names]


def _outputs(given: str | None, with_tokens: bool) -> tuple[str, ...] | None:
    """Return the outputs asked for, None for the model's own default."""
    if given is None:
        return ("features", "tokens") if with_tokens else None
    names = tuple(name.strip() for name in given.split(","))
    if with_tokens and names != ("features", "tokens"):
        raise RequestError(f"--outputs {given} and --tokens were both given: --tokens means --outputs features,tokens")
    return names


def _file_name(model: str) -> str:
    for prefix in (
        TRANSFORMERS_PREFIX,
        "local-dir:",
        "hf-hub:",
    ):  # the folder's own name, or the hub id's after its owner
        if model.startswith(prefix):
            model = Path(model.removeprefix(prefix)).resolve().name
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", model)
