"""A tiny SigLIP 2 with both towers, saved in a folder with a tokenizer that is trained here."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("transformers")

from siglip2_tiny import VISION
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast, Siglip2Config, Siglip2ImageProcessor, Siglip2Model

from naflex_export.accuracy.text_cases import CAPTIONS, LABELS
from naflex_export.models.model_sources import randomize

LENGTH = 16
TOKENS = 300
TEXT: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
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
    """Return a tokenizer like SigLIP 2's: lower case, pairs of bytes, an end token, padding on the right."""
    made = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=False))
    made.normalizer = normalizers.Sequence([normalizers.Lowercase(), normalizers.Replace(" ", "▁")])
    made.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
    made.decoder = decoders.Replace("▁", " ")
    special = ["<pad>", "<eos>", "<bos>", "<unk>"]
    made.train_from_iterator(
        texts, trainers.BpeTrainer(vocab_size=tokens - 10, special_tokens=special, show_progress=False)
    )
    made.post_processor = processors.TemplateProcessing(single="$A <eos>", special_tokens=[("<eos>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=made,
        pad_token="<pad>",
        eos_token="<eos>",
        bos_token="<bos>",
        unk_token="<unk>",
        padding_side="right",
        model_input_names=list(names),
    )


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
