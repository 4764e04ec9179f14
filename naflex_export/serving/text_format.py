"""How a text tower takes texts: the ids of their tokens, as many as the model was made for.

In a `Batch` of texts the patches are ids [B, N], and a text's grid is one row of its tokens.

Shape legend: B texts, N tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from naflex_export.errors import InputError
from naflex_export.grid import Bucket, Grid
from naflex_export.serving.input_formats import InputFormat, values_of

if TYPE_CHECKING:
    from naflex_export.batch import Batch
    from naflex_export.serving.input_formats import Inputs


class TextFormat(InputFormat):
    """`input_ids` [B, N] int64, where all N tokens are attended to, padding too, as SigLIP 2 was trained."""

    names: tuple[str, ...] = ("input_ids",)
    valid = ""
    dims: tuple[tuple[str, ...], ...] = (("batch", "length"),)
    opened = ("batch",)

    def arrange(self, batch: Batch) -> Inputs:
        return (batch.patches,)

    def example(self, name: str, grids: Sequence[Grid], tokens: int, width: int) -> Batch:
        import torch

        from naflex_export.batch import Batch

        valid_BN = torch.tensor([[place < grid.tokens for place in range(tokens)] for grid in grids])
        ids_BN = torch.zeros(len(grids), tokens, dtype=torch.int64)  # an id that every vocabulary has
        return Batch(name, ids_BN, torch.zeros(len(grids), tokens, 2, dtype=torch.int64), valid_BN, tuple(grids))

    def without_padding(self, inputs: Inputs) -> Inputs:
        return inputs

    def check_sizes(self, sizes: Mapping[str, int], buckets: Sequence[Bucket]) -> None:
        if not any(bucket.batch[0] <= sizes["batch"] <= bucket.batch[2] for bucket in buckets):
            raise InputError(
                f"a batch of {sizes['batch']} texts fits no bucket ({', '.join(map(str, buckets))}, as "
                "tokens:min,opt,max): split the batch"
            )

    def check(self, inputs: Sequence[Any], most: int) -> None:
        self.check_tokens(inputs)

    def check_tokens(self, inputs: Sequence[Any]) -> None:
        if (values_of(inputs[0]) < 0).any():
            raise InputError("input_ids holds a number below 0: expected what the artifact's tokenizer gives")


class MaskedTextFormat(TextFormat):
    """`input_ids` and `attention_mask`, both [B, N] int64: 1 for a token of the text, 0 for padding."""

    names = ("input_ids", "attention_mask")
    dims = (("batch", "length"), ("batch", "length"))

    def arrange(self, batch: Batch) -> Inputs:
        import torch

        return batch.patches, batch.patch_valid.to(torch.int64)

    def check_tokens(self, inputs: Sequence[Any]) -> None:
        super().check_tokens(inputs)
        mask_BN = values_of(inputs[1])
        if ((mask_BN != 0) & (mask_BN != 1)).any():
            raise InputError("attention_mask holds values other than 0 and 1: expected 1 for each token of a text")
        count_B = mask_BN.sum(axis=1)
        if (count_B == 0).any():
            raise InputError(f"text {int(np.argmin(count_B))} has no token: expected a text with at least one")


TEXT = TextFormat()
MASKED_TEXT = MaskedTextFormat()
