"""How many of a photo's nearest neighbours an index of a candidate's vectors still finds.

Cosines to the reference say how far a vector has moved; an index feels whether the order of its neighbours has changed.
Asked of photos that no layer was calibrated on. `reindex/neighbours.py` asks something else, of two sets of vectors on
a disk: what one finds among the other's, copies of a photo included, without torch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor
from torch.nn import functional as F

from naflex_export.accuracy.photos import FEWEST
from naflex_export.accuracy.results import Neighbours
from naflex_export.batch import Batch

MOST = 256
"""Photos that are searched among: each runs through the reference, too."""

LEAST_RECALL = {"int8": 0.85, "fp8": 0.85}
"""Of neighbours that a candidate finds. docs/precision.md has what was measured."""


def neighbours_of(
    batches: Iterable[Batch],
    reference: Callable[[Batch], Tensor],
    candidate: Callable[[Batch], Tensor],
    baseline: Callable[[Batch], Tensor],
    least: float,
) -> Neighbours | None:
    """Return how many neighbours a candidate and the baseline find; None of too few photos.

    Args:
        batches: of photos.
        reference: returns the vectors [B, F] of a batch; so do the next two.
        candidate: what is judged.
        baseline: the eager model in the candidate's precision.
        least: the share that the candidate is to find.
    """
    found: tuple[list[Tensor], ...] = ([], [], [])
    for batch in batches:
        for vectors, run in zip(found, (reference, candidate, baseline), strict=True):
            vectors.append(run(batch).detach().cpu().double())
    if sum(len(vectors) for vectors in found[0]) < FEWEST:
        return None
    wanted, given, floor = (torch.cat(vectors) for vectors in found)
    count = max(1, min(10, len(wanted) // 4))
    return Neighbours(len(wanted), count, recall(given, wanted, count), recall(floor, wanted, count), least)


def recall(given: Tensor, wanted: Tensor, count: int) -> float:
    """Return the share of the nearest neighbours of each vector, by cosine, that another's vectors have too.

    Args:
        given: [B, F], of what is judged.
        wanted: [B, F], the reference's of the same photos.
        count: how many neighbours.
    """
    if not bool(given.isfinite().all()):
        return 0.0
    chosen = []
    for vectors in (given, wanted):
        unit = F.normalize(vectors, dim=1)
        chosen.append((unit @ unit.T).fill_diagonal_(-torch.inf).topk(count, dim=1).indices)
    same = (chosen[0].unsqueeze(2) == chosen[1].unsqueeze(1)).any(dim=2)
    return float(same.double().mean())
