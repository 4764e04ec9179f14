"""The families of models this package converts. A new family is one more file and one more line here."""

from __future__ import annotations

from torch import nn

from naflex_export.errors import UnsupportedModelError
from naflex_export.models.family import Family
from naflex_export.models.timm_naflex import TimmNaFlex

FAMILIES: tuple[Family, ...] = (TimmNaFlex(),)


def family_of(model: nn.Module) -> Family:
    """Return the family that a model belongs to.

    Raises:
        UnsupportedModelError: none owns it.
    """
    for family in FAMILIES:
        if family.owns(model):
            return family
    known = ", ".join(family.name for family in FAMILIES)
    raise UnsupportedModelError(
        f"{type(model).__module__}.{type(model).__qualname__} is no model this release knows: expected {known}"
    )


__all__ = ["FAMILIES", "Family", "family_of"]
