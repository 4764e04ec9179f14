"""Where an artifact runs."""

from __future__ import annotations

import torch

from naflex_export.errors import BackendError, RequestError

TYPES = ("cpu", "cuda")
"""Of devices that artifacts run on."""


def check_device(device: torch.device | str) -> torch.device:
    """Return a device as torch has it.

    Raises:
        RequestError: torch knows no such device, or it is none that artifacts run on.
    """
    try:
        found = torch.device(device)
    except (RuntimeError, TypeError, ValueError) as error:
        raise RequestError(f"device {device!r} is no device of torch's: expected one such as cpu or cuda:0") from error
    if found.type not in TYPES:
        raise RequestError(f"device {str(device)!r} is not served: expected cpu, or cuda and an index")
    return found


def resolve_device(device: torch.device | None) -> torch.device:
    """Return the device asked for, by default a GPU where there is one; of GPUs, with its number.

    A traced graph takes `cuda` and `cuda:0` for two devices.

    Raises:
        BackendError: it is not on this machine.
    """
    device = device or torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise BackendError(
            f"device {str(device)!r} was asked for, and torch finds no CUDA device: use device='cpu' "
            "(docs/errors.md#a-backend-package-or-gpu-is-missing)"
        )
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise BackendError(f"device {str(device)!r} was asked for, and torch finds {torch.cuda.device_count()} of them")
    if device == torch.device("cuda"):
        return torch.device("cuda", torch.cuda.current_device())
    return device
