"""How a command ends: each error as one line on standard error and an exit code, and signals as errors."""

from __future__ import annotations

import contextlib
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from functools import wraps
from typing import Any, NoReturn, ParamSpec

import click

from naflex_export.cli.streams import UNEXPECTED, OutputLost, drop_output, guarded
from naflex_export.errors import NaflexExportError

P = ParamSpec("P")

HUNG_UP, INTERRUPTED, TERMINATED = 129, 130, 143
"""As a shell has them: 128 and the signal's number."""

_LEFT = "naflex_export.left"


class Terminated(BaseException):
    """SIGTERM, or SIGHUP of a closed terminal: it ends what runs as an error does, so that nothing is left behind."""


def exit_codes(command: Callable[P, None], left: str = "nothing was published") -> Callable[P, None]:
    """Turn the package's errors into one line on standard error and their exit code.

    Only a command that comes to its end exits with 0: code that it runs may ask for anything else in vain.

    Args:
        command: to run.
        left: what a command that was stopped leaves behind, in words.
    """

    @wraps(command)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> None:
        asked: list[int] = []
        with guarded():
            try:
                with _signals_raise(asked):
                    command(*args, **kwargs)
                    sys.stdout.flush()
            except (click.exceptions.Exit, click.ClickException):
                raise
            except BaseException as error:
                context = click.get_current_context(silent=True)
                there = left if context is None else context.meta.get(_LEFT, left)
                if asked:  # whatever a library made of it, in the middle of an import for instance
                    said, code = _STOPPED[asked[0]]
                    _exit(NaflexExportError(f"{said}; {there}"), code)
                _exit_by(error, there)

    return wrapped


def leaves(text: str) -> None:
    """Note, in words, what the present command leaves behind from now on if it is stopped."""
    context = click.get_current_context(silent=True)
    if context is not None:
        context.meta[_LEFT] = text


def run(command: click.Command, program: str) -> None:
    """Run a command line as `program`, and end as it ends; what click itself prints, such as help, may be lost too."""
    with guarded():
        try:
            command(prog_name=program)
        except OutputLost as error:
            drop_output()
            _exit(error, error.exit_code)


def _exit_by(error: BaseException, left: str) -> NoReturn:
    """Say what ended a command, and end with its exit code."""
    if isinstance(error, OutputLost):
        drop_output()
        _exit(NaflexExportError(f"{error}; {left}"), error.exit_code)
    if isinstance(error, NaflexExportError):
        _exit(error, error.exit_code)
    if isinstance(error, KeyboardInterrupt | click.Abort):
        _exit(NaflexExportError(f"interrupted; {left}"), INTERRUPTED)
    if isinstance(error, SystemExit):
        said = f"code that it ran asked to exit with {error.code!r} before there was a result"
        _exit(NaflexExportError(said), NaflexExportError.exit_code)
    traceback.print_exception(error)
    _exit(NaflexExportError(f"unexpected {type(error).__name__}, as above; there is no result"), UNEXPECTED)


def _exit(error: Exception, code: int) -> NoReturn:
    from naflex_export.cli.console import print_error

    print_error(error)
    sys.exit(code)


_STOPPED: dict[int, tuple[str, int]] = {
    signal.SIGINT: ("interrupted", INTERRUPTED),
    signal.SIGTERM: ("terminated", TERMINATED),
}
if hasattr(signal, "SIGHUP"):  # Windows has none
    _STOPPED[signal.SIGHUP] = ("hung up", HUNG_UP)


@contextlib.contextmanager
def _signals_raise(asked: list[int]) -> Iterator[None]:
    """Have signals end what runs as an error does; note them, for a library may make another of it.

    One that was ignored as this process began stays so: a script's shell has commands in its background ignore SIGINT.
    """

    def interrupt(number: int, frame: object) -> None:
        asked.append(number)
        raise KeyboardInterrupt

    def stop(number: int, frame: object) -> None:
        asked.append(number)
        raise Terminated

    before: dict[int, Any] = {}
    try:
        for number in _STOPPED:
            if signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler):
                before[number] = signal.signal(number, interrupt if number == signal.SIGINT else stop)
    except ValueError:  # not in the main thread, where signals come to
        yield
        return
    try:
        if hasattr(signal, "pthread_sigmask"):  # Windows has none
            signal.pthread_sigmask(signal.SIG_UNBLOCK, set(_STOPPED))
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
