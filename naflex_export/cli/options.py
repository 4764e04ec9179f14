"""What the command lines share: options and logs. Imports click alone, so that --help is fast."""

from __future__ import annotations

import difflib
import logging
import os
import re
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click
from click.shell_completion import CompletionItem

from naflex_export.cli.completion import model_words, weights_words
from naflex_export.grid import SEEDS

reference_option = click.option(
    "--reference",
    metavar="MODEL",
    shell_complete=model_words,
    help="The model to compare with.  [default: the one exported]",
)
reference_weights_option = click.option(
    "--weights", shell_complete=weights_words, help="Its weights.  [default: those it was exported with]"
)
trust_source_option = click.option(
    "--trust-source",
    is_flag=True,
    help="Run the python factory, or fetch the hub repository, that the artifact names as its model. Whoever made the "
    "artifact chose it.",
)


def read_config(ctx: click.Context, param: click.Parameter, path: Path | None) -> None:
    """Take options from a TOML file that has them by the same words as the command line, which wins over it."""
    if path is None:
        return
    import tomllib

    try:
        given = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise click.BadParameter(f"{str(path)!r} cannot be read as TOML: {error}.", ctx, param) from error
    known: dict[str, click.Parameter] = {}
    for one in ctx.command.params:
        words = one.opts if isinstance(one, click.Option) else [one.name or ""]
        known |= {word.lstrip("-"): one for word in words if word.startswith("--") or word == one.name}
    defaults: dict[str, Any] = {}
    for word, value in given.items():
        option = known.get(word)
        if option is None or option is param:
            close = difflib.get_close_matches(word, known, n=1)
            hint = f" Did you mean {close[0]!r}?" if close else ""
            raise click.BadParameter(
                f"{str(path)!r} sets {word!r}, which is no option of this command.{hint}", ctx, param
            )
        flag = isinstance(option, click.Option) and option.is_flag
        if flag != isinstance(value, bool):
            expected = "true or false" if flag else "a text, a number or a list of texts"
            raise click.BadParameter(f"{str(path)!r} sets {word} to {value!r}: expected {expected}.", ctx, param)
        if word == "model-args" and isinstance(value, dict):
            value = [f"{name}={inner}" for name, inner in value.items()]  # noqa: PLW2901
        if flag:
            if not value:
                continue
            asked = getattr(option, "flag_value", True)
            value = asked if isinstance(asked, str) else True  # noqa: PLW2901
        elif option.multiple if isinstance(option, click.Option) else False:
            value = [str(inner) for inner in (value if isinstance(value, list) else [value])]  # noqa: PLW2901
        else:
            value = ",".join(map(str, value)) if isinstance(value, list) else value  # noqa: PLW2901
        defaults[option.name or ""] = value
    ctx.default_map = {**(ctx.default_map or {}), **defaults}


config_option = click.option(
    "--config",
    type=click.Path(path_type=Path),
    metavar="FILE.toml",
    is_eager=True,
    expose_value=False,
    callback=read_config,
    help="Take options from a TOML file, by the same words: model, target, dtype, bucket. What stands on the command "
    "line wins.",
)


class Word(click.types.StringParamType):
    """One of a few words, in any case, or another that means it; several with commas between them.

    Args:
        words: that there are.
        meant: returns one of them for whatever means it, and what means none as it is.
    """

    name = "word"

    def __init__(self, words: Sequence[str], meant: Callable[[str], str]) -> None:
        self.words, self._meant = tuple(words), meant

    def get_metavar(self, param: click.Parameter, ctx: click.Context) -> str:
        return f"[{'|'.join(self.words)}],..."

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        return ",".join(dict.fromkeys(self._one(one, param, ctx) for one in value.split(",")))

    def get_missing_message(self, param: click.Parameter, ctx: click.Context | None) -> str:
        return f"Choose from {', '.join(self.words)}."

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        """Return the words that may end what was typed, behind its last comma."""
        before, comma, last = incomplete.rpartition(",")
        return [CompletionItem(f"{before}{comma}{word}") for word in self.words if word.startswith(last.lower())]

    def _one(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        found = self._meant(value)
        if found not in self.words:
            close = difflib.get_close_matches(value.lower(), self.words, n=1)
            hint = f" Did you mean {close[0]!r}?" if close else ""
            self.fail(f"{value!r} is not one of {', '.join(map(repr, self.words))}.{hint}", param, ctx)
        return found


class ArgumentsCommand(click.Command):
    """A command whose `--model-args` takes several `name=value` behind it, as timm's command lines have them."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Put the option ahead of each `name=value` that follows it, as click knows a repeated option."""
        if {QUICK, THOROUGH} <= set(args) and not ctx.resilient_parsing:
            raise click.UsageError(f"{QUICK} and {THOROUGH} were both given: expected one of them.", ctx)
        spread: list[str] = []
        following = False
        for index, arg in enumerate(args):
            if arg == "--":
                spread += args[index:]
                break
            following = following and _ARGUMENT.match(arg) is not None
            spread += [MODEL_ARGS, arg] if following and args[index - 1] != MODEL_ARGS else [arg]
            following = following or arg == MODEL_ARGS or arg.startswith(f"{MODEL_ARGS}=")
        return super().parse_args(ctx, spread)


MODEL_ARGS = "--model-args"
QUICK, THOROUGH = "--quick", "--thorough"
_ARGUMENT = re.compile(r"[A-Za-z_]\w*=")

model_args_option = click.option(
    MODEL_ARGS,
    "model_args",
    multiple=True,
    metavar="NAME=VALUE...",
    help="What timm's constructor, or the factory, is given: num_classes=30 in_chans=4 img_size=384.",
)
checkpoint_state_option = click.option(
    "--checkpoint-state",
    "state",
    default="",
    metavar="NAME",
    help="Which state of the checkpoint to take, such as state_dict or state_dict_ema.  [default: the average (EMA) "
    "where there is one, and it is said which]",
)
preprocessing_option = click.option(
    "--preprocessing",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="How photos are prepared: a JSON file, or a folder with a preprocessor_config.json, or timm's mean, std and "
    "interpolation.  [default: what the model says]",
)
images_option = click.option(
    "--images",
    type=click.Path(path_type=Path),
    help="Folder of photos to judge on.  [default: three that ship with the package]",
)
device_option = click.option("--device", help="Where to run, such as cpu or cuda:0.  [default: as nx.load]")
untrusted_option = click.option(
    "--untrusted", is_flag=True, help="Refuse an artifact that holds code: compile, aot and trt ones."
)
verify_option = click.option(
    "--verify", default="full", show_default=True, type=click.Choice(["full", "size"]), help="Of the artifact's files."
)
json_option = click.option(
    "--json",
    "for_programs",
    is_flag=True,
    help="Print what came of it as JSON on standard output, and all else on standard error.",
)
verbose_option = click.option("--verbose", is_flag=True, help="Let the backends' own logs through.")
require_run_option = click.option(
    "--require-run", is_flag=True, help="Fail (exit 3) where the artifact can be built and not run."
)
quick_option = click.option(
    QUICK,
    "effort",
    flag_value="quick",
    help="Judge on the photos, mixed grids and one column only, and check invariances in the largest bucket only.",
)
thorough_option = click.option(
    THOROUGH,
    "effort",
    flag_value="thorough",
    help="Judge on four seeds, the grids of NaFlex's size rule up to 8:1, and the largest batch at full length.",
)
locate_option = click.option(
    "--locate",
    is_flag=True,
    help="Compare module by module even if the gate passes; after a failure that is done anyway.",
)
seed_option = click.option(
    "--seed",
    default=0,
    show_default=True,
    type=click.IntRange(0, SEEDS - 1),
    help="Of generated batches and random weights.",
)


def begin(what: str) -> None:
    """Say what begins, ahead of the seconds that it takes to import torch."""
    click.echo(f"{what}: loading torch", err=True)


_QUIET = {"TORCH_LOGS": "-all", "HF_HUB_VERBOSITY": "error"}
"""Of libraries that set their loggers' levels anew where they are imported, in this process and in those it starts."""


def quiet_libraries(verbose: bool) -> None:
    """Keep the libraries' warnings off a user's screen, or ask the backends for their own logs."""
    if verbose:
        logging.getLogger("naflex_export").setLevel(logging.DEBUG)
    else:
        warnings.simplefilter("ignore")
        for name, value in _QUIET.items():
            os.environ.setdefault(name, value)
        for name in ("torch", "timm", "huggingface_hub", "onnxscript", "onnx_ir"):
            logging.getLogger(name).setLevel(logging.ERROR)
