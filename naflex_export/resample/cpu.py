"""A resized learned grid read on a CPU, which may look at the grids of a batch or of a pack.

A graph of `resample_at` has no loop, and pays for it with a weight for every cell at every token. Here each distinct
grid of a batch is resized once, in a few percent of the projection's work, forward and backward, and without a copy of
the batch: one axis after the other, or, where a cell reads few of the source, cell by cell. `resample/add.py` makes an
operator of it for batches.

Shape legend: B images, N tokens, n tokens that read the grid, T cells that a token reads, K of all tokens, H x W source
grid, h x w target grid, S cells of a grid, C channels, X any values. A pack is one line of tokens: there B is 1.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from naflex_export.errors import InputError
from naflex_export.resample.coordinates import grids_of
from naflex_export.resample.weights import Resampling, axis_samples, axis_weights, reads_few_cells

MOST_PATCHES = 2**24
"""In a grid, and on one side of it: float32 does not count them all above that, and a matrix takes gigabytes."""

LINES = 2**18
"""Most values of what lies between the two axes of a resize, so that it stays in a cache and asks for little memory."""

SPARSE = 32
"""Cells of the source for each that a token reads, from which on the few are read: a matmul reads cells it need not.

Measured with 1152 channels, 4 grids of 256 tokens and one thread, the better of many runs in ms, matmul and few cells:
64x64 bicubic 55 and 9 (gradient 106 and 16), 27x27 bilinear 16 and 2 (30 and 2), 16x16 bilinear 3.0 and 1.7 (13 and
2); but 16x16 bicubic, 16 cells for each, 3.7 and 3.2 (3.6 and 12).
"""


def grid_reader(
    source: tuple[int, int], coord_BN2: Tensor, lengths_B2: Tensor, resampling: Resampling, fill_padding: bool
) -> _SeparableReader | _CellReader:
    """Return what reads the source grid for a batch: arguments as of `add_resampled`."""
    return _reader(source, _targets(coord_BN2, lengths_B2, fill_padding), resampling, fill_padding)


def pack_reader(
    source: tuple[int, int],
    grids: Iterable[tuple[int, int]],
    merge: int,
    resampling: Resampling,
    *,
    cropped: bool = False,
) -> _SeparableReader | _CellReader:
    """Return what reads the source grid for a pack, [1, N, C], of images that follow each other and fill their grids.

    Args:
        source: height and width of the source grid.
        grids: of the images.
        merge: tokens go through one square of so many a side after the other; 1 for row by row.
        resampling: the resize to reproduce.
        cropped: the source is resized to the square of an image's longer side, of which its grid is the upper left.
    """
    targets: dict[tuple[int, int], _Target] = {}
    first = 0
    for grid in grids:
        lengths = (max(grid), max(grid)) if cropped else grid
        target = targets.setdefault(grid, _Target(grid, lengths, merge))
        target.images.append((0, first))
        first += target.size
    return _reader(source, list(targets.values()), resampling, fill_padding=False)


def _reader(
    source: tuple[int, int], targets: list[_Target], resampling: Resampling, fill_padding: bool
) -> _SeparableReader | _CellReader:
    """Return what reads the source for targets, in the cheaper way."""
    taps = (2 * resampling.radius) ** 2
    is_sparse = not resampling.antialias and source[0] * source[1] >= SPARSE * taps
    if is_sparse or reads_few_cells(source, resampling):
        return _CellReader(targets, fill_padding, *_cells_of_targets(targets, source, resampling))
    rows = _matrices({target.lengths[0] for target in targets}, source[0], resampling)
    columns = _matrices({target.lengths[1] for target in targets}, source[1], resampling)
    axes = [
        _Axes(rows[target.lengths[0]][: target.grid[0]], columns[target.lengths[1]][: target.grid[1]])
        for target in targets
    ]
    return _SeparableReader(targets, fill_padding, axes)


@dataclass
class _Target:
    """A target grid of a batch, and the images that have it.

    Attributes:
        grid: its height and width.
        lengths: what the source is resized to; the grid is its upper left corner.
        merge: tokens go through one square of so many a side after the other; 1 for row by row.
        images: where the images start whose tokens go in that order through the grid, all of it: line and token.
        others: further images, and the cell that each of their tokens reads; none where `merge` is not 1.
    """

    grid: tuple[int, int]
    lengths: tuple[int, int]
    merge: int = 1
    images: list[tuple[int, int]] = field(default_factory=list)
    others: list[tuple[int, Tensor]] = field(default_factory=list)

    @property
    def size(self) -> int:
        """Number of cells."""
        return self.grid[0] * self.grid[1]

    def tokens(self, x_BNX: Tensor, image: tuple[int, int]) -> Tensor:
        """Return the tokens [S, X] of an image, as they follow each other; a view."""
        line, first = image
        return x_BNX[line, first : first + self.size]

    def squares(self, tokens_SX: Tensor) -> Tensor:
        """Return those tokens as [rows of squares, rows in one, columns of squares, columns in one, X]; a view."""
        (h, w), side = self.grid, self.merge
        return tokens_SX.view(h // side, w // side, side, side, -1).transpose(1, 2)

    def in_turn(self, cells_SX: Tensor) -> Tensor:
        """Return what belongs to cells, row by row, in the order of the tokens."""
        (h, w), side = self.grid, self.merge
        return cells_SX.view(h // side, side, w // side, side, -1).transpose(1, 2).reshape(cells_SX.shape)


def _targets(coord_BN2: Tensor, lengths_B2: Tensor, fill_padding: bool) -> list[_Target]:
    """Return the distinct target grids of a batch."""
    grid_B2 = grids_of(coord_BN2)
    size_B1, token_N = grid_B2.prod(dim=1, keepdim=True), torch.arange(coord_BN2.shape[1])
    inside_BN = token_N < size_B1
    read_BN = torch.ones_like(inside_BN) if fill_padding else inside_BN
    cell_BN = coord_BN2[..., 0] * grid_B2[:, 1:] + coord_BN2[..., 1]
    in_order_BN = ~read_BN | (cell_BN == torch.where(inside_BN, token_N, 0))
    row_by_row_B = in_order_BN.all(dim=1) & (size_B1.squeeze(1) <= len(token_N))
    targets: dict[tuple[int, ...], _Target] = {}
    keys = zip(grid_B2.tolist(), lengths_B2.tolist(), row_by_row_B.tolist(), strict=True)
    for image, ((h, w), (row_length, column_length), row_by_row) in enumerate(keys):
        key = (h, w, row_length, column_length)
        if min(key) < 0 or max(key) > MOST_PATCHES or h * w > MOST_PATCHES:
            raise InputError(
                f"image {image} has a grid of {h}x{w} patches, resized from {row_length}x{column_length}: expected a "
                f"height and a width of at least 1, and {MOST_PATCHES} patches at most"
            )
        target = targets.setdefault(key, _Target((h, w), (row_length, column_length)))
        if row_by_row:
            target.images.append((image, 0))
        else:
            target.others.append((image, cell_BN[image, read_BN[image]]))
    return list(targets.values())


@dataclass(frozen=True)
class _SeparableReader:
    """Resizes the source once for each target, one axis after the other.

    Attributes:
        targets: of the batch.
        fill_padding: whether padding reads the first cell.
        axes: how each target is read.
    """

    targets: list[_Target]
    fill_padding: bool
    axes: list[_Axes]

    def add_to_(self, x_BNC: Tensor, grid_HWC: Tensor) -> None:
        """Add to each token the resized grid's value there."""
        direct = x_BNC.dtype is torch.float32 and x_BNC.is_contiguous()
        for target, axes in zip(self.targets, self.axes, strict=True):
            if direct and target.merge == 1 and (image := self._only_image(target)) is not None:
                axes.add_to_(target.tokens(x_BNC, image), grid_HWC)
                continue
            pos_SC = grid_HWC.new_empty(target.size, grid_HWC.shape[-1])
            axes.add_to_(pos_SC, grid_HWC, share=0)
            _add_to_images_(x_BNC, target, pos_SC.to(x_BNC.dtype), self.fill_padding)

    def gradient(self, grad_BNC: Tensor, source: tuple[int, int]) -> Tensor:
        """Return the source grid's gradient [H, W, C] float32, for that of `add_to_`'s result."""
        total_HWC = grad_BNC.new_zeros(*source, grad_BNC.shape[-1], dtype=torch.float32)
        for target, axes in zip(self.targets, self.axes, strict=True):
            axes.add_gradient_(total_HWC, self._gradient_of_target(grad_BNC, target))
        return total_HWC

    def _gradient_of_target(self, grad_BNC: Tensor, target: _Target) -> Tensor:
        """Return the gradient [S, C] float32 of a resized grid."""
        channels = grad_BNC.shape[-1]
        if (image := self._only_image(target)) is not None:
            return target.squares(target.tokens(grad_BNC, image)).float().reshape(target.size, channels)
        grad_SC = grad_BNC.new_zeros(target.size, channels, dtype=torch.float32)
        for line, first in target.images:
            squares = target.squares(target.tokens(grad_BNC, (line, first)))
            grad_SC.view(squares.shape).add_(squares)
            if self.fill_padding:
                grad_SC[0] += grad_BNC[line, first + target.size :].sum(dim=0, dtype=torch.float32)
        for line, cell_n in target.others:
            grad_SC.index_add_(0, cell_n, grad_BNC[line, : len(cell_n)].float())
        return grad_SC

    def _only_image(self, target: _Target) -> tuple[int, int] | None:
        """Return the image that alone has the target, each cell once; it needs no grid in between."""
        alone = len(target.images) == 1 and not target.others and not self.fill_padding
        return target.images[0] if alone else None


@dataclass(frozen=True)
class _Axes:
    """How a target is read: the resampling matrices of its rows and of its columns."""

    rows_hH: Tensor
    columns_wW: Tensor

    @property
    def rows_come_first(self) -> bool:
        """Whether to resize rows, then columns: the order with fewer multiplications."""
        (h, H), (w, W) = self.rows_hH.shape, self.columns_wW.shape
        return h * W * (H + w) <= w * H * (W + h)

    def add_to_(self, x_SC: Tensor, grid_HWC: Tensor, share: int = 1) -> None:
        """Add the resized grid to [h * w, C] float32, or with a `share` of 0 put it there."""
        (h, H), (w, W), C = self.rows_hH.shape, self.columns_wW.shape, grid_HWC.shape[-1]
        if self.rows_come_first:
            for part, rows_nH in _parts(self.rows_hH, W * C):
                lines_nWC = (rows_nH @ grid_HWC.view(H, -1)).view(-1, W, C)
                x_SC.view(h, w, -1)[part].baddbmm_(self.columns_wW.expand(len(rows_nH), w, W), lines_nWC, beta=share)
        else:
            for part, columns_nW in _parts(self.columns_wW, H * C):
                lines_HnC = torch.bmm(columns_nW.expand(H, *columns_nW.shape), grid_HWC)
                x_SC.view(h, -1)[:, part.start * C : part.stop * C].addmm_(
                    self.rows_hH, lines_HnC.view(H, -1), beta=share
                )

    def add_gradient_(self, total_HWC: Tensor, grad_SC: Tensor) -> None:
        """Add the source grid's gradient, for that [h * w, C] of the resized one."""
        (h, H), (w, W), C = self.rows_hH.shape, self.columns_wW.shape, total_HWC.shape[-1]
        if self.rows_come_first:
            for part, rows_nH in _parts(self.rows_hH, W * C):
                grad_nwC = grad_SC.view(h, w, -1)[part]
                lines_nWC = torch.bmm(self.columns_wW.mT.expand(len(rows_nH), W, w), grad_nwC)
                total_HWC.view(H, -1).addmm_(rows_nH.mT, lines_nWC.view(len(rows_nH), -1))
        else:
            for part, columns_nW in _parts(self.columns_wW, H * C):
                lines_HnC = (self.rows_hH.mT @ grad_SC.view(h, -1)[:, part.start * C : part.stop * C]).view(H, -1, C)
                total_HWC.baddbmm_(columns_nW.mT.expand(H, *columns_nW.mT.shape), lines_HnC)


def _parts(matrix: Tensor, values: int) -> Iterator[tuple[slice, Tensor]]:
    """Yield the rows of a matrix in parts, and which they are: as many as `LINES` holds, at so many values for each."""
    size = max(1, LINES // values)
    for start in range(0, len(matrix), size):
        stop = min(start + size, len(matrix))
        yield slice(start, stop), matrix[start:stop]


def _matrices(lengths: Iterable[int], source: int, resampling: Resampling) -> dict[int, Tensor]:
    """Return the resampling matrix [n, S] of each target length n, all made at once."""
    distinct, position, length = _positions(lengths)
    return dict(zip(distinct, torch.split(axis_weights(position, length, source, resampling), distinct), strict=True))


def _positions(lengths: Iterable[int]) -> tuple[list[int], Tensor, Tensor]:
    """Return the lengths in order, all their positions, one length after the other, and the length of each."""
    distinct = sorted(lengths)
    position = torch.cat([torch.arange(length, dtype=torch.float32) for length in distinct])
    return distinct, position, torch.tensor(distinct).repeat_interleave(torch.tensor(distinct)).float()


@dataclass(frozen=True)
class _CellReader:
    """Reads at each cell of a target the few source cells that matter to it.

    Attributes:
        targets: of the batch.
        fill_padding: whether padding reads the first cell.
        source_ST: for the cells of all targets, one after the other, each in the order of its tokens: what they read of
            the source, row by row.
        weight_ST: the weights, float32.
    """

    targets: list[_Target]
    fill_padding: bool
    source_ST: Tensor
    weight_ST: Tensor

    def add_to_(self, x_BNC: Tensor, grid_HWC: Tensor) -> None:
        """Add to each token the resized grid's value there."""
        for target, first in self._targets():
            cells = slice(first, first + target.size)
            pos_SC = _bags(self.source_ST[cells], grid_HWC.flatten(0, 1), self.weight_ST[cells]).to(x_BNC.dtype)
            for image in target.images:
                target.tokens(x_BNC, image).add_(pos_SC)
            _add_to_others_(x_BNC, target, pos_SC, self.fill_padding)

    def gradient(self, grad_BNC: Tensor, source: tuple[int, int]) -> Tensor:
        """Return the source grid's gradient [H, W, C] float32: at each cell the sum over the tokens that read it."""
        token_n, cell_n = self._reads(grad_BNC.shape[1])
        source_K, order_K = self.source_ST[cell_n].flatten().sort()
        token_K = token_n.int().repeat_interleave(self.source_ST.shape[1])[order_K]
        weight_K = self.weight_ST[cell_n].flatten()[order_K]
        starts_S = torch.searchsorted(source_K, torch.arange(source[0] * source[1], dtype=torch.int32), out_int32=True)
        return _bags(token_K, grad_BNC.flatten(0, 1).float(), weight_K, starts_S).view(*source, -1)

    def _reads(self, tokens: int) -> tuple[Tensor, Tensor]:
        """Return all tokens that read the grid, and for each the cell among those of all targets."""
        token_n, cell_n = [], []
        for target, first in self._targets():
            cells = _cells_in_turn(target, tokens, self.fill_padding)
            reads = [(line * tokens + start, cells) for line, start in target.images]
            reads += [(line * tokens, cells) for line, cells in target.others]
            for start, read in reads:
                token_n.append(start + torch.arange(len(read)))
                cell_n.append(first + read)
        return torch.cat(token_n), torch.cat(cell_n)

    def _targets(self) -> Iterator[tuple[_Target, int]]:
        """Yield each target, and the number of its first cell among those of all targets."""
        first = 0
        for target in self.targets:
            yield target, first
            first += target.size


def _cells_in_turn(target: _Target, tokens: int, fill_padding: bool) -> Tensor:
    """Return the cells that the tokens of an image read which goes through the target in its order."""
    cell_n = torch.arange(target.size)
    return torch.nn.functional.pad(cell_n, (0, tokens - target.size)) if fill_padding else cell_n


def _add_to_images_(x_BNC: Tensor, target: _Target, pos_SC: Tensor, fill_padding: bool) -> None:
    """Add a target's values [S, C], row by row and in the dtype of the tokens, to the images that have it."""
    for image in target.images:
        squares = target.squares(target.tokens(x_BNC, image))
        squares.add_(pos_SC.view(squares.shape))
    _add_to_others_(x_BNC, target, pos_SC, fill_padding)


def _add_to_others_(x_BNC: Tensor, target: _Target, pos_SC: Tensor, fill_padding: bool) -> None:
    """Add them to the padding of those images, and to images whose tokens have another order."""
    for line, first in target.images if fill_padding else ():
        x_BNC[line, first + target.size :] += pos_SC[0]
    for line, cell_n in target.others:
        x_BNC[line, : len(cell_n)] += pos_SC[cell_n]


def _cells_of_targets(targets: list[_Target], source: tuple[int, int], resampling: Resampling) -> tuple[Tensor, Tensor]:
    """Return what the cells of all targets read of the source, and the weights, both [S, T]."""
    rows = _samples({target.lengths[0] for target in targets}, source[0], resampling)
    columns = _samples({target.lengths[1] for target in targets}, source[1], resampling)
    source_ST, weight_ST = [], []
    for target in targets:
        h, w = target.grid
        (row_hT, of_row_hT), (column_wT, of_column_wT) = rows[target.lengths[0]], columns[target.lengths[1]]
        cell_hwTT = row_hT[:h, None, :, None] * source[1] + column_wT[None, :w, None, :]
        weight_hwTT = of_row_hT[:h, None, :, None] * of_column_wT[None, :w, None, :]
        source_ST.append(target.in_turn(cell_hwTT.view(h * w, -1)))
        weight_ST.append(target.in_turn(weight_hwTT.view(h * w, -1)))
    return torch.cat(source_ST), torch.cat(weight_ST)


def _samples(lengths: Iterable[int], source: int, resampling: Resampling) -> dict[int, tuple[Tensor, Tensor]]:
    """Return the few samples [n, T] int32 that each target length n reads, and their weights, all made at once."""
    distinct, position, length = _positions(lengths)
    sample, weight = axis_samples(position, length, source, resampling)
    parts = zip(torch.split(sample.int(), distinct), torch.split(weight, distinct), strict=True)
    return dict(zip(distinct, parts, strict=True))


def _bags(index: Tensor, rows: Tensor, weight: Tensor, starts: Tensor | None = None) -> Tensor:
    """Return the weighted sums of rows: of each line of a 2-D index, or of each run of a 1-D one."""
    return torch.nn.functional.embedding_bag(index, rows, starts, mode="sum", per_sample_weights=weight)
