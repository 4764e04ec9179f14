"""What a device is called, told without torch."""

from __future__ import annotations

from naflex_export.errors import RequestError


def check_device_name(device: str) -> tuple[str, int | None]:
    """Return the kind of a device, and its number where it says one.

    Raises:
        RequestError: it is none that artifacts run on.
    """
    kind, colon, index = device.partition(":")
    is_number = index.isdecimal() and kind == "cuda"
    if kind not in ("cpu", "cuda") or (colon and not is_number):
        raise RequestError(f"device {device!r} is not served: expected cpu, or cuda and an index")
    return kind, int(index) if index else None
