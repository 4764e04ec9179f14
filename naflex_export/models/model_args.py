"""`--model-args`: what a model's constructor is given, as texts of a command line."""

from __future__ import annotations

import ast
import json
from collections.abc import Sequence
from typing import Any

from naflex_export.errors import RequestError


def parse_model_args(texts: Sequence[str]) -> dict[str, Any]:
    """Return arguments written as timm's command lines have them, `num_classes=30 global_pool=avg`, by name.

    A value is a Python literal where it reads as one, else the text itself.

    Raises:
        RequestError: one is no `name=value`, or given twice.
    """
    found: dict[str, Any] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not name.isidentifier():
            raise RequestError(f"--model-args {text!r} is malformed: expected name=value, such as num_classes=30")
        if name in found:
            raise RequestError(f"--model-args {name} is given twice ({found[name]!r} and {value!r}): expected it once")
        try:
            found[name] = ast.literal_eval(value)
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
            found[name] = value
    try:
        json.dumps(found)  # the manifest notes them
    except (TypeError, ValueError) as error:
        raise RequestError(f"--model-args cannot be noted in a manifest ({error}): expected plain values") from error
    return found
