"""`naflex-export`: parsing and printing only."""

from __future__ import annotations

import re
from pathlib import Path

import click

from naflex_export.cli.options import (
    exit_codes,
    images_option,
    quick_option,
    quiet_libraries,
    require_run_option,
    seed_option,
    thorough_option,
    verbose_option,
)
from naflex_export.grid import Bucket, check_buckets, parse_patch_sizes
from naflex_export.models import DEFAULT_MODEL, TRANSFORMERS_PREFIX
from naflex_export.precision import DTYPES, Precision
from naflex_export.targets import NAMES
from naflex_export.version import __version__


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("model", default=DEFAULT_MODEL)
@click.option("--target", required=True, type=click.Choice(NAMES), help="What to build.")
@click.option(
    "--weights",
    default="pretrained",
    show_default=True,
    help="'pretrained' (from the hub), 'random' (a dry run) or a .safetensors or .pth file.",
)
@click.option("--dtype", default="float32", show_default=True, type=click.Choice(DTYPES))
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
@click.option("--tokens", "with_tokens", is_flag=True, help="Give the encoder's tokens beside its features.")
@images_option
@seed_option
@quick_option
@thorough_option
@require_run_option
@verbose_option
@click.version_option(__version__, package_name="naflex_export")
@exit_codes
def export_command(
    model: str,
    target: str,
    weights: str,
    dtype: str,
    buckets: tuple[str, ...],
    patch_sizes: str | None,
    folder: Path | None,
    with_tokens: bool,
    images: Path | None,
    seed: int,
    effort: str | None,
    require_run: bool,
    verbose: bool,
) -> None:
    """Export MODEL to TARGET and judge the artifact against the eager model.

    MODEL is a timm name, hf: and a transformers model's folder or hub id, or module:factory. With --patch-size a timm
    model is made with enable_patch_interpolator=True; a factory must return one that was.

    Exit codes: 0 done and passed, 1 the gate failed, 2 the request was wrong, 3 a backend or device is missing,
    70 something unexpected, 130 and 143 interrupted.
    """
    from naflex_export.accuracy.cases import STANDARD
    from naflex_export.cli.console import err, print_artifact, print_report
    from naflex_export.cli.progress import Stages
    from naflex_export.exporter import Exporter, ExportRequest
    from naflex_export.graph.build_settings import BuildSettings
    from naflex_export.models.model_sources import ModelSource
    from naflex_export.serving.publish import check_destination

    quiet_libraries(verbose)
    folder = folder or Path("artifacts") / f"{_file_name(model)}-{target}"
    chosen = check_buckets([Bucket.parse(text) for text in buckets] or [Bucket()])
    sizes = None if patch_sizes is None else parse_patch_sizes(patch_sizes)
    source = ModelSource(model, weights, seed, patch_interpolator=sizes is not None)
    source.check()
    check_destination(folder)
    if weights == "random":
        err.print("[bold yellow]random weights:[/] a dry run; the artifact computes nothing of use", soft_wrap=True)

    stages = Stages(err, on_report=print_report)
    with stages.stage("load"):
        loaded = source.load()
    request = ExportRequest(
        target,
        folder,
        chosen,
        Precision(dtype),
        outputs=("features", "tokens") if with_tokens else ("features",),
        patch_sizes=sizes,
        images=images,
        seed=seed,
        effort=effort or STANDARD,
        require_run=require_run,
        source=source.describe(),
        settings=BuildSettings(verbose=verbose),
    )
    artifact = Exporter(loaded, request, stages).run()
    print_artifact(artifact, stages)


def _file_name(model: str) -> str:
    if model.startswith(TRANSFORMERS_PREFIX):  # the folder's own name, or the hub id's after its owner
        model = Path(model.removeprefix(TRANSFORMERS_PREFIX)).resolve().name
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", model)
