"""The text tower of transformers' SigLIP 2: untouched, for nothing in it loops over texts."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import Siglip2Model, Siglip2TextModel
from transformers.modeling_outputs import BaseModelOutputWithPooling

from naflex_export.errors import RequestError
from naflex_export.models.hf_tokenizer import HfTokenizer
from naflex_export.models.text_tower import TextTower
from naflex_export.serving.text_format import MASKED_TEXT, TEXT
from naflex_export.serving.zero_shot import Scoring


class Siglip2TextEncoder(nn.Module):
    """A text tower whose forward returns a tuple of its outputs."""

    def __init__(self, tower: Siglip2TextModel) -> None:
        super().__init__()
        self.model = tower

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> tuple[Tensor, ...]:
        """Return `features` [B, C]: those of the last token, through the head."""
        given = self.model(input_ids=input_ids, attention_mask=attention_mask, return_dict=True)
        return (given.pooler_output,)


class Siglip2Text(TextTower):
    """Of a `Siglip2Model`: its `text_model`, with the tokenizer that it is used with.

    Args:
        model: the `Siglip2TextModel`.
        scoring: of the whole model.
        tokenizer: its own.

    Raises:
        RequestError: the tokenizer has tokens that the model has not.
    """

    name = "transformers Siglip2"
    package = "transformers"

    def __init__(self, model: nn.Module, scoring: Scoring, tokenizer: HfTokenizer) -> None:
        super().__init__(model, scoring)
        self.tokenizer = tokenizer
        self.input_format = MASKED_TEXT if "attention_mask" in tokenizer.names else TEXT
        if tokenizer.highest >= self.token_width:
            raise RequestError(
                f"the tokenizer of {tokenizer.origin!r} has a token of number {tokenizer.highest}, and the model has "
                f"{self.token_width} tokens: expected the model's own tokenizer"
            )

    @classmethod
    def beside(cls, model: Siglip2Model, folder: str | None) -> Siglip2Text:
        """Return the text tower of a whole model.

        Args:
            model: with both towers.
            folder: of the tokenizer; None for where the model was loaded from.

        Raises:
            RequestError: the tokenizer cannot be had, or is not the model's.
        """
        scoring = Scoring(logit_scale=float(model.logit_scale.detach()), logit_bias=float(model.logit_bias.detach()))
        length = model.text_model.config.max_position_embeddings
        tokenizer = HfTokenizer(folder or model.name_or_path, length, given=folder is not None)
        return cls(model.text_model, scoring, tokenizer)

    @classmethod
    def owns(cls, model: nn.Module) -> bool:
        return isinstance(model, Siglip2TextModel)

    def of(self, model: nn.Module) -> Self:
        return type(self)(model, self.scoring, self.tokenizer)

    def encoder(self, outputs: tuple[str, ...]) -> nn.Module:
        if outputs != ("features",):
            raise RequestError(f"outputs={outputs!r} of a text tower: expected features alone")
        return Siglip2TextEncoder(self.model)

    def unpack(self, output: Any) -> Any:
        return {"features": output.pooler_output} if isinstance(output, BaseModelOutputWithPooling) else output

    @property
    def length(self) -> int:
        found: int = self.model.config.max_position_embeddings
        return found

    @property
    def token_width(self) -> int:
        found: int = self.model.config.vocab_size
        return found

    def tokens(self, texts: Sequence[str]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        return self.tokenizer.tokens(texts)

    def tokenizer_files(self) -> dict[str, bytes]:
        return self.tokenizer.files()

    def preprocessing(self) -> dict[str, Any]:
        return {"tokenizer_from": self.tokenizer.origin, "length": self.length, **self.tokenizer.settings}

    def describe(self) -> dict[str, Any]:
        config = self.model.config
        return {
            "architecture": type(self.model).__name__,
            "attention": config._attn_implementation,
            "text_config": json.loads(config.to_json_string(use_diff=False)),
        }
