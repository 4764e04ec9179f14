"""What a shell's Tab key is answered, of `naflex` and of each command: by click, in one process, and without torch.

`_NAFLEX_COMPLETE=bash_source naflex` prints what a shell needs for all of them, `_NAFLEX_GATE_COMPLETE=bash_source
naflex-gate` for that one alone.
"""

from __future__ import annotations

import os
from importlib import import_module

import click
from click.shell_completion import CompletionItem, ShellComplete, shell_complete

from naflex_export.cli.completion_shells import Bash, Fish, Zsh
from naflex_export.cli.supervised import COMMANDS, completion_variable

HELP = "help"
SHELLS: dict[str, type[ShellComplete]] = {shell.name: shell for shell in (Bash, Zsh, Fish)}


class Naflex(click.Group):
    """`naflex`, as a shell sees it: the other commands by their short names, each imported once it is asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return what may follow `naflex`."""
        return [*COMMANDS, HELP]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Return a command; behind `help` all may follow again."""
        return self if cmd_name == HELP else _command(cmd_name) if cmd_name in COMMANDS else None

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """Return what may end a word, without an import of what does it."""
        if incomplete.startswith("-"):
            return click.Command.shell_complete(self, ctx, incomplete)
        known = {**COMMANDS, HELP: "the options of a command"}
        return [CompletionItem(name, help=what) for name, what in known.items() if name.startswith(incomplete)]


def answer(program: str, instruction: str) -> int:
    """Print what a shell asks for and return an exit code: 1 where click knows no such shell or question.

    Args:
        program: "naflex", or a command as it is installed, such as "naflex-gate".
        instruction: the shell and what it asks for, as click has it: "bash_source", "zsh_complete".
    """
    shell, _, asked = instruction.partition("_")
    command = _naflex if program == "naflex" else _command(program.removeprefix("naflex-"))
    if asked != "source" or shell not in SHELLS:
        return shell_complete(command, {}, program, completion_variable(program), instruction)
    programs = ["naflex", *(f"naflex-{name}" for name in COMMANDS)] if program == "naflex" else [program]
    for one in programs:  # without click's look for the version of bash, which starts one each time
        script = SHELLS[shell](_naflex, {}, one, completion_variable(one))
        click.echo(script.source_template % script.source_vars())
    return 0


def model_words(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Return timm's models that may be meant, with the tags of their weights behind a dot; and folders.

    Args:
        ctx: of the command.
        param: that is completed.
        incomplete: what was typed of it.
    """
    from naflex_export.models.timm_names import timm_names

    folders = [CompletionItem(incomplete, type="dir")]
    if os.sep in incomplete or (names := timm_names()) is None:
        return folders
    wanted, tagged, _ = incomplete.lower().partition(".")
    if tagged:
        found = [f"{wanted}.{tag}" for tag in names.naflex.get(wanted, ())]
    else:
        found = [name for name in names.naflex if name.startswith(wanted or "naflexvit")]  # else two hundred of them
    return [*folders, *(CompletionItem(name) for name in found if name.startswith(incomplete.lower()))]


def weights_words(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Return what may be meant by weights: a word, a file or a folder.

    Args:
        ctx: of the command.
        param: that is completed.
        incomplete: what was typed of it.
    """
    words = [CompletionItem(word) for word in ("pretrained", "random") if word.startswith(incomplete)]
    return [CompletionItem(incomplete, type="file"), *words]


def _command(name: str) -> click.Command:
    command: click.Command = getattr(import_module(f"naflex_export.cli.{name}"), f"{name}_command")
    return command


_naflex = Naflex(
    "naflex",
    params=[click.Option(["--version"], is_flag=True)],
    context_settings={"help_option_names": ["-h", "--help"]},
)
