"""The texts that a text tower is judged on: real ones, through its tokenizer, and tokens drawn from all that it has."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from naflex_export.accuracy.efforts import CaseSelection
from naflex_export.batch import Batch
from naflex_export.grid import Bucket, Grid
from naflex_export.models.text_tower import TextTower

_OBJECTS = (
    *("cat", "dog", "red bicycle", "bowl of soup", "tortoiseshell cat", "rocket on a launch pad", "cup of coffee"),
    *("face of an astronaut", "page of printed text", "pile of coins", "brick wall", "galaxy", "human hand", "street"),
    *("wooden chair", "traffic light", "goldfish", "snow-covered mountain", "crowd of people", "handwritten letter"),
)

LABELS = tuple(f"a photo of a {name}." for name in _OBJECTS)
"""What zero-shot classification asks for."""

CAPTIONS = (
    "Two brown dogs run across a wet beach at sunset, one of them with a stick in its mouth.",
    "an aerial view of a harbour: cranes, 14 container ships, and a ferry (white & blue) leaving for the open sea",
    "Close-up of a hand-painted sign that reads 'OPEN 24/7' hanging in the window of a small shop in the rain",
    "black and white photograph of an old man reading a newspaper on a park bench, autumn leaves on the ground",
    "A plate with rice, beans, fried plantain, half an avocado and a slice of lime, seen from above.",
    "a diagram of the water cycle with labels in several colours",
)

UNUSUAL = (
    "x",
    "THE SAME TEXT IN CAPITAL LETTERS",
    "  spaces   at both ends  ",
    "une façade à Orléans, l'été",
    "一只红色的自行车",
    "صورة لقطة على سجادة",
    "фотография двух собак",
    "🐈 + 🥣 = 🙂",
    "C:\\path\\to\\file.png <html> {json: [1, 2]} #tag @name 3.14159",
    "a very long caption " + "that goes on and on " * 60 + "until it is cut",
    "",
)
"""Of other scripts, of one token, of more than any model takes, and of none."""

ALL_TEXTS = (*LABELS, *CAPTIONS, *UNUSUAL)


def _labels(bucket: Bucket) -> list[str]:
    return list(LABELS[: bucket.batch[2]])


def _captions(bucket: Bucket) -> list[str]:
    return list(CAPTIONS[: bucket.batch[2]])


def _unusual(bucket: Bucket) -> list[str]:
    return list(UNUSUAL[: bucket.batch[2]])


def _single(bucket: Bucket) -> list[str]:
    return [CAPTIONS[0]] * bucket.batch[0]


def _largest_batch(bucket: Bucket) -> list[str]:
    kinds = [f"{caption} Number {number}." for number in range(20) for caption in (*CAPTIONS, *LABELS)]
    return (kinds * (1 + bucket.batch[2] // len(kinds)))[: bucket.batch[2]]


REAL: dict[str, Callable[[Bucket], list[str]]] = {
    "labels": _labels,
    "captions": _captions,
    "unusual": _unusual,
    "single": _single,
    "largest-batch": _largest_batch,
}
"""Cases of real texts."""

ANY_TOKENS = "any-tokens"
"""The kind of case whose tokens are drawn evenly from all that the model has, for every length."""

_EFFORTS = {"quick": (("labels", "captions"), 1), "standard": (tuple(REAL), 1), "thorough": (tuple(REAL), 4)}
"""Which cases of real texts, and how many of any tokens."""


def text_cases(selection: CaseSelection) -> list[str]:
    """Return the names of the cases that a text tower is judged on.

    Args:
        selection: which are asked for.
    """
    real, seeds = _EFFORTS["thorough" if selection.only else selection.effort]
    drawn = {f"{ANY_TOKENS}-seed{seed}" for seed in range(selection.seed, selection.seed + seeds)}
    asked = {name for name in selection.only if re.fullmatch(rf"{ANY_TOKENS}-seed\d+", name)}
    names = [*real, *sorted(drawn | asked)]
    return [name for name in names if not selection.only or name in selection.only]


def text_batch(name: str, bucket: Bucket, tower: TextTower) -> Batch:
    """Return the batch of a case.

    Args:
        name: as `text_cases` gave it.
        bucket: what the candidate serves.
        tower: whose tokenizer makes tokens of texts.
    """
    if name in REAL:
        return batch_of(name, REAL[name](bucket), tower)
    generator = torch.Generator().manual_seed(random.Random(name).getrandbits(63))
    count = max(bucket.batch[0], min(bucket.batch[2], 16))
    ids_BN = torch.randint(tower.token_width, (count, tower.length), generator=generator)
    lengths = [1 + (tower.length - 1) * row // max(1, count - 1) for row in range(count)]
    valid_BN = torch.arange(tower.length) < torch.tensor(lengths).unsqueeze(1)
    return _batch(name, ids_BN, valid_BN)


def batch_of(name: str, texts: Sequence[str], tower: TextTower) -> Batch:
    """Return texts as a batch, by the family's own tokenizer; of a tower that is told of padding, without empty ones.

    Args:
        name: of the batch.
        texts: to be tokenized.
        tower: whose tokenizer it is.
    """
    ids_BN, mask_BN = map(torch.from_numpy, tower.tokens(texts))
    if len(tower.input_format.names) > 1:
        kept_B = mask_BN.any(dim=1)
        ids_BN, mask_BN = ids_BN[kept_B], mask_BN[kept_B]
    return _batch(name, ids_BN, mask_BN.bool())


def _batch(name: str, ids_BN: Tensor, valid_BN: Tensor) -> Batch:
    grids = tuple(Grid(1, max(1, int(count))) for count in valid_BN.sum(dim=1))
    return Batch(name, ids_BN, torch.zeros(*ids_BN.shape, 2, dtype=torch.int64), valid_BN, grids)
