"""The nearest of a set of vectors by cosine, and which of them another set of vectors finds.

Shape legend: N photos, C values of a vector, K nearest, R rows of a block.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Vectors = NDArray[np.float64]
Places = NDArray[np.intp]

TIE = 1e-6
"""Cosines that are this near are the same: copies of a photo may come in any order."""

BLOCK = 2**23
"""Cosines that are held at once, 64 MiB of them."""


@dataclass(frozen=True)
class Searches:
    """What three searches for the same photos found; a photo is never its own neighbour.

    Attributes:
        recall: [N] of the photos nearest by the old vectors, the share that the new vector finds among old ones.
        overlap: [N] the share that it finds among new ones.
        finds_itself: [N] whether the new vector's nearest old one is that of the same photo.
        old: [N, K] the nearest by the old vectors, the nearest first.
        new: [N, K] those that the new vector finds among old ones.
        old_cosines: [N, K] of `old`.
        new_cosines: [N, K] of `new`.
    """

    recall: Vectors
    overlap: Vectors
    finds_itself: NDArray[np.bool_]
    old: Places
    new: Places
    old_cosines: Vectors
    new_cosines: Vectors


def unit(vectors: NDArray[np.float32]) -> Vectors:
    """Return vectors [N, C] at length 1; one that is zero, or not finite, as zeros."""
    values = np.where(np.isfinite(vectors).all(axis=1, keepdims=True), vectors, 0).astype(np.float64)
    length = np.linalg.norm(values, axis=1, keepdims=True)
    return values / np.where(length == 0, 1, length)


def searched(old_NC: Vectors, new_NC: Vectors, k: int) -> Searches:
    """Return what old and new vectors find.

    A photo that is found counts where it is no further by the old vectors than the last of their k nearest.

    Args:
        old_NC: of length 1, the index that there is.
        new_NC: of length 1, of the same photos in the same order.
        k: how many nearest, fewer than there are photos.
    """
    rows = max(1, BLOCK // len(old_NC))
    parts = [_block(old_NC, new_NC, slice(start, start + rows), k) for start in range(0, len(old_NC), rows)]
    return Searches(*(np.concatenate(columns) for columns in zip(*parts, strict=True)))


def _block(old_NC: Vectors, new_NC: Vectors, block: slice, k: int) -> tuple[NDArray[np.generic], ...]:
    by_old_RN, by_new_RN = old_NC[block] @ old_NC.T, new_NC[block] @ old_NC.T
    anew_RN = new_NC[block] @ new_NC.T
    row = np.arange(len(by_old_RN))
    own = row + block.start
    is_there_R = new_NC[block].any(axis=1) & old_NC[block].any(axis=1)  # what has no direction finds nothing
    finds_itself = (by_new_RN[row, own] >= by_new_RN.max(axis=1) - TIE) & is_there_R
    for found in (by_old_RN, by_new_RN, anew_RN):
        found[row, own] = -np.inf
    old, new, anew = (_nearest(found, k) for found in (by_old_RN, by_new_RN, anew_RN))
    least = by_old_RN[row, old[:, -1]][:, None] - TIE
    recall, overlap = (
        np.where(is_there_R, (np.take_along_axis(by_old_RN, found, 1) >= least).mean(axis=1), 0.0)
        for found in (new, anew)
    )
    cosines = (np.take_along_axis(by_old_RN, old, 1), np.take_along_axis(by_new_RN, new, 1))
    return recall, overlap, finds_itself, old, new, *cosines


def _nearest(cosines_RN: Vectors, k: int) -> Places:
    """Return the places of the k largest of each row, the largest first; the earlier of two that are equal."""
    places = np.sort(np.argpartition(-cosines_RN, k - 1, axis=1)[:, :k], axis=1)
    order = np.argsort(-np.take_along_axis(cosines_RN, places, 1), axis=1, kind="stable")
    return np.take_along_axis(places, order, 1)
