"""Amounts as people read them: bytes, seconds and parameters, in the unit in which each has a number to show."""

from __future__ import annotations


def bytes_in_words(amount: int) -> str:
    """Return an amount of bytes in the largest unit of which there is one: `900 bytes`, `3.4 KiB`, `371.0 MiB`.

    Args:
        amount: of bytes.
    """
    if amount < 1024:
        return f"{amount} byte{'' if amount == 1 else 's'}"
    size = float(amount)
    for unit in ("KiB", "MiB"):
        size /= 1024
        if size < 1023.95:  # more would be rounded to 1024.0
            return f"{size:.1f} {unit}"
    return f"{size / 1024:.1f} GiB"


def seconds_in_words(seconds: float) -> str:
    """Return an estimated time: `under a second`, `12 s`, `4 min`.

    Args:
        seconds: that it takes.
    """
    if seconds < 1:
        return "under a second"
    return f"about {seconds:.0f} s" if seconds < 120 else f"about {seconds / 60:.0f} min"


def parameters_in_words(count: int) -> str:
    """Return a number of parameters: `19,266 parameters`, `92.9 million parameters`.

    Args:
        count: of parameters.
    """
    return f"{count / 1e6:.1f} million parameters" if count >= 1_000_000 else f"{count:,} parameters"
