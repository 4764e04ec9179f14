"""A package of an extra, imported where it is needed and named where it is missing."""

from __future__ import annotations

import importlib
from typing import Any

from naflex_export.errors import BackendError


def optional_package(package: str, extra: str, module: str = "") -> Any:
    """Return a package that not everybody has, or a module of it.

    Args:
        package: its name.
        extra: of `naflex_export`, that installs it.
        module: such as "parquet"; empty for the package itself.

    Raises:
        BackendError: it is not installed, or does not import.
    """
    try:
        return importlib.import_module(f"{package}.{module}" if module else package)
    except ImportError as error:
        raise BackendError(
            f"package {package!r} is missing or broken ({error}): pip install naflex_export[{extra}] "
            "(docs/errors.md#a-backend-package-or-gpu-is-missing)"
        ) from error
