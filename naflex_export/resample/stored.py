"""Resampling matrices of all lengths up to a limit, stored in a graph: weights that are read in place of computed.

The matrix of target length n has n rows, so those of 1 to n stand in one table of n (n + 1) / 2 rows: row `p` of length
`n` is row n (n - 1) / 2 + p of the table. They are made in float64 and rounded once.

Shape legend: B images, N tokens, S source samples, R rows of a table.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass

import torch
from torch import Tensor

from naflex_export.errors import RequestError
from naflex_export.grid import MATRICES
from naflex_export.resample.coordinates import grids_of
from naflex_export.resample.weights import Resampling, resampling_matrix

SHARE_OF_WEIGHTS = 0.03
"""Of a model's weights that its matrices may take where nobody asks for them: more would be felt in loading it."""

MOST_BYTES = 64 * 2**20
"""Of a graph's matrices where they are asked for: 1024 tokens and a source of 16 take 32 MiB, 2048 take 128."""


Axis = tuple[int, Resampling]
"""A source axis: its length, and the resize by which it is read."""


@dataclass(frozen=True)
class StoredMatrices:
    """The tables of a graph, made ahead of its trace.

    Attributes:
        longest: target length that they serve.
        first_rows: [longest + 1, 1] int64, the row at which each length begins.
        tables: [R, S] float32, by axis.
    """

    longest: int
    first_rows: Tensor
    tables: Mapping[Axis, Tensor]

    @classmethod
    def of(cls, axes: Iterable[Axis], longest: int, device: torch.device | None = None) -> StoredMatrices:
        """Return the tables of some axes.

        Args:
            axes: that a model reads.
            longest: target length that occurs.
            device: of the graph.
        """
        first_rows = torch.tensor([0, *(num_rows(length - 1) for length in range(1, longest + 1))], device=device)
        return cls(longest, first_rows.unsqueeze(-1), {axis: table_of(*axis, longest).to(device) for axis in axes})

    def weights(
        self, source: tuple[int, int], coord_BN2: Tensor, lengths_B2: Tensor | None, resampling: Resampling
    ) -> tuple[Tensor, Tensor]:
        """Return the weights with which each token reads the rows and the columns of a source grid.

        Args:
            source: height and width of the grid.
            coord_BN2: [B, N, 2] integer (y, x) of each token.
            lengths_B2: [B, 2] lengths to resize to, as in `resample_at`.
            resampling: the resize to reproduce.

        Returns:
            [B, N, H] and [B, N, W], both float32.
        """
        lengths_B2 = grids_of(coord_BN2) if lengths_B2 is None else lengths_B2
        read = torch.nn.functional.embedding
        # what no Runner lets pass must not read beyond the tables either
        first_B12 = read(lengths_B2.clamp(max=self.longest), self.first_rows).transpose(1, 2)
        row_BN2 = (first_B12 + coord_BN2).clamp(max=num_rows(self.longest) - 1)
        height, width = (self.tables[length, resampling] for length in source)
        if height is width:
            rows_BNH, columns_BNW = read(row_BN2, height).unbind(-2)
            return rows_BNH, columns_BNW
        return read(row_BN2[..., 0], height), read(row_BN2[..., 1], width)


_STORED: ContextVar[StoredMatrices | None] = ContextVar("stored matrices", default=None)


@contextlib.contextmanager
def reading(matrices: StoredMatrices | None) -> Iterator[None]:
    """Let graphs that are traced while the block runs read stored matrices.

    Args:
        matrices: to read; None to compute weights.
    """
    token = _STORED.set(matrices)
    try:
        yield
    finally:
        _STORED.reset(token)


def stored_matrices() -> StoredMatrices | None:
    """Return the tables of the graph that is traced, if it has any; what dynamo traces, a live model, has none.

    Dynamo of torch 2.11 cannot read a ContextVar either.
    """
    return None if torch.compiler.is_dynamo_compiling() else _STORED.get()


def num_rows(longest: int) -> int:
    """Return how many rows the matrices of all lengths up to this one have."""
    return longest * (longest + 1) // 2


def table_of(source: int, resampling: Resampling, longest: int) -> Tensor:
    """Return the matrices [R, S] float32 of every target length up to `longest`, one below the other.

    Args:
        source: number of source samples.
        resampling: the resize to reproduce.
        longest: target length.
    """
    matrices = (resampling_matrix(source, length, resampling) for length in range(1, longest + 1))
    return torch.cat(list(matrices))


def bytes_of(axes: Iterable[Axis], longest: int) -> int:
    """Return how large the tables of some axes are; equal ones share one.

    Args:
        axes: that a model reads.
        longest: target length.
    """
    return 4 * num_rows(longest) * sum(source for source, _ in set(axes))


def are_stored(asked: str | None, axes: Collection[Axis], longest: int, weights: int) -> bool:
    """Whether a graph holds resampling matrices, or computes weights. The one rule of which.

    Args:
        asked: one of `MATRICES`, or None for the rule: stored where they serve every grid that the buckets admit and
            take at most `SHARE_OF_WEIGHTS` of the model.
        axes: those that a model reads with a weight for every sample; none where it has no such grid.
        longest: side of a grid that a bucket admits, in patches.
        weights: size of the model's weights, in bytes.

    Raises:
        RequestError: stored matrices were asked for, and the model has no use for them, or they are too large.
    """
    if asked not in (None, *MATRICES):
        raise RequestError(f"matrices {asked!r} is not known: expected {' or '.join(MATRICES)}")
    if asked == "computed" or (asked is None and not axes):
        return False
    if not axes:
        raise RequestError(
            "matrices 'stored' has no use here: the model reads no learned grid with a weight for every cell (it has "
            "rotary embeddings alone, or a grid so large that few cells are read); expected 'computed'"
        )
    size = bytes_of(axes, longest)
    if asked is None:
        return size <= SHARE_OF_WEIGHTS * weights
    if size > MOST_BYTES:
        raise RequestError(
            f"matrices 'stored' of every side up to {longest} patches take {size / 2**20:.0f} MiB: expected at most "
            f"{MOST_BYTES / 2**20:.0f}; give buckets of fewer tokens, or take 'computed'"
        )
    return True
