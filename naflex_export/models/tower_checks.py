"""What a config may ask of a vision tower that its own forward cannot compute, found ahead of the first call."""

from __future__ import annotations

import math
from collections.abc import Container
from typing import Any

from torch import nn

from naflex_export.errors import UnsupportedModelError

PROJECTIONS = {"q_proj": 1, "q": 1, "qkv": 3}
"""What projects the queries of an attention module, and how many such it projects at once."""

ANGLES = 4
"""Rotary angles of a frequency: of rows and of columns, for both halves of a head."""


def check_heads(model: nn.Module, attentions: Container[type]) -> None:
    """Check that heads divide the width of queries, and are as wide as the rotary angles where there are any.

    Args:
        model: the tower.
        attentions: the classes that its attention modules can be of.

    Raises:
        UnsupportedModelError: they do not, or are not.
    """
    found = (getattr(module, "inv_freq", None) for module in model.modules())
    angles = next((ANGLES * len(frequencies) for frequencies in found if frequencies is not None), None)
    for name, module in model.named_modules():
        given: Any = module
        projection = next((name for name in PROJECTIONS if hasattr(module, name)), None)
        if type(module) not in attentions or projection is None or not hasattr(module, "num_heads"):
            continue
        width, heads = getattr(given, projection).out_features // PROJECTIONS[projection], given.num_heads
        if width % heads:
            raise UnsupportedModelError(
                f"{name} divides a width of {width} by {heads} heads: expected a number of heads that divides it"
            )
        if angles is not None and width // heads != angles:
            raise UnsupportedModelError(
                f"{name} has heads of {width // heads} channels, and its rotary angles are {angles}: expected as many; "
                "a number of heads that gives each a multiple of 4 channels, and no head_dim of another size"
            )


def check_square(positions: int) -> None:
    """Check that learned positions make a square.

    Args:
        positions: how many there are.

    Raises:
        UnsupportedModelError: they do not.
    """
    if math.isqrt(positions) ** 2 != positions:
        raise UnsupportedModelError(
            f"the tower has {positions} positions, which make no square: expected a square number"
        )
