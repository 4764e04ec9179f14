"""Packed inputs: the images of a batch one after the other, with no padding between them.

`offsets` say where each image's tokens start and where the last one's end, as the cumulative sequence lengths of
flash-attention do. `positions`, 0, 1, 2 and so on, hold nothing that is not known: there are as many as the longest
image has tokens, so that a graph knows that as a shape, and nothing waits for the values of `offsets`.

Shape legend: B images, N tokens of the longest or that a batch is padded to, T tokens of all images together, D values
in a flattened patch, P prefix tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from naflex_export.errors import InputError
from naflex_export.grid import MOST_TOKENS, Bucket, Grid
from naflex_export.serving.input_formats import InputFormat, Values, can_be_checked, values_of

if TYPE_CHECKING:
    from torch import Tensor

    from naflex_export.batch import Batch
    from naflex_export.serving.input_formats import Inputs


class PackedFormat(InputFormat):
    """Packed: `patches` [T, D], `patch_coord` [T, 2], `grids` [B, 2], `offsets` [B + 1] and `positions` [N].

    All but the patches are int64: coordinates as (y, x), grids as (height, width), offsets from 0 to T.
    """

    names = ("patches", "patch_coord", "grids", "offsets", "positions")
    valid = ""
    dims = (("tokens", "values"), ("tokens", "axes"), ("images", "axes"), ("images + 1",), ("longest",))
    opened = ("tokens", "images", "images + 1", "longest")
    is_packed = True

    def arrange(self, batch: Batch) -> Inputs:
        import torch

        lengths_B = batch.patch_valid.sum(dim=1)
        grid_B2 = torch.tensor(batch.grids, dtype=torch.int64, device=lengths_B.device)
        valid_BN = batch.patch_valid
        longest = max(1, int(lengths_B.max()))
        return (
            batch.patches[valid_BN],
            batch.patch_coord[valid_BN],
            grid_B2,
            offsets_of(lengths_B),
            torch.arange(longest, device=lengths_B.device),
        )

    def of_images(self, images: Sequence[tuple[Values, Grid]], dtype: Any) -> dict[str, Values]:
        """Return images as one pack, by name.

        Args:
            images: patches [n, D] and grid of each.
            dtype: numpy's, of the patches.
        """
        lengths_B = [grid.tokens for _, grid in images]
        offsets = np.concatenate([[0], np.cumsum(lengths_B)]).astype(np.int64)
        given = (
            np.concatenate([patches for patches, _ in images]).astype(dtype, copy=False),
            np.concatenate([np.indices(grid).reshape(2, -1).T for _, grid in images]).astype(np.int64, copy=False),
            np.array([grid for _, grid in images], np.int64),
            offsets,
            positions_of(offsets),
        )
        return dict(zip(self.names, given, strict=True))

    def completed(self, inputs: tuple[Any, ...], named: Mapping[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return what was given, with the `positions` that follow from the offsets; this waits for them on a GPU."""
        if len(inputs) == 1 and isinstance(inputs[0], Mapping):
            mapping = inputs[0]
            if mapping.get("positions") is not None or "positions" in named or not _is_held(mapping.get("offsets")):
                return inputs, dict(named)
            return ({**mapping, "positions": positions_of(mapping["offsets"])},), dict(named)
        given = dict(zip(self.names, inputs, strict=False)) | dict(named)
        if len(inputs) > 4 or "positions" in given or not _is_held(given.get("offsets")):
            return inputs, dict(named)
        return inputs, {**named, "positions": positions_of(given["offsets"])}

    def of_call(self, given: Mapping[str, Any], *, whole: bool = True) -> tuple[Any, ...]:
        """Return what a live model is given as a pack, in order and checked where that waits for no device.

        Args:
            given: by name; `positions` may be left out.
            whole: refuse images that lack tokens of their grids, or have them in another order.

        Raises:
            InputError: it is no pack.
        """
        (named,), _ = self.completed((dict(given),), {})
        missing = [name for name in self.names if named.get(name) is None]
        if missing:
            raise InputError(f"{missing[0]} is missing of the pack: expected {', '.join(self.names)}, as nx.pack gives")
        inputs = tuple(named[name] for name in self.names)
        for name, array in zip(self.names, inputs, strict=True):
            if isinstance(array, np.ndarray):
                raise InputError(f"{name} is a ndarray: expected a torch.Tensor, as torch.from_numpy makes")
        if can_be_checked(inputs):
            self.check_shapes(inputs)
            self.check_images(inputs)
            (self.check_order if whole else self.check_places)(inputs)
        return inputs

    def check_sizes(self, sizes: Mapping[str, int], buckets: Sequence[Bucket]) -> None:
        check_packed_sizes(sizes, buckets)

    def check(self, inputs: Sequence[Any], most: int) -> None:
        self.check_tokens(inputs)

    def check_images(self, inputs: Sequence[Any]) -> None:
        """Check that offsets, positions, grids and coordinates can be those of images, which may lack tokens.

        Raises:
            InputError: they cannot; the message says which.
        """
        tokens = len(inputs[0])
        coord_T2, grid_B2, offsets, positions_N = map(values_of, inputs[1:])
        lengths_B = _lengths_of(offsets, tokens)
        longest = int(lengths_B.max())
        if len(positions_N) < longest or (positions_N != np.arange(len(positions_N))).any():
            raise InputError(
                f"positions are {len(positions_N)} values, {positions_N.tolist()[:4]} and so on: expected 0, 1, 2 and "
                f"so on, {longest} of them for the longest image; they may be left out"
            )
        if (coord_T2 < 0).any():
            token = int((coord_T2 < 0).any(axis=1).argmax())
            raise InputError(
                f"patch_coord of token {token} is {coord_T2[token].tolist()}, of image "
                f"{int(np.searchsorted(offsets, token, side='right')) - 1}: expected (y, x) from (0, 0), in patches"
            )
        if (grid_B2 < 1).any():
            image = int((grid_B2 < 1).any(axis=1).argmax())
            raise InputError(
                f"grids of image {image} is {grid_B2[image].tolist()}: expected a height and a width of at least 1, in "
                "patches"
            )

    def check_places(self, inputs: Sequence[Any]) -> None:
        """Check that every token of images, which may lack some, lies in its image's grid.

        Raises:
            InputError: one does not; the message says which.
        """
        coord_T2, grid_B2, offsets, _ = map(values_of, inputs[1:])
        image_T = np.repeat(np.arange(len(grid_B2)), np.diff(offsets))
        outside_T = (coord_T2 >= grid_B2[image_T]).any(axis=1)
        if outside_T.any():
            token = int(outside_T.argmax())
            image = int(image_T[token])
            height, width = grid_B2[image].tolist()
            raise InputError(
                f"patch_coord of token {token} is at {coord_T2[token].tolist()}, outside the grid of image {image}, "
                f"{height}x{width}: expected (y, x) within it; a grid is height and width"
            )

    def check_tokens(self, inputs: Sequence[Any]) -> None:
        self.check_images(inputs)
        self.check_order(inputs)

    def check_order(self, inputs: Sequence[Any]) -> None:
        """Check that the tokens of each image fill its grid, row by row.

        Raises:
            InputError: they do not; the message says where.
        """
        tokens = len(inputs[0])
        coord_T2, grid_B2, offsets, _ = map(values_of, inputs[1:])
        lengths_B = np.diff(offsets)
        # sides are looked at too: the product of two enormous ones wraps around to anything
        wrong_B = (grid_B2 > tokens).any(axis=1) | (grid_B2[:, 0] * grid_B2[:, 1] != lengths_B)
        if wrong_B.any():
            image = int(wrong_B.argmax())
            height, width = grid_B2[image].tolist()
            raise InputError(
                f"grids of image {image} is {height}x{width} = {height * width} patches, and its offsets give it "
                f"{int(lengths_B[image])} tokens: expected the same number"
            )
        image_T = np.repeat(np.arange(len(lengths_B)), lengths_B)
        token_T = np.arange(tokens) - offsets[image_T]
        width_T = grid_B2[image_T, 1]
        expected_T2 = np.stack([token_T // width_T, token_T % width_T], axis=-1)
        wrong_T = (coord_T2 != expected_T2).any(axis=1)
        if wrong_T.any():
            token = int(wrong_T.argmax())
            raise InputError(
                f"patch_coord of image {int(image_T[token])} does not go row by row through its grid, as (y, x) from "
                f"(0, 0): token {token} is at {coord_T2[token].tolist()}, expected {expected_T2[token].tolist()}"
            )

    def without_padding(self, inputs: Inputs) -> Inputs:
        return inputs


PACKED = PackedFormat()


def check_packed_sizes(sizes: Mapping[str, int], buckets: Sequence[Bucket]) -> None:
    """Check that a bucket takes a pack of these sizes, by the names of their dimensions.

    Args:
        sizes: of the inputs.
        buckets: of the artifact.

    Raises:
        InputError: none does.
    """
    served = ", ".join(map(str, buckets))
    images, tokens, longest = sizes["images"], sizes["tokens"], sizes["longest"]
    if not any(longest <= bucket.packed_dims["longest"].largest for bucket in buckets):
        raise InputError(
            f"an image of {longest} tokens is more than any bucket takes ({served}): export again with a larger "
            "--bucket, or resize the image to fewer patches"
        )
    if not any(bucket.takes(sizes) for bucket in buckets):
        most = ", ".join(f"{b.packed_dims['tokens'].largest} tokens of {b.batch[2]} images" for b in buckets)
        raise InputError(
            f"a pack of {images} images with {tokens} tokens, the longest {longest}, fits no bucket ({served}, as "
            f"tokens:min,opt,max; at most {most}): pack fewer images, or export again with another --bucket"
        )


def positions_of(offsets: Any) -> Any:
    """Return 0, 1, 2 and so on, as many as the longest image has tokens, of the kind that the offsets are.

    This waits for the offsets where they are on a GPU.

    Args:
        offsets: [B + 1], a tensor or an array.
    """
    values = values_of(offsets)
    # what is no ascending line of offsets is refused by what follows, whatever is found here
    longest = min(int(np.diff(values.ravel()).max()), MOST_TOKENS) if values.size > 1 else 1
    positions = np.arange(max(1, longest), dtype=np.int64)
    if isinstance(offsets, np.ndarray):
        return positions
    import torch

    return torch.from_numpy(positions).to(offsets.device)


def _is_held(offsets: Any) -> bool:
    """Whether there are offsets to find positions by.

    Raises:
        InputError: they are no tensor, and no array.
    """
    if offsets is not None and not hasattr(offsets, "shape"):
        raise InputError(f"offsets is a {type(offsets).__name__}: expected a tensor or an array")
    return offsets is not None


def offsets_of(lengths_B: Tensor) -> Tensor:
    """Return where each image's tokens start, and where the last one's end [B + 1] int64."""
    import torch

    return torch.nn.functional.pad(lengths_B.long().cumsum(dim=0), (1, 0))


def _lengths_of(offsets: Values, tokens: int) -> Values:
    """Return the tokens of each image.

    Raises:
        InputError: the offsets do not ascend from 0 to the number of tokens, or an image has none.
    """
    if int(offsets[0]) != 0:
        raise InputError(f"offsets start at {int(offsets[0])}: expected 0, where the first image's tokens start")
    lengths_B: Values = np.diff(offsets)
    if (lengths_B < 0).any():
        image = int((lengths_B < 0).argmax())
        raise InputError(
            f"offsets do not ascend: image {image} starts at {int(offsets[image])} and ends at "
            f"{int(offsets[image + 1])}; expected the tokens of one image after those of the other"
        )
    if (lengths_B == 0).any():
        image = int((lengths_B == 0).argmax())
        raise InputError(f"offsets give image {image} no token: expected at least one, or a pack without that image")
    if int(offsets[-1]) != tokens:
        raise InputError(f"offsets end at {int(offsets[-1])}, and there are {tokens} patches: expected the same number")
    return lengths_B
