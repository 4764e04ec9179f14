"""Exit code 1 is a verdict: no other error has it, and help and documentation agree on which commands judge."""

from __future__ import annotations

import inspect
import re
from importlib import import_module
from pathlib import Path

import click
import pytest

import naflex_export
from naflex_export import errors
from naflex_export.cli.gate import COMMANDS as OF_GATE
from naflex_export.cli.supervised import COMMANDS

PAGE = Path(naflex_export.__file__).parents[1] / "docs" / "commands.md"


def commands() -> dict[str, click.Command]:
    """Return all commands by the name that a user types."""
    found = {f"naflex-{name}": f"{name}_command" for name in COMMANDS}
    made = {name: getattr(import_module(f"naflex_export.cli.{name[7:]}"), one) for name, one in found.items()}
    return made | {f"naflex-gate {name}": command for name, command in OF_GATE.items()}


def test_no_error_but_a_rejection_has_the_code_of_a_verdict() -> None:
    made = [one for _, one in inspect.getmembers(errors, inspect.isclass) if issubclass(one, errors.NaflexExportError)]
    assert {errors.PhotosFailed, errors.RejectedError} <= set(made)
    for one in made:
        assert (one.exit_code == 1) == issubclass(one, errors.RejectedError), one


@pytest.mark.parametrize(
    "name", [*(f"naflex-{name}" for name in COMMANDS), *(f"naflex-gate {name}" for name in OF_GATE)]
)
def test_help_and_page_say_which_commands_judge(name: str) -> None:
    said = " ".join((commands()[name].help or "").partition("Exit codes: ")[2].split())
    codes = re.findall(r"(?:^|, |and )(\d+)\b", said)
    assert {"0", "2", "3", "70", "130", "143"} <= set(codes), said
    row = re.search(rf"^\| `{name}` \|([^|]*)\|([^|]*)\|([^|]*)\|$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    assert row is not None, f"the page has no row for {name}"
    assert ("1" in codes) == bool(row[2].strip())
