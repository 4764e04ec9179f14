"""The families of models this package converts. A new family is one more file and one more line here."""

from __future__ import annotations

import importlib
import sys
from typing import TYPE_CHECKING, NamedTuple

from naflex_export.errors import UnsupportedModelError

if TYPE_CHECKING:
    from torch import nn

    from naflex_export.models.adapter import Family

DEFAULT_MODEL = "naflexvit_base_patch16_siglip"
"""What the command line exports where no model is named."""

TRANSFORMERS_PREFIX = "hf:"
"""What the name of a model of transformers begins with."""


class Entry(NamedTuple):
    """A family that is imported only when a model of it can be at hand.

    Attributes:
        models: what its models are called, in messages.
        defined_in: the module that defines their classes. Until it has been imported, nobody holds such a model.
        family: module and class of the `Family`.
    """

    models: str
    defined_in: str
    family: str


FAMILIES = (
    Entry("timm NaFlexVit", "timm.models.naflexvit", "timm_naflex.TimmNaFlex"),
    Entry(
        "transformers Siglip2VisionModel or Siglip2Model",
        "transformers.models.siglip2.modeling_siglip2",
        "siglip2.Siglip2",
    ),
)


def family_of(model: nn.Module, patch_size: int | None = None) -> Family:
    """Return the family that a model belongs to, for flat patches of the given size where it is not the model's own.

    Raises:
        UnsupportedModelError: none owns it, or it takes no patches of that size.
    """
    for entry in FAMILIES:
        if entry.defined_in in sys.modules:
            module, name = entry.family.split(".")
            family: Family = getattr(importlib.import_module(f"{__name__}.{module}"), name)()
            if family.owns(model):
                return family if patch_size is None else family.at_patch_size(model, patch_size)
    known = ", ".join(entry.models for entry in FAMILIES)
    raise UnsupportedModelError(
        f"{type(model).__module__}.{type(model).__qualname__} is no model this release knows: expected {known}"
    )
