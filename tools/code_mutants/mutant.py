"""A fault of the code."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class CodeMutant:
    """A change to the code that makes it wrong.

    Attributes:
        name: what is wrong then.
        file: that is changed, in the package.
        old: text that is there once.
        new: what is put in its place.
        tests: files of tests, or tests in them, in which at least one must fail.
        survives: why none does, where that is known and accepted.
    """

    name: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]
    survives: str = ""
