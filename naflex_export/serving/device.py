"""Where an artifact runs."""

from __future__ import annotations

import torch

from naflex_export.errors import BackendError


def resolve_device(device: torch.device | None) -> torch.device:
    """Return the device asked for, by default a GPU where there is one.

    Raises:
        BackendError: it is not on this machine.
    """
    device = device or torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise BackendError(f"device {str(device)!r} was asked for, and torch finds no CUDA device: use device='cpu'")
    return device
