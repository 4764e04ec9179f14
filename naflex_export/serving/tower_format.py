"""Inputs of a multimodal model's vision tower: patches of all images, one image after the other, and their grids.

A tower merges a square of patches to one token, and its sides are multiples of that square's. A batch of such a tower
holds tokens, the squares, in the place of patches: a `Grid` counts tokens, and a token's values are those of all its
patches. `positions`, 0, 1, 2 and so on, are as many as the image of most tokens has, as in a pack.

Some towers give a token at the start of each image, at the end of each row of tokens and at the end of the image. How
many rows there are is no shape of the patches, so `rows`, 0, 1, 2 and so on, are as many as all images have together.

Shape legend: B images, N tokens of the longest or that a batch is padded to, U tokens of all images, M patches of a
token, T = M * U patches, R rows of tokens of all images, D values of a patch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from naflex_export.errors import InputError
from naflex_export.grid import MOST_IN_BATCH, MOST_TOKENS, Bucket, Grid
from naflex_export.serving.input_formats import InputFormat, Values, values_of
from naflex_export.serving.packed_format import check_packed_sizes
from naflex_export.serving.signature import OpenSize

if TYPE_CHECKING:
    from torch import Tensor

    from naflex_export.batch import Batch
    from naflex_export.serving.input_formats import Inputs

PATCHES = ("hidden_states", "pixel_values")
"""What towers call their patches."""

ROWS = "rows"
"""The input, and its dimension, of towers that mark the ends of rows."""

GRIDS = {"grid_thw": "frames and sides", "image_grid_hw": "axes"}
"""What towers call the grids of images, and what a grid is: the sides come last."""

POSITIONS = "positions"

MOST_MERGED = 16
"""Patches along a side of a token: none has more than a few."""


class TowerFormat(InputFormat):
    """A tower's own: patches [T, ...], `grid_thw` [B, 3] int64 (frames, height, width in patches), `positions` [N].

    A tower that knows no frames has `image_grid_hw` [B, 2] in place of the grids.

    Args:
        patches: the name of the patches.
        patch_shape: of a patch, such as (D,) or (channels, height, width).
        merge: patches along a side of a token.
        by_rows: patches go row by row through an image; without, through one token after the other.
        in_batch: the patches are [1, T, ...].
        marks_rows: a token is given for the start and end of each image and the end of each of its rows; there is an
            input `rows` then.
        grids: the name of the grids.
    """

    valid = ""
    is_packed = True
    masks = False

    def __init__(
        self,
        patches: str,
        patch_shape: tuple[int, ...],
        merge: int = 1,
        *,
        by_rows: bool = False,
        in_batch: bool = False,
        marks_rows: bool = False,
        grids: str = "grid_thw",
    ) -> None:
        self.marks_rows, rows = marks_rows, (ROWS,) if marks_rows else ()
        self.names = (patches, grids, POSITIONS, *rows)
        self.merge, self.by_rows, self.in_batch, self.patch_shape = merge, by_rows, in_batch, patch_shape
        count = f"{merge * merge}*tokens" if merge > 1 else "tokens"
        values = ("values",) if len(patch_shape) == 1 else ("channels", "height", "width")
        of_patches = (*(("one",) if in_batch else ()), count, *values)
        self.dims = (of_patches, ("images", GRIDS[grids]), ("longest",), *((row,) for row in rows))
        self.opened = (count, "images", "longest", *rows)

    @classmethod
    def of_inputs(cls, names: Sequence[str], shape: Sequence[int | str]) -> TowerFormat | None:
        """Return the format of inputs of these names, from the shape of the patches; None where it is no tower's.

        Args:
            names: of the inputs.
            shape: of the first of them.
        """
        if names[0] not in PATCHES or len(names) < 3 or names[1] not in GRIDS:
            return None
        if tuple(names[2:]) not in ((POSITIONS,), (POSITIONS, ROWS)):
            return None
        axis = next((axis for axis, dim in enumerate(shape) if isinstance(dim, str)), 0)
        factor = OpenSize.of(str(shape[axis])).factor if shape else 1
        merge = min(math.isqrt(factor), MOST_MERGED)
        sides = tuple(size for size in shape[axis + 1 :] if isinstance(size, int))
        return cls(names[0], sides or (1,), merge, in_batch=axis == 1, marks_rows=ROWS in names, grids=names[1])

    @property
    def grid_values(self) -> int:
        """How many values a grid has: its sides, and frames ahead of them where there are any."""
        return 3 if self.names[1] == "grid_thw" else 2

    def token_width(self, shape: Sequence[int | str]) -> int:
        return self.merge**2 * math.prod(self.patch_shape)

    def patches_along(self, tokens: int) -> int:
        return self.merge * tokens

    def arrange(self, batch: Batch) -> Inputs:
        import torch

        device, side = batch.patches.device, self.merge
        parts = []
        for values, valid, (height, width) in zip(batch.patches, batch.patch_valid, batch.grids, strict=True):
            token_U = values[valid]
            if self.by_rows:
                blocks = token_U.reshape(height, width, side, side, -1).transpose(1, 2)
                token_U = blocks.reshape(height * width, -1)
            parts.append(token_U.reshape(-1, *self.patch_shape))
        patches = torch.cat(parts)
        grids = [[1, height * side, width * side][-self.grid_values :] for height, width in batch.grids]
        counts = [max(grid.tokens for grid in batch.grids)]
        if self.marks_rows:
            counts.append(sum(grid.height for grid in batch.grids))
        return (
            patches.unsqueeze(0) if self.in_batch else patches,
            torch.tensor(grids, dtype=torch.int64, device=device),
            *(torch.arange(count, device=device) for count in counts),
        )

    def by_token(self, rows: Tensor, grids: Sequence[Grid]) -> Tensor:
        """Return what a tower gave with one row for each token, [U, ...]; as it is where it has another form.

        Patches that a tower leaves apart are put together, and what marks the start, the end and the rows of an image
        is put beside its first token, its last one and the last of each row.

        Args:
            rows: what was given.
            grids: of the images, in tokens.
        """
        import torch

        tokens = sum(grid.tokens for grid in grids)
        if len(rows) in (tokens, self.merge**2 * tokens):
            return rows.reshape(tokens, -1)
        lengths = [grid.tokens + grid.height + 2 for grid in grids]
        if not self.marks_rows or rows.ndim != 2 or len(rows) != sum(lengths):
            return rows
        found = []
        for (height, width), image in zip(grids, torch.split(rows, lengths), strict=True):
            body = image[1:-1].reshape(height, width + 1, -1)
            marks = body.new_zeros(height, width, 3, body.shape[-1])
            marks[:, -1, 0], marks[0, 0, 1], marks[-1, -1, 2] = body[:, -1], image[0], image[-1]
            found.append(torch.cat([body[:, :-1], marks.flatten(2)], dim=-1).flatten(0, 1))
        return torch.cat(found)

    def completed(self, inputs: tuple[Any, ...], named: Mapping[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return what was given, with what follows from the grids; this waits for them on a GPU."""
        mapping = inputs[0] if len(inputs) == 1 and isinstance(inputs[0], Mapping) else None
        given = dict(mapping or zip(self.names, inputs, strict=False)) | dict(named)
        grids: Any = given.get(self.names[1])
        if grids is not None and not hasattr(grids, "shape"):
            raise InputError(f"{self.names[1]} is a {type(grids).__name__}: expected a tensor or an array")
        left_out = [name for name in self.names[2:] if name not in given]
        if not left_out or len(inputs) > len(self.names) or grids is None:
            return inputs, dict(named)
        if len(grids.shape) != 2 or grids.shape[1] != self.grid_values:
            raise InputError(
                f"{self.names[1]} has shape {list(grids.shape)}: expected [images, {self.grid_values}]; "
                f"{' and '.join(left_out)} were left out, and follow from it"
            )
        follow = {name: self.positions_of(grids) if name != ROWS else self.rows_of(grids) for name in left_out}
        if mapping is not None:
            return ({**mapping, **follow},), dict(named)
        return inputs, {**named, **follow}

    def positions_of(self, grids: Any) -> Any:
        """Return 0, 1, 2 and so on, as many as the largest image has tokens, of the kind that the grids are.

        Args:
            grids: of the images, a tensor or an array.
        """
        values = values_of(grids)
        sides = np.clip(values[:, -2:], 1, 2**15) if values.size else np.ones((1, 2), np.int64)
        longest = int(sides.prod(axis=1).max()) // self.merge**2
        return _numbers(min(max(1, longest), MOST_TOKENS), grids)

    def rows_of(self, grids: Any) -> Any:
        """Return 0, 1, 2 and so on, as many as all images have rows of tokens, of the kind that the grids are.

        Args:
            grids: of the images, a tensor or an array.
        """
        heights = np.clip(values_of(grids)[:, -2], 1, 2**15)
        return _numbers(min(max(1, int(heights.sum()) // self.merge), MOST_IN_BATCH), grids)

    def check_sizes(self, sizes: Mapping[str, int], buckets: Sequence[Bucket]) -> None:
        check_packed_sizes(sizes, buckets)

    def check(self, inputs: Sequence[Any], most: int) -> None:
        self.check_tokens(inputs)

    def check_tokens(self, inputs: Sequence[Any]) -> None:
        patches = inputs[0].shape[1] if self.in_batch else inputs[0].shape[0]
        self.check_live(patches, *inputs[1:])

    def check_grid_shape(self, grid_thw: Any) -> None:
        """Check that there are grids, before their values are looked at.

        Args:
            grid_thw: as a tower that is no artifact is given it.

        Raises:
            InputError: there are none.
        """
        if "float" in str(grid_thw.dtype) or "bool" in str(grid_thw.dtype):
            raise InputError(f"{self.names[1]} is {str(grid_thw.dtype).removeprefix('torch.')}: expected int64")
        if grid_thw.ndim != 2 or grid_thw.shape[1] != self.grid_values or not grid_thw.shape[0]:
            frames = "frames, " if self.grid_values == 3 else ""
            raise InputError(
                f"{self.names[1]} has shape {list(grid_thw.shape)}: expected [images, {self.grid_values}], "
                f"{frames}height and width of each"
            )

    def check_live(self, patches: int, grid_thw: Any, *follow: Any) -> None:
        """Check the values of grids, and of what follows from them.

        Args:
            patches: of all images together.
            grid_thw: [B, 3].
            follow: `positions`, and `rows` where they are given.

        Raises:
            InputError: they are wrong; the message says which, and why.
        """
        grid_B3, positions_N, *rows = map(values_of, (grid_thw, *follow))
        self.check_grids(grid_B3, patches)
        longest = int(grid_B3[:, -2:].prod(axis=1).max()) // self.merge**2
        if len(positions_N) < longest or (positions_N != np.arange(len(positions_N))).any():
            raise InputError(
                f"positions are {len(positions_N)} values, {positions_N.tolist()[:4]} and so on: expected 0, 1, 2 and "
                f"so on, {longest} of them for the largest image; they may be left out"
            )
        if rows:
            self.check_rows(grid_B3, rows[0])

    def check_rows(self, grid_thw: Any, rows: Any) -> None:
        """Check that there are as many rows as the images have.

        Args:
            grid_thw: [B, 3].
            rows: [R].

        Raises:
            InputError: there are not.
        """
        rows_R, count = values_of(rows), int(values_of(grid_thw)[:, -2].sum()) // self.merge
        if len(rows_R) != count or (rows_R != np.arange(count)).any():
            raise InputError(
                f"rows are {len(rows_R)} values, {rows_R.tolist()[:4]} and so on: expected 0, 1, 2 and so on, {count} "
                "of them for the rows of tokens of all images; they may be left out"
            )

    def check_grids(self, grid_B3: Values, patches: int) -> None:
        """Check that grids are those of so many patches.

        Args:
            grid_B3: `grid_thw`.
            patches: of all images together.

        Raises:
            InputError: they are not; the message says which grid, and why.
        """
        name, sides_B2 = self.names[1], grid_B3[:, -2:]
        wrong_B = grid_B3[:, 0] != 1
        if self.grid_values == 3 and wrong_B.any():
            image = int(wrong_B.argmax())
            raise InputError(
                f"{name} of image {image} is {grid_B3[image].tolist()}, of {int(grid_B3[image, 0])} frames: expected "
                "1; of a video, no tower is exported"
            )
        wrong_B = (sides_B2 < 1).any(axis=1)
        if wrong_B.any():
            image = int(wrong_B.argmax())
            raise InputError(
                f"{name} of image {image} is {grid_B3[image].tolist()}, which is empty: expected a height and a "
                "width of at least 1, in patches, or a call without that image"
            )
        wrong_B = (sides_B2 % self.merge).any(axis=1)
        if wrong_B.any():
            image = int(wrong_B.argmax())
            height, width = sides_B2[image].tolist()
            raise InputError(
                f"{name} of image {image} is {height}x{width} patches, and the model merges {self.merge}x{self.merge}"
                f" of them to a token: expected multiples of {self.merge}"
            )
        # sides are looked at too: the product of two enormous ones wraps around to anything
        wrong_B = (sides_B2 > patches).any(axis=1)
        total = 0 if wrong_B.any() else int(sides_B2.prod(axis=1).sum())
        if total != patches:
            sides = ", ".join(f"{height}x{width}" for height, width in sides_B2[:8].tolist())
            raise InputError(
                f"{name} has images of {sides}{' and so on' if len(sides_B2) > 8 else ''}, {total or 'far more'} "
                f"patches together, and {self.names[0]} has {patches}: expected the same number"
            )

    def without_padding(self, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return inputs


def _numbers(count: int, like: Any) -> Any:
    """Return 0, 1, 2 and so on, int64, of the kind and on the device of a tensor or an array."""
    numbers = np.arange(count, dtype=np.int64)
    if isinstance(like, np.ndarray):
        return numbers
    import torch

    return torch.from_numpy(numbers).to(like.device)
