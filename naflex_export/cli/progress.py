"""What a person sees while an export runs: each stage by name, with its time."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from naflex_export.accuracy.results import GateReport
from naflex_export.exporter import Observer


class Stages(Observer):
    """Times named stages; shows them on a terminal and stays quiet anywhere else.

    Attributes:
        seconds: how long each finished stage took, in order; all its turns together.
    """

    def __init__(
        self, console: Console | None = None, on_report: Callable[[GateReport], None] = lambda report: None
    ) -> None:
        self.seconds: dict[str, float] = {}
        self._console = console
        self._on_report = on_report
        self._progress: Progress | None = None

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Show and time a stage for as long as the block runs."""
        started = time.perf_counter()
        with contextlib.ExitStack() as stack:
            if self._console is not None and self._console.is_terminal:
                columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
                self._progress = stack.enter_context(Progress(*columns, console=self._console, transient=True))
                self._progress.add_task(name)
            yield
        self._progress = None
        seconds = time.perf_counter() - started
        self.seconds[name] = self.seconds.get(name, 0.0) + seconds
        if self._console is not None and self._console.is_terminal:
            self._console.print(f"  [green]done[/]  {name}  [dim]{seconds:.1f} s[/]")

    def announce(self, step: str) -> None:
        """Name what the present stage is doing."""
        if self._progress is not None:
            task = self._progress.tasks[0]
            name = task.description.split(":")[0]
            self._progress.update(task.id, description=f"{name}: {step}")

    def judged(self, report: GateReport) -> None:
        """Show a report."""
        self._on_report(report)
