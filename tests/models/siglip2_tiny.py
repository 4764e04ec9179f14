"""Tiny SigLIP 2 models of transformers, and batches for them."""

from __future__ import annotations

from typing import Any

import pytest
from torch import Tensor

pytest.importorskip("transformers")

from transformers import Siglip2Config, Siglip2Model, Siglip2VisionConfig, Siglip2VisionModel

import naflex_export as nx
from naflex_export.batch import noise_batch
from naflex_export.grid import Grid
from naflex_export.models.model_sources import randomize
from naflex_export.serving.input_formats import TRANSFORMERS

VISION: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "patch_size": 4,
    "num_patches": 25,
}
TEXT = {**VISION, "vocab_size": 50, "bos_token_id": 1, "eos_token_id": 2}
TEXT.pop("patch_size")
TEXT.pop("num_patches")
BUCKET = nx.Bucket(30, (1, 3, 8))
MIXED = [Grid(3, 7), Grid(1, 26), Grid(5, 5), Grid(1, 1), Grid(13, 2), Grid(2, 2), Grid(4, 6)]
COLUMNS = [Grid(26, 1), Grid(3, 1), Grid(5, 1), Grid(1, 1)]
UNSEEN = {
    "one-image": ([Grid(4, 6)], 30),
    "one-image-no-padding": ([Grid(5, 6)], 30),
    "one-token": ([Grid(1, 1)] * 2, 1),
    "one-image-one-token": ([Grid(1, 1)], 1),
    "two-tokens": ([Grid(1, 2)] * 2, 2),
    "as-many-images-as-tokens": ([Grid(2, 2), Grid(1, 3), Grid(1, 4), Grid(1, 1)], 4),
    "eight-images": ([Grid(height, 2) for height in range(1, 9)], 17),
}

Inputs = tuple[Tensor, Tensor, Tensor]


def vision(seed: int = 1, **options: Any) -> Siglip2VisionModel:
    model = Siglip2VisionModel(Siglip2VisionConfig(**{**VISION, **options}))
    randomize(model, seed)
    return model.eval()


def two_towers() -> Siglip2Model:
    model = Siglip2Model(Siglip2Config(vision_config=VISION, text_config=TEXT))
    randomize(model, 1)
    return model.eval()


def batch_of(grids: list[Grid], tokens: int) -> Inputs:
    return TRANSFORMERS.arrange(noise_batch("siglip2", grids, tokens, 48))


def assert_close(found: Tensor, expected: Tensor, share: float = 1e-5) -> None:
    assert found.shape == expected.shape and found.dtype == expected.dtype
    assert (found - expected).abs().max() <= share * expected.abs().max()
