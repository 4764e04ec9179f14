"""`plain_json`: what Python holds, as values that JSON has."""

from __future__ import annotations

import math
from typing import Any


def plain_json(value: Any) -> Any:
    """Return a value with lists in place of tuples, and text in place of numbers that are not finite.

    Args:
        value: of dicts, lists, tuples, text, numbers, booleans and None.
    """
    if isinstance(value, dict):
        return {key: plain_json(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [plain_json(inner) for inner in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
