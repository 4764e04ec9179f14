"""Models that a user's own Python makes: `module:factory`."""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from naflex_export.errors import RequestError, first_line

if TYPE_CHECKING:
    from torch import nn


def named_by(text: str) -> Any:
    """Return what `module:factory` names, without torch if that module needs none. Modules of the current folder count.

    Raises:
        RequestError: there is no such thing, or its module raises; it cannot end the process.
    """
    module_name, _, factory_name = text.partition(":")
    if (here := str(Path.cwd())) not in sys.path:
        sys.path.insert(0, here)  # as `python -m` has it; a console script does not
    try:
        return getattr(importlib.import_module(module_name), factory_name)
    except (Exception, SystemExit) as error:  # a module may raise anything while it is imported
        said = str(error) if isinstance(error, ImportError | AttributeError | ValueError) else _named(error)
        raise RequestError(f"factory {text!r} cannot be imported ({said}): expected module:callable") from error


def call_factory(text: str, arguments: Mapping[str, Any]) -> nn.Module:
    """Return what `module:factory` names: a model, or what a callable returns.

    Raises:
        RequestError: as `named_by`, or it is or returns no model, or it raises; it cannot end the process.
    """
    from torch import nn

    factory = named_by(text)
    if isinstance(factory, nn.Module):
        return factory
    if not callable(factory):
        raise RequestError(f"factory {text!r} is a {type(factory).__name__}: expected a callable, or a torch module")
    try:
        inspect.signature(factory).bind(**arguments)
    except (TypeError, ValueError) as error:
        given = " ".join(f"{name}={value}" for name, value in arguments.items())
        raise RequestError(
            f"factory {text!r} cannot be called with {f'--model-args {given}' if given else 'no arguments'}: {error}"
        ) from error
    try:
        model = factory(**arguments)
    except (Exception, SystemExit) as error:
        raise RequestError(f"factory {text!r} raised {_named(error)}: expected a torch module") from error
    if not isinstance(model, nn.Module):
        raise RequestError(f"factory {text!r} returned a {type(model).__name__}: expected a torch module")
    return model


def _named(error: BaseException) -> str:
    return f"{type(error).__name__}: {first_line(error)}"
