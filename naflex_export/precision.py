"""The dtypes that a model is exported in."""

from __future__ import annotations

import torch

from naflex_export.errors import RequestError

DTYPES: dict[str, torch.dtype] = {
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
}


def check_dtype(dtype: str) -> torch.dtype:
    """Return torch's dtype of that name.

    Raises:
        RequestError: it is not one of `DTYPES`.
    """
    if dtype not in DTYPES:
        raise RequestError(f"dtype {dtype!r} is not supported: expected one of {', '.join(DTYPES)}")
    return DTYPES[dtype]
