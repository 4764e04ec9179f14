"""From vectors of images and of texts to how well they go together, as the model's own training scored them.

Features of an artifact are as the model gives them, of any length; here they are brought to length 1 first.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from naflex_export.errors import RequestError

Array = NDArray[Any]

SIGMOID, SOFTMAX = "sigmoid", "softmax"
"""How a model's logits become probabilities: each pair by itself, or the texts of an image against each other."""


@dataclass(frozen=True)
class Scoring:
    """What makes a model's logits of cosines: `cosine * exp(logit_scale) + logit_bias`.

    Attributes:
        logit_scale: the natural logarithm of the factor, as the model stores it.
        logit_bias: what is added.
        probability: "sigmoid" or "softmax".
        normalized: whether the features of both towers have length 1 as they come.
    """

    logit_scale: float
    logit_bias: float
    probability: str = SIGMOID
    normalized: bool = False

    def fields(self) -> dict[str, Any]:
        """Return what a manifest says of it."""
        return asdict(self)

    @classmethod
    def of(cls, fields: Mapping[str, Any]) -> Scoring:
        """Return what a manifest's fields, which have been checked, say."""
        names = ("logit_scale", "logit_bias", "probability", "normalized")
        return cls(**{name: fields[name] for name in names})

    def logits(self, images: Array, texts: Array) -> Array:
        """Return the logit [images, texts] of each image with each text, in float64.

        Args:
            images: their vectors [images, C], of any length.
            texts: their vectors [texts, C], of any length.

        Raises:
            RequestError: the vectors are of different widths, so of different models.
        """
        return self.cosines(images, texts) * np.exp(self.logit_scale) + self.logit_bias

    @staticmethod
    def cosines(images: Array, texts: Array) -> Array:
        """Return the cosine of each image's vector with each text's; arguments as of `logits`.

        Raises:
            RequestError: the vectors are of different widths, so of different models.
        """
        if images.shape[-1] != texts.shape[-1]:
            raise RequestError(
                f"vectors of images have {images.shape[-1]} values and those of texts {texts.shape[-1]}: expected both "
                "of one artifact"
            )
        return at_length_one(images) @ at_length_one(texts).T

    def of_cosines(self, cosines: Array) -> Array:
        """Return how probable pairs of these cosines are, each judged by itself whatever the model's training was."""
        return 0.5 * (1 + np.tanh(0.5 * (cosines * np.exp(self.logit_scale) + self.logit_bias)))

    def probabilities(self, images: Array, texts: Array) -> Array:
        """Return how probable each text is for each image, [images, texts]; the arguments are those of `logits`.

        By sigmoid each pair is judged by itself: those of an image need not sum to 1.

        Args:
            images: as of `logits`.
            texts: as of `logits`.
        """
        logits = self.logits(images, texts)
        if self.probability == SIGMOID:
            return 0.5 * (1 + np.tanh(0.5 * logits))
        shares = np.exp(logits - logits.max(axis=1, keepdims=True))
        return shares / shares.sum(axis=1, keepdims=True)


def at_length_one(vectors: Array) -> Array:
    """Return vectors [..., C] at length 1, in float64; zeros stay zeros."""
    wide = np.asarray(vectors, np.float64)
    return wide / np.maximum(np.linalg.norm(wide, axis=-1, keepdims=True), 1e-300)
