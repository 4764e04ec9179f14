"""pyarrow, imported where it is needed and named where it is missing."""

from __future__ import annotations

from typing import Any

from naflex_export.serving.optional_package import optional_package


def require_pyarrow(module: str = "") -> Any:
    """Return pyarrow, or a module of it.

    Args:
        module: such as "parquet"; empty for pyarrow itself.

    Raises:
        BackendError: it is not installed.
    """
    return optional_package("pyarrow", "embed", module)
