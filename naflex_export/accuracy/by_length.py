"""`run_by_length`: what eager gives the images of many batches, run in the company of images of about their length.

What it gives an image depends neither on the others nor on padding, which `invariances` ask of every candidate that is
to be like it. So the images of all batches may be sorted: hardly any padding is computed, and there are fewer calls.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from naflex_export.batch import Batch
from naflex_export.models.encoder_adapter import Outputs

MOST_TOKENS = 768
"""Of one run, where it has more than one image: more of them together take no less time each."""


@dataclass(frozen=True)
class _Image:
    """An image by the number of its batch and its row in it, and how many tokens it has."""

    batch: int
    row: int
    tokens: int


def run_by_length(run: Callable[[Batch], Outputs], batches: Sequence[Batch], prefix: int) -> list[Outputs]:
    """Return the outputs of each batch, by name: features [B, F], and tokens [B, prefix + N, C] with zeros for padding.

    Args:
        run: the eager model.
        batches: what is asked; masks with holes are kept.
        prefix: how many tokens of an output come before those of patches.
    """
    images = [
        _Image(number, row, grid.tokens) for number, batch in enumerate(batches) for row, grid in enumerate(batch.grids)
    ]
    found: list[Outputs] = [{} for _ in batches]
    for together in _runs(sorted(images, key=lambda image: -image.tokens)):
        for name, values in run(_collected(batches, together)).items():
            for image, value in zip(together, values, strict=True):
                whole = found[image.batch]
                if name not in whole:
                    rows, tokens = batches[image.batch].patch_valid.shape
                    shape = value.shape if value.ndim == 1 else (prefix + tokens, value.shape[-1])
                    whole[name] = value.new_zeros(rows, *shape)
                length = len(value) if value.ndim == 1 else prefix + image.tokens
                whole[name][image.row, :length] = value[:length]
    return found


def _runs(images: Sequence[_Image]) -> Iterator[list[_Image]]:
    """Yield images in the given order, longest first, as many at once as are of about one length."""
    together: list[_Image] = []
    for image in images:
        if together:
            longest = together[0].tokens
            is_far = longest - image.tokens > max(4, longest // 4)
            if is_far or longest * (len(together) + 1) > MOST_TOKENS:
                yield together
                together = []
        together.append(image)
    yield together


def _collected(batches: Sequence[Batch], images: Sequence[_Image]) -> Batch:
    """Return some images of several batches as one, with no more padding than the longest of them asks for."""
    tokens = max(image.tokens for image in images)

    def stacked(name: str) -> Tensor:
        rows = []
        for image in images:
            row = getattr(batches[image.batch], name)[image.row, : image.tokens]
            rows.append(torch.cat([row, row.new_zeros(tokens - image.tokens, *row.shape[1:])]))
        return torch.stack(rows)

    return Batch(
        name="images by length",
        patches=stacked("patches"),
        patch_coord=stacked("patch_coord"),
        patch_valid=stacked("patch_valid"),
        grids=tuple(batches[image.batch].grids[image.row] for image in images),
    )
