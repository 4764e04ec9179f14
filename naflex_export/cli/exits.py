"""How a command ends: each error as one line on standard error and an exit code, and signals as errors."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from functools import wraps
from typing import Any, NoReturn, ParamSpec

import click

from naflex_export.errors import NaflexExportError

P = ParamSpec("P")

INTERRUPTED, UNREAD, TERMINATED = 130, 141, 143
"""As a shell has them: 128 and the signal's number, SIGPIPE's where nobody reads the output any more."""

UNEXPECTED = 70
"""Of a fault in this program, or in code that it was asked to run: it must not look like a verdict."""


class Terminated(BaseException):
    """SIGTERM: it ends what runs as an error does, so that nothing is left behind."""


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
        try:
            with _signals_raise(asked):
                command(*args, **kwargs)
        except (click.exceptions.Exit, click.ClickException):
            raise
        except BaseException as error:
            if asked:  # whatever a library made of it, in the middle of an import for instance
                said, code = _STOPPED[asked[0]]
                _exit(NaflexExportError(f"{said}; {left}"), code)
            _exit_by(error, left)

    return wrapped


def _exit_by(error: BaseException, left: str) -> NoReturn:
    """Say what ended a command, and end with its exit code."""
    if isinstance(error, NaflexExportError):
        _exit(error, error.exit_code)
    if isinstance(error, KeyboardInterrupt | click.Abort):
        _exit(NaflexExportError(f"interrupted; {left}"), INTERRUPTED)
    if isinstance(error, SystemExit):
        said = f"code that it ran asked to exit with {error.code!r} before there was a result"
        _exit(NaflexExportError(said), NaflexExportError.exit_code)
    if isinstance(error, OSError) and (why := _output_lost(error)):
        said = f"standard output cannot be written ({why}); {left}"
        _exit(NaflexExportError(said), UNREAD if isinstance(error, BrokenPipeError) else UNEXPECTED)
    traceback.print_exception(error)
    _exit(NaflexExportError(f"unexpected {type(error).__name__}, as above; there is no result"), UNEXPECTED)


def _output_lost(error: OSError) -> str:
    """Return why standard output takes no more, and write to it no more, not even at the end; empty where it does."""
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    if frame.f_globals.get("__name__", "").partition(".")[0] not in _PRINTERS:
        return ""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)
    return str(error.strerror)


_PRINTERS = ("click", "rich")
"""What a command prints with: an error of the system that is raised there is one of the output."""


def _exit(error: Exception, code: int) -> NoReturn:
    from naflex_export.cli.console import print_error

    with contextlib.suppress(OSError):  # where nobody reads this either, the code alone says it
        print_error(error)
    sys.exit(code)


_STOPPED: dict[int, tuple[str, int]] = {
    signal.SIGINT: ("interrupted", INTERRUPTED),
    signal.SIGTERM: ("terminated", TERMINATED),
}


@contextlib.contextmanager
def _signals_raise(asked: list[int]) -> Iterator[None]:
    """Have SIGINT and SIGTERM end what runs as an error does; note them, for a library may make another of it."""

    def interrupt(number: int, frame: object) -> None:
        asked.append(number)
        raise KeyboardInterrupt

    def stop(number: int, frame: object) -> None:
        asked.append(number)
        raise Terminated

    before: dict[int, Any] = {}
    try:
        before[signal.SIGTERM] = signal.signal(signal.SIGTERM, stop)
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # in the background it is ignored
            before[signal.SIGINT] = signal.signal(signal.SIGINT, interrupt)
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
