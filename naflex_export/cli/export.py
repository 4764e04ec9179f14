"""`naflex-export`: parsing and printing only."""

from __future__ import annotations

import re
from pathlib import Path

import click

from naflex_export.cli.options import (
    ArgumentsCommand,
    Word,
    checkpoint_state_option,
    exit_codes,
    images_option,
    model_args_option,
    preprocessing_option,
    quick_option,
    quiet_libraries,
    require_run_option,
    seed_option,
    thorough_option,
    verbose_option,
)
from naflex_export.errors import RequestError
from naflex_export.grid import MATRICES, Bucket, check_buckets, parse_patch_sizes
from naflex_export.models import DEFAULT_MODEL, TRANSFORMERS_PREFIX
from naflex_export.models.model_names import understood
from naflex_export.models.timm_names import timm_names
from naflex_export.precision import DTYPES, Precision, dtype_named
from naflex_export.targets import NAMES, target_word
from naflex_export.version import __version__


def _list_models(ctx: click.Context, param: click.Parameter, pattern: str | None) -> None:
    if pattern is None:
        return
    names = timm_names()
    found = {} if names is None else names.matching(pattern)
    if not found:
        why = "timm is not installed" if names is None else "'naflex-export --list' without a pattern shows all"
        raise click.BadParameter(f"no model matches {pattern!r}: {why}.", ctx, param)
    for name, tags in found.items():
        click.echo(f"{name}  {' '.join(tags)}".rstrip())
    click.echo(
        f"{len(found)} models of timm's, each with the tags of its weights. NAME or NAME.TAG is taken.", err=True
    )
    ctx.exit(0)


@click.command(cls=ArgumentsCommand, context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("model", default=DEFAULT_MODEL)
@click.option("--target", required=True, type=Word(NAMES, target_word), help="What to build.")
@click.option(
    "--weights",
    default="pretrained",
    show_default=True,
    help="'pretrained' (from the hub), 'random' (a dry run), or a checkpoint: a .safetensors, .pth, .pth.tar, .ckpt or "
    ".bin file, or a folder of shards.",
)
@checkpoint_state_option
@model_args_option
@click.option("--dtype", default="float32", show_default=True, type=Word(DTYPES, dtype_named))
@click.option(
    "--keep-float32",
    default="",
    metavar="NAME,...",
    help="What computes in float32 all the same, beside --dtype float16 or bfloat16: residual, norm, softmax, pooling, "
    "embedding, or modules by name, such as blocks.7.attn. auto searches for the cheapest that passes.",
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
@click.option("--out", "folder", type=click.Path(path_type=Path), help="[default: artifacts/MODEL-TARGET]")
@click.option(
    "--outputs",
    metavar="NAME,...",
    help="features (pooled, through the head), tokens (the encoder's), or features,tokens.  [default: features, or "
    "tokens of a model without a pooling head]",
)
@click.option("--tokens", "with_tokens", is_flag=True, help="The same as --outputs features,tokens.")
@preprocessing_option
@images_option
@seed_option
@quick_option
@thorough_option
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
@verbose_option
@click.version_option(__version__, package_name="naflex_export")
@exit_codes
def export_command(
    model: str,
    target: str,
    weights: str,
    state: str,
    model_args: tuple[str, ...],
    dtype: str,
    keep_float32: str,
    matrices: str | None,
    buckets: tuple[str, ...],
    patch_sizes: str | None,
    folder: Path | None,
    outputs: str | None,
    with_tokens: bool,
    preprocessing: Path | None,
    images: Path | None,
    seed: int,
    effort: str | None,
    compile_cache: bool,
    require_run: bool,
    repository: Path | None,
    verbose: bool,
) -> None:
    """Export MODEL to TARGET and judge the artifact against the eager model.

    MODEL is a timm name (--list shows them; hf-hub: and a hub id, or local-dir: and a folder, too), a transformers
    model's folder or hub id, with hf: before it or without, or module:factory. With --patch-size a timm model is made
    with enable_patch_interpolator=True; a factory must return one that was.

    Exit codes: 0 done and passed, 1 the gate failed, 2 the request was wrong, 3 a backend or device is missing,
    70 something unexpected, 130 and 143 interrupted.
    """
    meant = understood(model)
    model = meant.name

    from rich.markup import escape

    from naflex_export.accuracy.cases import STANDARD
    from naflex_export.cli.console import err, out, print_artifact, print_report
    from naflex_export.cli.progress import Stages
    from naflex_export.exporter import Exporter, ExportRequest
    from naflex_export.graph.build_settings import BuildSettings
    from naflex_export.models.model_sources import ModelSource, parse_model_args
    from naflex_export.models.preprocessing import settings_of
    from naflex_export.models.towers import remarks_on
    from naflex_export.server.triton_repository import check_repository, write_repository
    from naflex_export.serving.publish import check_destination

    quiet_libraries(verbose)
    folder = folder or Path("artifacts") / f"{_file_name(model)}-{target}"
    chosen = check_buckets([Bucket.parse(text) for text in buckets] or [Bucket()])
    sizes = None if patch_sizes is None else parse_patch_sizes(patch_sizes)
    asked, precision = _outputs(outputs, with_tokens), Precision.of(dtype, keep_float32)
    source = ModelSource(model, weights, seed, sizes is not None, parse_model_args(model_args), state)
    source.check()
    prepared = None if preprocessing is None else settings_of(preprocessing)
    check_destination(folder)
    if repository is not None:
        if sizes is not None:
            raise RequestError("--triton and --patch-size were both given: a model of Triton's has one patch size")
        check_repository(repository, folder.resolve().name)
    if meant.note:
        err.print(f"[bold yellow]note:[/] {escape(meant.note)}", soft_wrap=True, highlight=False)
    if weights == "random":
        err.print("[bold yellow]random weights:[/] a dry run; the artifact computes nothing of use", soft_wrap=True)

    stages = Stages(err, on_report=print_report)
    with stages.stage("load"):
        opened = source.open()
    for note in (*opened.notes, *remarks_on(opened.model, prepared)):
        err.print(f"[bold yellow]note:[/] {escape(note)}", soft_wrap=True, highlight=False)
    request = ExportRequest(
        target,
        folder,
        chosen,
        precision,
        outputs=asked,
        matrices=matrices,
        patch_sizes=sizes,
        preprocessing=prepared,
        images=images,
        seed=seed,
        effort=effort or STANDARD,
        require_run=require_run,
        source=opened.source.describe(),
        settings=BuildSettings(verbose=verbose, compile_cache=compile_cache),
    )
    artifact = Exporter(opened.model, request, stages).run()
    print_artifact(artifact, stages)
    if repository is not None:
        written = write_repository(artifact.path, repository, folder.resolve().name)
        out.print(f"for Triton: {escape(str(written))}", soft_wrap=True, highlight=False)


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
