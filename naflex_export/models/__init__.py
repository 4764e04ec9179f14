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
        packed: those of the one for packed inputs, where the first is for padded batches; empty where there is none.
    """

    models: str
    defined_in: str
    adapter: str
    packed: str = ""

    def owns(self, model: nn.Module) -> bool:
        """Whether a model is of this family; nothing is imported where it cannot be."""
        return self.defined_in in sys.modules and _loaded(self.adapter).owns(model)


def _loaded(name: str) -> type[ModelAdapter]:
    module, kind = name.split(".")
    found: type[ModelAdapter] = getattr(importlib.import_module(f"{__name__}.{module}"), kind)
    return found


def _tower(models: str, package: str, adapter: str) -> Entry:
    """Return the entry of a vision tower of transformers, by the package of its model."""
    return Entry(models, f"transformers.models.{package}.modeling_{package}", adapter)


FAMILIES = (
    Entry("timm NaFlexVit", "timm.models.naflexvit", "timm_naflex.TimmNaFlex", "timm_packed.PackedTimm"),
    Entry(
        "transformers Siglip2VisionModel or Siglip2Model or Siglip2ForImageClassification",
        "transformers.models.siglip2.modeling_siglip2",
        "siglip2.Siglip2",
        "siglip2_packed.PackedSiglip2",
    ),
    _tower("Qwen3VLVisionModel", "qwen3_vl", "qwen3_vl.Qwen3VL"),
    _tower("Qwen3VLMoeVisionModel", "qwen3_vl_moe", "qwen3_vl.Qwen3VL"),
    _tower("Qwen3OmniMoeVisionEncoder", "qwen3_omni_moe", "qwen3_vl.Qwen3VL"),
    _tower("Qwen3_5VisionModel", "qwen3_5", "qwen3_vl.Qwen3VL"),
    _tower("Qwen3_5MoeVisionModel", "qwen3_5_moe", "qwen3_vl.Qwen3VL"),
    _tower("Qwen4ExpVisionModel", "qwen4_exp", "qwen3_vl.Qwen3VL"),
    _tower("Glm4vVisionModel", "glm4v", "glm4v.Glm4v"),
    _tower("Glm4vMoeVisionModel", "glm4v_moe", "glm4v.Glm4v"),
    _tower("Qwen2_5_VisionTransformerPretrainedModel", "qwen2_5_vl", "qwen2_5_vl.Qwen25VL"),
    _tower("Qwen2_5OmniVisionEncoder", "qwen2_5_omni", "qwen2_5_vl.Qwen25VL"),
    _tower("Qwen2VisionTransformerPretrainedModel", "qwen2_vl", "qwen2_vl.Qwen2VL"),
    _tower("Kimi_K25VisionModel", "kimi_k25", "kimi_k25.Kimi"),
    _tower("PaddleOCRVisionModel", "paddleocr_vl", "paddleocr_vl.PaddleOCRVL"),
    _tower("Cosmos3EdgeVisionModel", "cosmos3_edge", "cosmos3_edge.Cosmos3Edge"),
    _tower("HunYuanVLVisionTransformer", "hunyuan_vl", "hunyuan_vl.HunYuanVL"),
    _tower("RadioModel", "radio", "radio.Radio"),
)


def family_of(model: nn.Module) -> type[ModelAdapter] | None:
    """Return the family that owns a model itself, whatever may be inside of it."""
    entry = _entry_of(model)
    return None if entry is None else _loaded(entry.adapter)


def _entry_of(model: nn.Module) -> Entry | None:
    return next((entry for entry in FAMILIES if entry.owns(model)), None)


def towers_in(model: nn.Module) -> dict[str, nn.Module]:
    """Return the outermost modules of a model that a family owns, by their path; the model itself at an empty one."""
    found = {path: module for path, module in model.named_modules() if family_of(module) is not None}
    inner = {id(part) for tower in found.values() for part in tower.modules() if part is not tower}
    return {path: tower for path, tower in found.items() if id(tower) not in inner}


def whole_model(model: nn.Module) -> str:
    """Return what is taken of a model that holds one tower, such as its class's vision tower; empty for the tower."""
    paths = towers_in(model)
    if len(paths) != 1 or "" in paths:
        return ""
    ((path, tower),) = paths.items()
    return f"{type(model).__qualname__}'s vision tower {path}, a {type(tower).__qualname__}"


def adapter_of(model: nn.Module, patch_size: int | None = None) -> ModelAdapter:
    """Return the adapter of a model, or of the only tower in it, for flat patches of a size that may not be its own.

    Args:
        model: of a family, or one that holds a model of a family.
        patch_size: of the flat patches, where it is not the model's own.

    Raises:
        UnsupportedModelError: no family owns the model or one thing in it, or it takes no patches of that size.
    """
    towers = towers_in(model)
    if len(towers) > 1:
        raise UnsupportedModelError(
            f"{type(model).__module__}.{type(model).__qualname__} holds {len(towers)} towers ({', '.join(towers)}): "
            f"give one of them, such as model.{next(iter(towers))}"
        )
    for tower in towers.values():
        family = family_of(tower)
        assert family is not None  # towers_in has asked
        adapter = family(tower)
        return adapter if patch_size is None else adapter.at_patch_size(patch_size)
    known = ", ".join(entry.models for entry in FAMILIES)
    raise UnsupportedModelError(
        f"{type(model).__module__}.{type(model).__qualname__} is no model this release knows, and holds none: "
        f"expected {known}"
    )


def packed_of(adapter: ModelAdapter) -> ModelAdapter:
    """Return the adapter of the same model for packed inputs.

    Raises:
        UnsupportedModelError: models of the family take none.
    """
    if adapter.input_format.is_packed:
        return adapter
    entry = _entry_of(adapter.model)
    if entry is None or not entry.packed:
        raise UnsupportedModelError(
            f"models of {adapter.name} cannot be packed by this release: export padded inputs, without packed=True"
        )
    return _loaded(entry.packed)(adapter.model, adapter.patch_size, adapter.given)
