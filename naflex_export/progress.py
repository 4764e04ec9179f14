"""What a person sees while an export or a gate runs, and what a library logs: each stage by name, and how far it is."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

    from naflex_export.accuracy.results import GateReport

LOGGER = logging.getLogger("naflex_export")

INTERVAL = 10.0
"""Seconds between two lines where nobody watches a screen: a log says that work goes on, and is no screen."""


class Observer:
    """Is told what an export does while it does it. This one logs: override what is of interest."""

    def planned(self, names: Sequence[str]) -> None:
        """Take the names of the stages to come, in order; one may be left out, or come again."""

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Return a context that a stage runs in: "search", "trace", "build", "reload" or "gate"."""
        started = time.perf_counter()
        LOGGER.info("%s begins", name)
        yield
        LOGGER.info("%s took %.1f s", name, time.perf_counter() - started)

    def announce(self, step: str) -> None:
        """Take the name of what the present stage is doing, such as "case 4 of 9: mixed-256-seed0"."""
        LOGGER.debug("%s", step)

    def judged(self, report: GateReport) -> None:
        """Take the gate's report, passed or failed; once for each patch size."""


class Stages(Observer):
    """Times named stages and shows them: one that moves on a terminal, plain lines anywhere else.

    Args:
        console: where to; nothing is shown where there is none.
        on_report: given each report of the gate.
        interval: seconds between two plain lines, at least; `INTERVAL` by default.

    Attributes:
        seconds: how long each finished stage took, in order; all its turns together.
    """

    def __init__(
        self,
        console: Console | None = None,
        on_report: Callable[[GateReport], None] = lambda report: None,
        interval: float | None = None,
    ) -> None:
        self.seconds: dict[str, float] = {}
        self._console, self._on_report = console, on_report
        self._interval = INTERVAL if interval is None else interval
        self._stage = self._said = self._of = ""
        self._plan: Sequence[str] = ()
        self._show: Callable[[], None] = _nothing
        self._due: float | None = None

    def named(self, artifact: str) -> None:
        """Say of which of several artifacts the stages to come are."""
        self._of = f"{artifact}: "
        if self._console is not None and not self._console.is_terminal:
            self._console.print(artifact, markup=False, highlight=False, soft_wrap=True)

    def planned(self, names: Sequence[str]) -> None:
        """Count the stages to come, as 2/4 before the second of four."""
        self._plan = names

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Show and time a stage for as long as the block runs."""
        started = time.perf_counter()
        place = f"{self._plan.index(name) + 1}/{len(self._plan)} " if name in self._plan else ""
        self._stage = self._said = f"{self._of}{place}{name}"
        console = self._console
        with super().stage(name), contextlib.ExitStack() as stack:
            if console is not None:
                shown = self._on_terminal if console.is_terminal else self._in_lines
                self._show = stack.enter_context(shown(console))
            yield
        self._said, self._show = "", _nothing
        seconds = time.perf_counter() - started
        self.seconds[name] = self.seconds.get(name, 0.0) + seconds
        if console is not None and console.is_terminal:
            console.print(f"  [green]done[/]  {name}  [dim]{seconds:.1f} s[/]")

    def announce(self, step: str) -> None:
        """Name what the present stage is doing."""
        super().announce(step)
        self._said = f"{self._stage}: {step}"
        self._show()

    def judged(self, report: GateReport) -> None:
        """Show a report."""
        self._on_report(report)

    @contextlib.contextmanager
    def _on_terminal(self, console: Console) -> Iterator[Callable[[], None]]:
        """Show what is going on in a line that moves; yield what has it look again."""
        from rich.markup import escape
        from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

        columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
        with Progress(*columns, console=console, transient=True) as progress:
            task = progress.add_task(escape(self._said))
            yield lambda: progress.update(task, description=escape(self._said))

    @contextlib.contextmanager
    def _in_lines(self, console: Console) -> Iterator[Callable[[], None]]:
        """Print what is going on each time that the interval is over, in whichever stage; yield what does nothing.

        A stage that has only begun has nothing to say of how far it is: it is told later, at its end at the latest.
        """
        started, ended = time.monotonic(), threading.Event()
        due = started + self._interval if self._due is None else max(self._due, started + self._interval / 2)
        self._due = due if self._due is None else self._due

        def tell() -> None:
            seconds = time.monotonic() - started
            console.print(f"  {self._said} ({seconds:.0f} s)", markup=False, highlight=False, soft_wrap=True)
            self._due = time.monotonic() + self._interval

        def keep_telling() -> None:
            wait = due - started
            while not ended.wait(wait):
                tell()
                wait = self._interval

        teller = threading.Thread(target=keep_telling, daemon=True)
        teller.start()
        try:
            yield _nothing
        finally:
            ended.set()
            teller.join()
            if time.monotonic() >= self._due:
                tell()


def _nothing() -> None:
    """Show nothing, as the next line will."""


def shown_progress() -> Stages:
    """Return what shows on standard error how far an export or a gate is, for `progress=True`."""
    from rich.console import Console

    class Remarks(Console):
        """Standard error, as far as anybody reads it: rich would end the thread, and close standard output too."""

        def print(self, *objects: Any, **options: Any) -> None:
            with contextlib.suppress(OSError):
                super().print(*objects, **options)

        def on_broken_pipe(self) -> None:
            """Go on."""

    return Stages(Remarks(stderr=True, emoji=False))
