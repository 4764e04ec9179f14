"""What the command lines share: options, exit codes and logs. Imports click alone, so that --help is fast."""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import ParamSpec

import click

from naflex_export.errors import NaflexExportError

P = ParamSpec("P")


def exit_codes(command: Callable[P, None]) -> Callable[P, None]:
    """Turn the package's errors into one line on standard error and their exit code."""

    @wraps(command)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            command(*args, **kwargs)
        except NaflexExportError as error:
            from naflex_export.cli.console import print_error

            print_error(error)
            sys.exit(error.exit_code)

    return wrapped


images_option = click.option(
    "--images",
    type=click.Path(path_type=Path),
    help="Folder of photos to judge on.  [default: three that ship with the package]",
)
verbose_option = click.option("--verbose", is_flag=True, help="Let the backends' own logs through.")
require_run_option = click.option(
    "--require-run", is_flag=True, help="Fail (exit 3) where the artifact can be built and not run."
)
quick_option = click.option(
    "--quick",
    "effort",
    flag_value="quick",
    help="Judge on the photos, mixed grids and one column only, and check invariances in the largest bucket only.",
)
thorough_option = click.option(
    "--thorough",
    "effort",
    flag_value="thorough",
    help="Judge on four seeds, the grids of NaFlex's size rule up to 8:1, and the largest batch at full length.",
)
locate_option = click.option(
    "--locate",
    is_flag=True,
    help="Compare module by module even if the gate passes; after a failure that is done anyway.",
)
seed_option = click.option("--seed", default=0, show_default=True, help="Of generated batches and random weights.")


def quiet_libraries(verbose: bool) -> None:
    """Keep the libraries' warnings off a user's screen, or ask the backends for their own logs."""
    if verbose:
        logging.getLogger("naflex_export").setLevel(logging.DEBUG)
    else:
        warnings.simplefilter("ignore")
        for name in ("torch", "timm", "huggingface_hub", "onnxscript", "onnx_ir"):
            logging.getLogger(name).setLevel(logging.ERROR)
