"""What a model's outputs are called: its features, pooled and through its head, and its encoder's tokens."""

from __future__ import annotations

import re

from naflex_export.errors import RequestError

OUTPUTS = ("features", "tokens")

LEVEL = re.compile(r"deepstack_\d+")
"""Names of the tokens that some vision towers take from amid their blocks, beside those of the last."""


def check_outputs(outputs: tuple[str, ...]) -> None:
    """Check the names of the outputs asked for of a model that takes padded batches.

    Raises:
        RequestError: there is none, one is unknown, or one is there twice.
    """
    _check(outputs, [name for name in outputs if name not in OUTPUTS], "")


def check_outputs_of_some(outputs: tuple[str, ...]) -> None:
    """Check names of outputs ahead of the model, which knows best: some family must have each.

    Raises:
        RequestError: there is none, no family has one of them, or one is there twice.
    """
    unknown = [name for name in outputs if name not in OUTPUTS and not LEVEL.fullmatch(name)]
    _check(outputs, unknown, ", and of a vision tower 'tokens', 'deepstack_0' and so on")


def _check(outputs: tuple[str, ...], unknown: list[str], besides: str) -> None:
    if unknown or not outputs or len(set(outputs)) != len(outputs):
        raise RequestError(f"outputs={outputs!r}: expected 'features', 'tokens' or both{besides}")
