"""`PackingCollator`: samples of timm's NaFlex loader as packs, for a DataLoader."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from naflex_export.errors import InputError, RequestError
from naflex_export.serving.packing import pack

Sample = tuple[dict[str, Tensor], Any]
"""What timm's NaFlex datasets give: `patches`, `patch_coord` and `patch_valid` of an image by name, and its target."""


class PackingCollator:
    """Makes packs of samples, each image in the first pack with room for it: `collate_fn` of a DataLoader.

    Args:
        tokens: the most tokens of a pack.

    Raises:
        RequestError: that is no number of at least 1.
    """

    def __init__(self, tokens: int) -> None:
        if not isinstance(tokens, int) or isinstance(tokens, bool) or tokens < 1:
            raise RequestError(f"tokens={tokens!r}: expected an integer of at least 1, the most that a pack holds")
        self.tokens = tokens

    def __call__(self, samples: Sequence[Sample]) -> list[tuple[dict[str, Tensor], Tensor]]:
        """Return packs, as `nx.pack` gives them, each with the targets of its images.

        Raises:
            InputError: a sample is none of timm's, or an image has more tokens than a pack holds.
        """
        packs: list[list[Sample]] = []
        left: list[int] = []
        for number, sample in enumerate(samples):
            if not _is_sample(sample):
                raise InputError(
                    f"sample {number} is no (image, target) of timm's NaFlex datasets: expected a mapping, "
                    f"with {', '.join(_NAMES)}"
                )
            count = int(sample[0]["patch_valid"].sum())
            if count > self.tokens:
                raise InputError(
                    f"sample {number} has {count} tokens, more than the {self.tokens} of a pack: give the transform a "
                    "smaller max_seq_len, or larger packs"
                )
            place = next((index for index, room in enumerate(left) if count <= room), len(packs))
            if place == len(packs):
                packs.append([])
                left.append(self.tokens)
            packs[place].append(sample)
            left[place] -= count
        return [(pack([_alone(image) for image, _ in chosen]), _together(chosen)) for chosen in packs]


_NAMES = ("patches", "patch_coord", "patch_valid")


def _is_sample(sample: Any) -> bool:
    is_pair = isinstance(sample, tuple | list) and len(sample) == 2
    return (
        is_pair and isinstance(sample[0], Mapping) and all(isinstance(sample[0].get(name), Tensor) for name in _NAMES)
    )


def _alone(image: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: image[name].unsqueeze(0) for name in _NAMES}


def _together(samples: Sequence[Sample]) -> Tensor:
    targets = [target for _, target in samples]
    if isinstance(targets[0], Tensor):
        return torch.stack(targets)
    try:
        return torch.tensor(targets)
    except (RuntimeError, TypeError, ValueError) as error:
        kinds = ", ".join(sorted({type(target).__name__ for target in targets}))
        raise InputError(f"targets of a pack are of {kinds}: expected tensors or numbers, of one shape") from error
