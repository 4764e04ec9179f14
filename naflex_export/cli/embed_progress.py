"""How far a run of `naflex-embed` is: a bar on a terminal, and a line now and then anywhere else."""

from __future__ import annotations

import time
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

EVERY = 30.0
"""Seconds between lines."""


class Meter:
    """Shows photos done, photos/s and the time left, for as long as the block runs.

    Args:
        console: to show it on.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._started = self._said = time.monotonic()
        self._total = self._before = self._done = self._failed = 0
        self._progress: Progress | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        if self._progress is not None:
            self._progress.stop()

    def began(self, total: int, before: int) -> None:
        """Take the number of all photos and of those that are done already.

        Args:
            total: all of them.
            before: done already.
        """
        self._started = self._said = time.monotonic()
        self._total, self._before = total, before
        if self._console.is_terminal:
            columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
            self._progress = Progress(*columns, console=self._console, transient=True)
            self._progress.start()
            self._progress.add_task("embedding", total=total, completed=before)

    def tell(self, photos: int, failed: int) -> None:
        """Take photos that were embedded.

        Args:
            photos: how many; below 0 where a worker ended and they are to be done again.
            failed: how many of them failed.
        """
        self._done += photos
        self._failed += failed
        if self._progress is not None:
            task = self._progress.tasks[0].id
            self._progress.update(task, completed=self._before + self._done, description=f"{self.rate:.1f} photos/s")
        elif time.monotonic() - self._said >= EVERY:
            self._said = time.monotonic()
            self._console.print(self.line, highlight=False, soft_wrap=True)

    @property
    def rate(self) -> float:
        """Photos a second since the run began."""
        return self._done / max(time.monotonic() - self._started, 1e-9)

    @property
    def line(self) -> str:
        """All of it in one line."""
        left = self._total - self._before - self._done
        minutes, seconds = divmod(round(left / self.rate) if self.rate > 0 else 0, 60)
        bad = f", {self._failed} failed" if self._failed else ""
        return (
            f"{self._before + self._done} of {self._total} photos, {self.rate:.1f}/s, {minutes}:{seconds:02d} left{bad}"
        )
