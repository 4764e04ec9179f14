"""Float32 sums where autocast would make others."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch


def full_precision(device_type: str) -> AbstractContextManager[object]:
    """Return a context in which autocast leaves float32 matmuls alone; free where autocast is off."""
    if _has_autocast(device_type) and torch.is_autocast_enabled(device_type):
        return torch.autocast(device_type, enabled=False)
    return nullcontext()


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _has_autocast(device_type: str) -> bool:
    """Whether a kind of device has autocast; dynamo of torch 2.11 cannot look into it."""
    return bool(torch.amp.is_autocast_available(device_type))
