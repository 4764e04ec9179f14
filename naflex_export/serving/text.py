"""`TextEncoder`: texts in, vectors out, by the text tower of an artifact and the tokenizer that lies beside it.

The tokenizer is read by the package `tokenizers` alone, from the one file that the export wrote: how texts are cut and
padded stands in that file.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from naflex_export.errors import ArtifactError, InputError, RequestError
from naflex_export.serving.card import text_card
from naflex_export.serving.closing import Closable
from naflex_export.serving.manifest import Manifest
from naflex_export.serving.opened import VerifiedFolder
from naflex_export.serving.optional_package import optional_package
from naflex_export.serving.zero_shot import Scoring

Array = NDArray[Any]

TOKENIZER = "tokenizer.json"
"""In the text tower's folder."""

MOST_CHARACTERS = 100_000
"""Of a text: its first few tokens are all that a model sees."""


class TokenMaker:
    """Makes a text tower's inputs of texts. Several threads may call it at once.

    Args:
        folder: the text tower's, verified.

    Attributes:
        manifest: what the text tower says of itself.

    Raises:
        ArtifactError: the tokenizer's file is missing, or is none, or has other tokens than the model.
        BackendError: the package `tokenizers` is missing.
    """

    def __init__(self, folder: VerifiedFolder) -> None:
        self.manifest: Manifest = folder.manifest
        self._tokenizer = _tokenizer_of(folder)

    def __call__(self, texts: Sequence[str]) -> list[Array]:
        """Return the text tower's inputs for texts, arrays [texts, length] int64 in the manifest's order.

        Args:
            texts: a list of them; each is cut to the tokens that the model takes, or padded to as many.

        Raises:
            InputError: it is no list of texts, or empty.
        """
        if isinstance(texts, str):
            raise InputError(f"texts is the text {_shown(texts)}: expected a list of texts, such as [{_shown(texts)}]")
        if isinstance(texts, bytes | Set | Mapping) or not isinstance(texts, Iterable):
            raise InputError(f"texts is a {type(texts).__name__}: expected a list of texts")
        listed = list(texts)
        if not listed:
            raise InputError("texts is an empty list: expected at least one text")
        for text in listed:
            if not isinstance(text, str):
                raise InputError(f"texts holds a {type(text).__name__}: expected texts alone")
        encoded = self._tokenizer.encode_batch([_readable(text) for text in listed])
        given = {
            "input_ids": np.array([one.ids for one in encoded], np.int64),
            "attention_mask": np.array([one.attention_mask for one in encoded], np.int64),
        }
        return [given[spec.name] for spec in self.manifest.inputs]


class TextEncoder(Closable):
    """Turns texts into vectors. Several threads may call it at once. It is closed with the Runner that opened it.

    Args:
        folder: the text tower's, verified.
        run: what runs the tower on its inputs, arrays in their order, as many texts as a bucket takes.
        joined: makes one of the vectors of several batches.
        scoring: what makes logits of cosines.

    Attributes:
        manifest: what the text tower says of itself.
        tokens: from texts to its inputs.
        scoring: as given.

    Raises:
        ArtifactError, BackendError: as `TokenMaker`.
    """

    def __init__(
        self,
        folder: VerifiedFolder,
        run: Callable[[list[Array]], Any],
        joined: Callable[[list[Any]], Any],
        scoring: Scoring,
    ) -> None:
        self.manifest: Manifest = folder.manifest
        self.tokens, self.scoring = TokenMaker(folder), scoring
        self._run, self._joined = run, joined

    def __repr__(self) -> str:
        """Return what the text tower is, how its vectors are scored, and what the gate said of it."""
        return text_card(self.manifest, self.scoring)

    def __call__(self, texts: Sequence[str]) -> Any:
        """Return the vectors [texts, C], as the model gives them, of any length and in the artifact's dtype.

        They are a torch tensor, or a numpy array of `load_numpy`.

        Args:
            texts: a list of them, as many as there are; each is cut to the tokens that the model takes.

        Raises:
            InputError: it is no list of texts, or empty, or a text has no token and the model needs one.
            ClosedError: it was closed.
        """
        self.refuse_closed()
        inputs = self.tokens(texts)
        smallest, _, largest = self.manifest.buckets[-1].batch
        made = []
        for start in range(0, len(inputs[0]), largest):
            part = [array[start : start + largest] for array in inputs]
            count = len(part[0])
            filled = [array[np.arange(max(count, smallest)) % count] for array in part]
            made.append(self._run(filled)[:count])
        return self._joined(made)


def text_folder(folder: VerifiedFolder) -> VerifiedFolder:
    """Return the folder of an artifact's text tower.

    Args:
        folder: the artifact's.

    Raises:
        RequestError: it has none.
    """
    found = folder.text()
    if found is None:
        raise RequestError(
            f"the artifact {str(folder.shown)!r} has no text tower: export the model again with --tower image,text, "
            "in Python towers=('image', 'text')"
        )
    return found


def tokenizer_sha256(manifest: Manifest) -> str | None:
    """Return the hash of what makes tokens of texts; None of an artifact without a text tower.

    Args:
        manifest: the artifact's.
    """
    if manifest.text is None:
        return None
    found: str | None = manifest.files.get(f"{manifest.text['folder']}/{TOKENIZER}", {}).get("sha256")
    return found


def _tokenizer_of(folder: VerifiedFolder) -> Any:
    """Return the tokenizer of a text tower, once it is known to have the model's tokens and no others."""
    tokenizers = optional_package("tokenizers", "text")
    shown = str(folder.shown / TOKENIZER)
    if TOKENIZER not in folder.manifest.files:
        raise ArtifactError(f"the artifact lists no {shown!r}, which makes tokens of texts: export again")
    try:
        made = tokenizers.Tokenizer.from_str(Path(folder.path / TOKENIZER).read_text(encoding="utf-8"))
    except Exception as error:  # tokenizers raises plain Exceptions, and the file may be no text
        raise ArtifactError(f"{shown!r} is no tokenizer ({str(error)[:200]}): export again") from error
    vocabulary, length = folder.manifest.model["vocabulary"], folder.manifest.inputs[0].shape[1]
    padding, truncation = made.padding or {}, made.truncation or {}
    if padding.get("length") != length or truncation.get("max_length") != length:
        raise ArtifactError(
            f"{shown!r} pads texts to {padding.get('length')} tokens and cuts them at {truncation.get('max_length')}, "
            f"and the model takes {length}: export again"
        )
    highest = max(made.get_vocab(with_added_tokens=True).values(), default=0)
    if highest >= vocabulary:
        raise ArtifactError(
            f"{shown!r} has a token of number {highest}, and the model has {vocabulary} tokens: export again with the "
            "model's own tokenizer"
        )
    return made


def _readable(text: str) -> str:
    """Return a text without halves of characters, which no tokenizer takes."""
    return text[:MOST_CHARACTERS].encode("utf-8", "replace").decode("utf-8")


def _shown(text: str) -> str:
    return repr(text) if len(text) <= 60 else f"{text[:60]!r}..."
