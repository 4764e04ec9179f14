"""A tiny SigLIP 2 with both towers, saved in a folder with a tokenizer that is trained here."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("transformers")

from siglip2_tiny import VISION
from transformers import PreTrainedTokenizerFast, Siglip2Config, Siglip2ImageProcessor, Siglip2Model
from zero_shot import tokenizer_of

from naflex_export.accuracy.text_cases import CAPTIONS, LABELS
from naflex_export.models.model_sources import randomize

LENGTH = 16
TOKENS = 300
TEXT: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "max_position_embeddings": LENGTH,
    "vocab_size": TOKENS,
    "pad_token_id": 0,
    "eos_token_id": 1,
    "bos_token_id": 2,
}


def tokenizer(
    texts: Sequence[str] = (*LABELS, *CAPTIONS), names: Sequence[str] = ("input_ids",), tokens: int = TOKENS
) -> PreTrainedTokenizerFast:
    return tokenizer_of(texts, tokens, names)


def two_towers(**text: Any) -> Siglip2Model:
    model = Siglip2Model(Siglip2Config(vision_config=VISION, text_config={**TEXT, **text}))
    randomize(model, 1)
    return model.eval()


def saved(folder: Path, names: Sequence[str] = ("input_ids",), **text: Any) -> Path:
    """Save a model, its tokenizer and its image processor in a folder."""
    two_towers(**text).save_pretrained(folder)
    tokenizer(names=names).save_pretrained(folder)
    Siglip2ImageProcessor().save_pretrained(folder)
    return folder
