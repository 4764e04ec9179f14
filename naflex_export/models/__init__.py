"""The families of models this package converts. A new family is one more file and one more line here."""

from __future__ import annotations

import importlib
import sys
from typing import TYPE_CHECKING, NamedTuple

from naflex_export.errors import UnsupportedModelError

if TYPE_CHECKING:
    from torch import nn

    from naflex_export.models.adapter import ModelAdapter

DEFAULT_MODEL = "naflexvit_base_patch16_siglip"
"""What the command line exports where no model is named."""

TRANSFORMERS_PREFIX = "hf:"
"""What the name of a model of transformers begins with."""


class Entry(NamedTuple):
    """A family that is imported only when a model of it can be at hand.

    Attributes:
        models: what its models are called, in messages.
        defined_in: the module that defines their classes. Until it has been imported, nobody holds such a model.
        adapter: module and class of its `ModelAdapter`.
    """

    models: str
    defined_in: str
    adapter: str


FAMILIES = (
    Entry("timm NaFlexVit", "timm.models.naflexvit", "timm_naflex.TimmNaFlex"),
    Entry(
        "transformers Siglip2VisionModel or Siglip2Model",
        "transformers.models.siglip2.modeling_siglip2",
        "siglip2.Siglip2",
    ),
)


def adapter_of(model: nn.Module, patch_size: int | None = None) -> ModelAdapter:
    """Return a model's adapter, for flat patches of the given size where it is not the model's own.

    Raises:
        UnsupportedModelError: no family owns the model, or it takes no patches of that size.
    """
    for entry in FAMILIES:
        if entry.defined_in in sys.modules:
            module, name = entry.adapter.split(".")
            family: type[ModelAdapter] = getattr(importlib.import_module(f"{__name__}.{module}"), name)
            if family.owns(model):
                adapter = family(model)
                return adapter if patch_size is None else adapter.at_patch_size(patch_size)
    known = ", ".join(entry.models for entry in FAMILIES)
    raise UnsupportedModelError(
        f"{type(model).__module__}.{type(model).__qualname__} is no model this release knows: expected {known}"
    )
