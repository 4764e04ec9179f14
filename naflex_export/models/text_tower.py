"""A text tower and what is known of its family, together; its image tower's `ModelAdapter.text_tower` gives it."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from torch import nn

from naflex_export.models.encoder_adapter import EncoderAdapter
from naflex_export.serving.zero_shot import Scoring


class TextTower(EncoderAdapter):
    """All that the package asks of a text tower: an encoder of tokens, its tokenizer, and how its vectors are scored.

    Args:
        model: the tower alone.
        scoring: what makes logits of the cosines of its vectors with those of images.
    """

    def __init__(self, model: nn.Module, scoring: Scoring) -> None:
        self.model = model
        self.scoring = scoring

    @property
    def is_vectorized(self) -> bool:
        return False

    def vectorized(self) -> Self:
        return self  # it has no loop

    @property
    @abstractmethod
    def length(self) -> int:
        """The tokens that every text is padded or cut to."""

    @property
    def fixed_tokens(self) -> int | None:
        return self.length

    @abstractmethod
    def tokens(self, texts: Sequence[str]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return what the family's own tokenizer makes of texts: ids and mask, both [texts, length]."""

    @abstractmethod
    def tokenizer_files(self) -> dict[str, bytes]:
        """Return the tokenizer's files, by name, with the one that `serving/text.py` reads among them."""

    @abstractmethod
    def preprocessing(self) -> dict[str, Any]:
        """Return what turns a text into tokens, as plain JSON values."""
