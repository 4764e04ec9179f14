"""Tiny models, every parameter of which shows in their outputs."""

from __future__ import annotations

from typing import Any

import timm
import torch
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


def shallow() -> nn.Module:
    """Return `siglip` with one block: for what is done with an artifact, which does not ask how many there are."""
    return naflexvit(depth=1)


def classifier() -> nn.Module:
    """Return a tiny classifier: register tokens, layer scale, masked average pooling, 10 classes."""
    return naflexvit("naflexvit_base_patch16_gap", num_classes=10)


def shallow_classifier() -> nn.Module:
    """Return `classifier` with one block, as `shallow` is `siglip` with one."""
    return naflexvit("naflexvit_base_patch16_gap", num_classes=10, depth=1)


def siglip2() -> nn.Module:
    """Return a tiny `Siglip2VisionModel` of transformers."""
    from transformers import Siglip2VisionConfig, Siglip2VisionModel

    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    model = Siglip2VisionModel(Siglip2VisionConfig(**sizes, patch_size=4, num_patches=25))
    randomize(model, seed=1)
    return model.eval()


def flexible() -> nn.Module:
    """Return a tiny SigLIP 2 encoder of one block that takes patches of any size."""
    return naflexvit(enable_patch_interpolator=True, depth=1)


def constant() -> nn.Module:
    """Return a classifier whose head is zero, as timm leaves it untrained: nothing can be judged by it."""
    model = classifier()
    nn.init.zeros_(model.head.weight)
    return model


def not_a_model() -> int:
    """Return something else."""
    return 3


def with_large_residual(size: float = 40_000.0, blocks: tuple[int, ...] = (0, 1), depth: int = 2) -> nn.Module:
    """Return a tiny SigLIP 2 encoder with outliers in its stream of tokens, which hide nothing of what it computes.

    Two channels get a number of the same size and opposite sign from the MLP of each of these blocks, for all tokens.
    They leave the mean of all channels as it is, and norms that follow make up for what they do to the deviation. What
    float16 holds exactly is no error of the MLP's; the sum of two may be one of the stream's.

    Args:
        size: that each block adds.
        blocks: which.
        depth: of the model.
    """
    model = naflexvit(depth=depth)
    reached = 0.0
    with torch.no_grad():
        for index, block in enumerate(model.blocks):
            make_up(block.norm1, reached)
            make_up(block.norm2, reached)
            if index in blocks:
                block.mlp.fc2.weight[:2] = 0.0
                block.mlp.fc2.bias[:2] = torch.tensor([size, -size])
                reached += size
        make_up(model.norm, reached)
    return model


def make_up(norm: nn.LayerNorm, reached: float) -> None:
    """Let a norm make up for two channels of this size in what it reads."""
    if reached:
        norm.weight[2:] *= reached * (2 / norm.weight.numel()) ** 0.5
