"""Tiny models, every parameter of which shows in their outputs."""

from __future__ import annotations

from typing import Any

import timm
from torch import nn

from naflex_export.models.model_sources import randomize


def naflexvit(name: str = "naflexvit_base_patch16_siglip", **options: Any) -> nn.Module:
    """Return a NaFlexVit of width 32 and depth 2 with 4-pixel patches, seeded."""
    tiny = {"embed_dim": 32, "depth": 2, "num_heads": 2, "patch_size": 4, "mlp_ratio": 2.0}
    model = timm.create_model(name, **{**tiny, **options})
    randomize(model, seed=1)
    return model.eval()


def siglip() -> nn.Module:
    """Return a tiny SigLIP 2 encoder: attention pooling, no classes."""
    return naflexvit()


def classifier() -> nn.Module:
    """Return a tiny classifier: register tokens, layer scale, masked average pooling, 10 classes."""
    return naflexvit("naflexvit_base_patch16_gap", num_classes=10)


def siglip2() -> nn.Module:
    """Return a tiny `Siglip2VisionModel` of transformers."""
    from transformers import Siglip2VisionConfig, Siglip2VisionModel

    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    model = Siglip2VisionModel(Siglip2VisionConfig(**sizes, patch_size=4, num_patches=25))
    randomize(model, seed=1)
    return model.eval()


def flexible() -> nn.Module:
    """Return a tiny SigLIP 2 encoder that takes patches of any size."""
    return naflexvit(enable_patch_interpolator=True)


def constant() -> nn.Module:
    """Return a classifier whose head is zero, as timm leaves it untrained: nothing can be judged by it."""
    model = classifier()
    nn.init.zeros_(model.head.weight)
    return model


def not_a_model() -> int:
    """Return something else."""
    return 3
