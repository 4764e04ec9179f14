"""Zero-shot classification: how well each of a few labels goes with a photo, by an artifact with a text tower."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from naflex_export.embed.decode import Photo
from naflex_export.embed.embedder import Embedder
from naflex_export.embed.run_arrays import open_text_run
from naflex_export.errors import PhotoError, RequestError

TEMPLATE = "This is a photo of {}."
"""What a label is put into, as transformers' own pipeline has it."""


@dataclass(frozen=True)
class Label:
    """A label beside a photo.

    Attributes:
        label: as it was given.
        probability: that it is true of the photo, as the model's training has it.
        likeness: cosine of the two vectors.
    """

    label: str
    probability: float
    likeness: float


class Classifier:
    """Says which of a few labels go with photos. An ONNX artifact in float32 or float16 needs no torch.

    Args:
        path: the artifact's folder.
        labels: to choose from.
        template: what a label is put into, in the place of `{}`.
        device: where to run; as for `load`.
        trusted: as for `load`.
        verify: as for `load`.

    Raises:
        RequestError: there is no label, one comes twice, two are the same tokens, the template has no `{}`, or the
            artifact has no text tower.
        ArtifactError, BackendError: as `load`.
    """

    def __init__(
        self,
        path: Path | str,
        labels: Sequence[str],
        template: str = TEMPLATE,
        *,
        device: str | None = None,
        trusted: bool = True,
        verify: str = "full",
    ) -> None:
        self.labels = check_labels(labels)
        if template.count("{}") != 1:
            raise RequestError(f"template {template!r}: expected one {{}}, where the label goes, as in {TEMPLATE!r}")
        text = open_text_run(Path(path), device=device, trusted=trusted, verify=verify)
        self._scoring = text.scoring
        prompts = [template.replace("{}", label) for label in self.labels]
        _check_told_apart(self.labels, text.tokens(prompts))
        self._texts = text.encode(prompts)
        self._embedder = Embedder(path, device=device, trusted=trusted, verify=verify)

    def __call__(self, photos: Iterable[Photo]) -> Iterator[list[Label] | PhotoError]:
        """Yield the labels of each photo, the likeliest first; in the place of a bad photo what is wrong with it.

        Args:
            photos: paths, bytes, PIL images or numpy arrays.
        """
        for vector in self._embedder(photos):
            if isinstance(vector, PhotoError):
                yield vector
                continue
            probabilities = self._scoring.probabilities(vector[None], self._texts)[0]
            cosines = self._scoring.cosines(vector[None], self._texts)[0]
            order = np.argsort(-cosines, kind="stable")
            yield [Label(self.labels[one], float(probabilities[one]), float(cosines[one])) for one in order]


def _check_told_apart(labels: Sequence[str], tokens: Sequence[NDArray[Any]]) -> None:
    """Check that the model is given something else for each label.

    Raises:
        RequestError: two are the same tokens, as words of a script that the tokenizer does not know are, or what comes
            after the last token that the model takes.
    """
    seen: dict[bytes, str] = {}
    for index, label in enumerate(labels):
        made = b"".join(array[index].tobytes() for array in tokens)
        other = seen.setdefault(made, label)
        if other != label:
            raise RequestError(
                f"labels {other!r} and {label!r} are the same tokens to the artifact's tokenizer, so the model cannot "
                "tell them apart: it may not know their letters, or capitals, or the text before them may be too long; "
                "give other words, or a shorter --template"
            )


def check_labels(labels: Sequence[str]) -> list[str]:
    """Return labels without spaces around them.

    Raises:
        RequestError: there is none, one is empty, or one comes twice.
    """
    found = [label.strip() for label in labels]
    if not found:
        raise RequestError("no label was given: expected some, such as --labels 'cat,dog'")
    for label in found:
        if not label:
            raise RequestError("a label is empty: expected words between the commas, such as --labels 'cat,dog'")
        if found.count(label) > 1:
            raise RequestError(f"label {label!r} was given {found.count(label)} times: give each label once")
    return found
