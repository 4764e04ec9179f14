"""What TensorRT says while it works: one logger for the process, heard by whoever records."""

from __future__ import annotations

import contextlib
import functools
import sys
from collections.abc import Iterator, Sequence
from types import ModuleType
from typing import Any


@functools.cache
def tensorrt_log(trt: ModuleType) -> Any:
    """Return the process's one logger; TensorRT ignores every other after the first."""

    class Log(trt.ILogger):  # type: ignore[name-defined,misc]
        """Gives warnings and errors to whoever is recording and keeps none; prints everything when verbose."""

        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.recordings: dict[int, list[tuple[str, str]]] = {}
            self.verbose = False

        def log(self, severity: Any, text: str) -> None:
            serious = severity in (trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR)
            if serious or severity == trt.ILogger.WARNING:
                for messages in list(self.recordings.values()):
                    messages.append(("error" if serious else "warning", text))
            if self.verbose and severity != trt.ILogger.VERBOSE:
                print(f"[{trt.__name__}] {text}", file=sys.stderr)

        @contextlib.contextmanager
        def recording(self, verbose: bool = False) -> Iterator[list[tuple[str, str]]]:
            """Give a list to which messages are added for as long as the block runs, those of other threads too."""
            messages: list[tuple[str, str]] = []
            before, self.verbose = self.verbose, verbose or self.verbose
            self.recordings[id(messages)] = messages
            try:
                yield messages
            finally:
                self.verbose = before
                del self.recordings[id(messages)]

    return Log()


def reason(messages: Sequence[tuple[str, str]]) -> str:
    """Return what TensorRT's log says of a refusal."""
    errors = [text for severity, text in messages if severity == "error"]
    return "; ".join(errors or [text for _, text in messages]) or "it gives no reason"
