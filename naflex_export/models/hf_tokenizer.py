"""A tokenizer of transformers, and as the one file that the package `tokenizers` reads alone."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from naflex_export.errors import RequestError, first_line
from naflex_export.serving.text import TOKENIZER


class HfTokenizer:
    """A tokenizer of transformers that makes texts of one length.

    Args:
        origin: the folder or hub id that it is read from.
        length: in tokens.
        given: whether a user named the folder; else it is where the model was loaded from.

    Attributes:
        origin: as given.
        names: of the inputs that it makes for a model.

    Raises:
        RequestError: there is none, it is not backed by `tokenizers`, or it has no token to pad with.
    """

    def __init__(self, origin: str, length: int, *, given: bool = False) -> None:
        from transformers import AutoTokenizer

        remedy = "give the folder of one with --tokenizer, in Python tokenizer='FOLDER'"
        if not origin:
            raise RequestError(
                f"the model was not loaded from a folder or hub, so its tokenizer is not known: {remedy}"
            )
        self.origin, self._length = origin, length
        folder = Path(origin)
        if folder.is_dir() and not (folder / TOKENIZER).is_file():
            raise RequestError(
                f"{origin!r} holds no {TOKENIZER}: expected the tokenizer beside the model, as save_pretrained of "
                + ("a tokenizer writes it" if given else f"its processor writes it; or {remedy}")
            )
        if given and not folder.is_dir():
            raise RequestError(f"--tokenizer {origin!r} is no folder: expected one with a {TOKENIZER}")
        try:
            self._made: Any = AutoTokenizer.from_pretrained(origin, trust_remote_code=False)
        except Exception as error:  # transformers and the hub's client raise classes of many libraries
            raise RequestError(f"the tokenizer of {origin!r} cannot be had ({first_line(error)}): {remedy}") from error
        if not self._made.is_fast:
            raise RequestError(
                f"the tokenizer of {origin!r}, a {type(self._made).__name__}, is not backed by the package tokenizers, "
                f"which alone reads it in an artifact: expected one with a {TOKENIZER}"
            )
        if self._made.pad_token_id is None:
            raise RequestError(f"the tokenizer of {origin!r} has no pad_token: texts are padded to {length} tokens")
        self.names = tuple(name for name in ("input_ids", "attention_mask") if name in self._made.model_input_names)

    @property
    def highest(self) -> int:
        """The highest number of any token."""
        return max(self._made.get_vocab().values())

    @property
    def settings(self) -> dict[str, Any]:
        """How texts are padded and cut, for a manifest."""
        return {"padding_side": self._made.padding_side, "truncation_side": self._made.truncation_side}

    def tokens(self, texts: Sequence[str]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return ids and mask [texts, length], by transformers' own call."""
        made = self._made(
            list(texts),
            padding="max_length",
            truncation=True,
            max_length=self._length,
            return_attention_mask=True,
            return_tensors="np",
        )
        return made["input_ids"].astype(np.int64), made["attention_mask"].astype(np.int64)

    def files(self) -> dict[str, bytes]:
        """Return its files, by name, as transformers saves them; `tokenizer.json` says how texts are padded and cut."""
        from tokenizers import Tokenizer

        with tempfile.TemporaryDirectory() as name:
            self._made.save_pretrained(name)
            found = {path.name: path.read_bytes() for path in sorted(Path(name).iterdir()) if path.is_file()}
        backend = Tokenizer.from_str(self._made.backend_tokenizer.to_str())
        backend.enable_padding(
            direction=self._made.padding_side,
            pad_id=self._made.pad_token_id,
            pad_token=self._made.pad_token,
            length=self._length,
        )
        backend.enable_truncation(self._length, direction=self._made.truncation_side)
        return {**found, TOKENIZER: backend.to_str(pretty=True).encode()}
