"""The dtypes that a model is exported in."""

from __future__ import annotations

from typing import TYPE_CHECKING

from naflex_export.errors import RequestError

if TYPE_CHECKING:
    import torch

DTYPES = ("float32", "float16", "bfloat16")


def check_dtype(dtype: str) -> torch.dtype:
    """Return torch's dtype of that name.

    Raises:
        RequestError: it is not one of `DTYPES`.
    """
    if dtype not in DTYPES:
        raise RequestError(f"dtype {dtype!r} is not supported: expected one of {', '.join(DTYPES)}")
    import torch

    found: torch.dtype = getattr(torch, dtype)
    return found
