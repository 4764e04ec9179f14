"""pyarrow, imported where it is needed and named where it is missing."""

from __future__ import annotations

import importlib
from typing import Any

from naflex_export.errors import BackendError


def require_pyarrow(module: str = "") -> Any:
    """Return pyarrow, or a module of it.

    Args:
        module: such as "parquet"; empty for pyarrow itself.

    Raises:
        BackendError: it is not installed.
    """
    try:
        return importlib.import_module(f"pyarrow.{module}" if module else "pyarrow")
    except ImportError as error:
        raise BackendError(
            f"package 'pyarrow' is missing or broken ({error}): pip install naflex_export[embed]"
        ) from error
