"""The commands as they are installed: each works in a process of its own, and a crash of that one is an error here.

torch's writers, a compiler's output and TensorRT are native code, which can end a process with a signal: no `except`
sees that, and a shell prints "Segmentation fault" or "Killed" and nothing else. So the command that a user starts only
waits. What it waits for prints where in Python it was (`faulthandler`), and what remains here is to say what happened,
with an exit code that is no verdict. It imports little but Python's own, and costs what a second Python takes to
start. That one is started with SIGINT and SIGTERM blocked, and takes them once it can answer in a line: until then an
interrupt would end in the middle of an import, with a traceback.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import TYPE_CHECKING, NoReturn

from naflex_export.cli.streams import OutputLost, drop_output, guarded, hold_streams

if TYPE_CHECKING:
    import subprocess

CRASHED = 70
"""As `exits.UNEXPECTED`: a fault, and no verdict."""

HELD = ("SIGINT", "SIGTERM", "SIGHUP")
"""What waits until the one that works can answer: `exits.exit_codes` lets them through."""

FORWARDED = ("SIGINT", "SIGTERM", "SIGHUP")
"""What a user or a system asks this process for, the other one is asked for.

But for what was ignored as it began, as SIGINT is of a script's command with `&` behind it, and SIGHUP under nohup.
"""

_SHOWN_AT_ONCE = frozenset({"-h", "--help", "--version"})
_DIE_WITH_PARENT = 1  # PR_SET_PDEATHSIG of <sys/prctl.h>


def export_main() -> NoReturn:
    """Run `naflex-export`."""
    _main("export")


def gate_main() -> NoReturn:
    """Run `naflex-gate`."""
    _main("gate")


def bench_main() -> NoReturn:
    """Run `naflex-bench`."""
    _main("bench")


def embed_main() -> NoReturn:
    """Run `naflex-embed`."""
    _main("embed")


def search_main() -> NoReturn:
    """Run `naflex-search`."""
    _main("search")


def classify_main() -> NoReturn:
    """Run `naflex-classify`."""
    _main("classify")


def plan_main() -> NoReturn:
    """Run `naflex-plan`."""
    _main("plan")


def serve_main() -> NoReturn:
    """Run `naflex-serve`."""
    _main("serve")


COMMANDS = {
    "export": "export a model and judge the artifact against eager",
    "gate": "judge an artifact again",
    "bench": "time an artifact beside eager",
    "embed": "photos to vectors in parquet shards",
    "search": "find embedded photos by words",
    "classify": "which of a few labels go with a photo",
    "plan": "buckets for a collection of photos",
    "serve": "serve an artifact over HTTP",
}
"""What `naflex` runs, `naflex NAME` as `naflex-NAME`, and what each does in a line."""

OF_GATE = ("pack", "judge", "compare")
"""Commands that `naflex gate` has in its turn."""

ASLEEP = ("export", "gate")
"""Commands whose threads sleep while they wait for each other. By default they spin, which costs processor time, and
on a busy machine the time of whoever is waited for; what is timed or served begins as soon as it can."""

NOTHING_PUBLISHED = "nothing half-made was published, and there is no verdict"

LEFT = {
    "embed": "the shards that are done are kept: begin again to go on",
    "search": "nothing was found",
    "classify": "nothing was classified",
    "plan": "nothing was planned",
    "serve": "requests that were inside have no answer",
}
"""What a crash leaves behind of a command that makes no artifact and no verdict."""


def naflex_main() -> NoReturn:
    """Run `naflex`: list the other commands, or be one of them."""
    _begin("naflex")
    given = sys.argv[1] if len(sys.argv) > 1 else "--help"
    asked = given.lower().replace("_", "-").removeprefix("naflex-")
    if asked == "help":
        sys.argv[1:] = [*sys.argv[2:], "--help"]
        naflex_main()
    if asked in COMMANDS:
        sys.argv = [f"naflex-{asked}", *sys.argv[2:]]
        _main(asked)
    if asked == "--version":
        _show(f"naflex, version {import_module('naflex_export.version').__version__}")
    if asked in _SHOWN_AT_ONCE:
        _show(_listing())
    from difflib import get_close_matches

    close = [f"gate {asked}"] if asked in OF_GATE else get_close_matches(asked, COMMANDS, n=1)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    _say(f"error: naflex has no command {given!r}: expected one of {', '.join(COMMANDS)}.{hint}")
    sys.exit(2)


def _show(text: str) -> NoReturn:
    """Print what was asked for, and end."""
    try:
        with guarded():
            print(text)
    except OutputLost as error:
        drop_output()
        _say(f"error: {error}")
        sys.exit(error.exit_code)
    sys.exit(0)


def _say(text: str) -> None:
    """Print a line on standard error, if that can be written."""
    with guarded():
        print(text, file=sys.stderr)


def _listing() -> str:
    rows = [f"  {name:10}{what}" for name, what in COMMANDS.items()]
    return "\n".join(
        [
            "Usage: naflex COMMAND [OPTIONS] ...",
            "",
            "  Exact, loop-free NaFlex vision transformers, each artifact judged against eager.",
            "",
            "Commands:",
            *rows,
            "",
            "  naflex COMMAND is naflex-COMMAND; --help after it shows its options. To begin:",
            "",
            "  naflex export --target onnx --weights random --out artifacts/first",
            "  naflex gate artifacts/first --report gate.html",
        ]
    )


def completion_variable(program: str) -> str:
    """Return the variable by which a shell asks a program what may follow, as click names it."""
    return f"_{program.replace('-', '_').upper()}_COMPLETE"


def _begin(program: str) -> None:
    """Make sure of the streams, and answer a shell that asks what may follow, and end, where one does."""
    hold_streams()
    if signal.getsignal(signal.SIGINT) != signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # ends without a word where no work has begun
    asked = os.environ.get(completion_variable(program))
    if asked:
        sys.exit(import_module("naflex_export.cli.completion").answer(program, asked))


def work(name: str) -> None:
    """Do what a command does, in the process that is waited for; it ends where that one is killed.

    Args:
        name: of the command, without `naflex-`.
    """
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).prctl(_DIE_WITH_PARENT, signal.SIGTERM)
    command = getattr(import_module(f"naflex_export.cli.{name}"), f"{name}_command")
    import_module("naflex_export.cli.exits").run(command, f"naflex-{name}")


def supervise(command: Sequence[str], left: str = NOTHING_PUBLISHED, held: Sequence[str] = ()) -> int:
    """Run a command in a process of its own and return the exit code to end with; say so where a signal ended it.

    Args:
        command: what to run, with its arguments.
        left: what a crash leaves behind, in words.
        held: signals that the command is started with blocked, and lets through by itself.
    """
    import subprocess

    asked: list[int] = []
    child: list[subprocess.Popen[bytes]] = []

    def forward(number: int, frame: object) -> None:
        asked.append(number)
        for process in child:
            process.send_signal(number)

    for asks in (getattr(signal, name) for name in FORWARDED):
        if signal.getsignal(asks) != signal.SIG_IGN:
            signal.signal(asks, forward)
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {getattr(signal, name) for name in held})
    # in a group of its own, or Ctrl-C would reach it twice
    child.append(subprocess.Popen(command, process_group=0))
    signal.pthread_sigmask(signal.SIG_SETMASK, before)
    for number in asked:
        child[0].send_signal(number)
    code = child[0].wait()
    if code >= 0:
        return code
    if -code in asked:
        return 128 - code
    _say(f"error: {_what_ended_it(-code, left)}")
    return CRASHED


def _main(name: str) -> NoReturn:
    _begin(f"naflex-{name}")
    if os.name != "posix" or _SHOWN_AT_ONCE.intersection(sys.argv[1:]):
        work(name)
        sys.exit(0)
    if name in ASLEEP:
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    code = f"from naflex_export.cli.supervised import work; work({name!r})"
    # -P: without it the current folder would come first, and a file there named as a package is
    sys.exit(
        supervise(
            [sys.executable, "-P", "-X", "faulthandler", "-c", code, *sys.argv[1:]],
            LEFT.get(name, NOTHING_PUBLISHED),
            HELD,
        )
    )


def _what_ended_it(number: int, left: str) -> str:
    name = f"signal {number}"
    with contextlib.suppress(ValueError):
        name = signal.Signals(number).name
    if name == "SIGKILL":
        return (
            f"the process that did the work was killed (SIGKILL), as the system does where memory runs out; {left}. "
            "Give smaller buckets or batches, or a machine with more memory"
        )
    return (
        f"the process that did the work was ended by {name}: native code of torch, a compiler or a backend crashed, "
        f"and above is where; {left}. Is the disk of the temporary folder full (TMPDIR), or an artifact not one of "
        "yours?"
    )
