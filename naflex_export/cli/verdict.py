"""How a command ends that came to a verdict: in words, in files, as JSON for programs, and by its exit code."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol, TypeVar

import click

from naflex_export.cli.console import out, print_written, spoken_on_stderr


class Verdict(Protocol):
    """What the gate, a judge of a port and a comparison of artifacts come to."""

    @property
    def passed(self) -> bool: ...

    def raise_for_failure(self) -> None: ...


Found = TypeVar("Found", bound=Verdict)


def tell(
    found: Found,
    reports: Sequence[Path],
    *,
    show: Callable[[Found], None],
    write: Callable[[Found, Path], None],
    as_json: Callable[[Found], str],
    for_programs: bool,
    means: str = "",
) -> None:
    """Print a verdict, write it where it was asked for, and raise it if it is a failure.

    Args:
        found: the verdict.
        reports: paths of the files to write.
        show: prints it for people.
        write: writes it to a path, in the format of its suffix.
        as_json: returns it as JSON, with a line's end.
        for_programs: print the JSON on standard output, and all else on standard error.
        means: what a pass means, in words.

    Raises:
        GateFailure: it is a failure.
    """
    with spoken_on_stderr(for_programs):
        show(found)
        for path in reports:
            write(found, path)
            print_written(path)
        if found.passed:
            out.print(f"[bold green]passed[/]{means}")
    if for_programs:
        click.echo(as_json(found), nl=False)
    found.raise_for_failure()
