"""What a person sees while an export or a gate runs, and what a library logs: each stage by name, and how far it is."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

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
                shown = _on_terminal if console.is_terminal else _in_lines
                self._show = stack.enter_context(shown(console, lambda: self._said, self._interval))
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


def _nothing() -> None:
    """Show nothing, as the next line will."""


@contextlib.contextmanager
def _on_terminal(console: Console, said: Callable[[], str], interval: float) -> Iterator[Callable[[], None]]:
    """Show what is going on in a line that moves; yield what has it look again."""
    from rich.markup import escape
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task(escape(said()))
        yield lambda: progress.update(task, description=escape(said()))


@contextlib.contextmanager
def _in_lines(console: Console, said: Callable[[], str], interval: float) -> Iterator[Callable[[], None]]:
    """Print what is going on each time that the interval is over; yield what does nothing in between."""
    started, ended = time.perf_counter(), threading.Event()

    def tell() -> None:
        while not ended.wait(interval):
            seconds = time.perf_counter() - started
            console.print(f"  {said()} ({seconds:.0f} s)", markup=False, highlight=False, soft_wrap=True)

    teller = threading.Thread(target=tell, daemon=True)
    teller.start()
    try:
        yield _nothing
    finally:
        ended.set()
        teller.join()


def shown_progress() -> Stages:
    """Return what shows on standard error how far an export or a gate is, for `progress=True`."""
    from rich.console import Console

    return Stages(Console(stderr=True, emoji=False))
