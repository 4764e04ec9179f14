"""How a model takes a batch: named tensors, of which every library has its own for a padded one.

An input format knows the names of the tensors and of their dimensions, and what makes their values right.
It knows no model, so that an artifact is checked and run without the library its model came from. The names of the
inputs, which every manifest records, say which format it is.

Values are looked at in numpy, wherever they are: so torch's tensors and numpy's arrays meet the same checks, and what
only has arrays needs no torch.

Shape legend: B images, N tokens, D values in a flattened patch.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from naflex_export.errors import InputError
from naflex_export.grid import Bucket, Grid
from naflex_export.serving.signature import OpenSize, check_sizes

if TYPE_CHECKING:
    from torch import Tensor

    from naflex_export.batch import Batch

    Inputs = tuple[Tensor, ...]

Values = NDArray[Any]

FIXED_SIZES = {"axes": 2, "frames and sides": 3, "one": 1}
"""Of dimensions that are the same in every model."""


class InputFormat(ABC):
    """Named tensors with named dimensions, of which the first is the patches.

    Attributes:
        names: of the tensors, in the order of the model's own forward.
        valid: the one that says which tokens are valid.
        dims: the names of each tensor's dimensions; the open ones may have any size, the others are the model's.
        opened: the names of the dimensions that a graph leaves open.
        is_packed: whether images follow each other with no padding between them.
        masks: whether a single token of an image can be left out of a call.
    """

    names: tuple[str, ...]
    valid: str
    dims: tuple[tuple[str, ...], ...]
    opened: tuple[str, ...] = ("batch", "tokens")
    is_packed: bool = False
    masks: bool = True

    @abstractmethod
    def arrange(self, batch: Batch) -> Inputs:
        """Return the batch as the tensors."""

    def token_width(self, shape: Sequence[int | str]) -> int:
        """Return how many values a token of a batch has whose patches have this shape."""
        return int(shape[-1])

    def patches_along(self, tokens: int) -> int:
        """Return how many patches there are along a side of so many tokens: as many, but where some are merged."""
        return tokens

    def example(self, name: str, grids: Sequence[Grid], tokens: int, width: int) -> Batch:
        """Return a batch of no meaning, of images of these grids.

        Args:
            name: of the batch, which its values are drawn from.
            grids: of the images.
            tokens: that they are padded to.
            width: values in a flattened patch.
        """
        from naflex_export.batch import noise_batch

        return noise_batch(name, grids, tokens, width)

    @abstractmethod
    def check(self, inputs: Sequence[Any], most: int) -> None:
        """Check the values of tensors or arrays whose dtypes and shapes are right.

        Args:
            inputs: the tensors.
            most: the tokens of the largest bucket.

        Raises:
            InputError: they describe no grid, one that no bucket takes, or valid tokens that are no prefix.
        """

    @abstractmethod
    def check_tokens(self, inputs: Sequence[Any]) -> None:
        """Check that the valid tokens of each image go row by row through its grid, whatever its size.

        Raises:
            InputError: they do not, or an image has none.
        """

    def check_shapes(self, inputs: Sequence[Any]) -> None:
        """Check what a model that is no artifact is given: kinds, whole numbers and shapes, whatever the model's own.

        Args:
            inputs: as many as there are names.

        Raises:
            InputError: one is no tensor or array, holds fractions, or does not fit the others; the message says which.
        """
        sizes: dict[str, int] = {}
        for name, dims, given in zip(self.names, self.dims, inputs, strict=True):
            if not hasattr(given, "shape"):
                raise InputError(f"{name} is a {type(given).__name__}: expected a tensor or an array")
            shape, said = list(given.shape), f"[{', '.join(dims)}]"
            if name != self.names[0] and ("float" in str(given.dtype) or "complex" in str(given.dtype)):
                raise InputError(f"{name} is {str(given.dtype).removeprefix('torch.')}: expected whole numbers, int64")
            if len(shape) != len(dims):
                raise InputError(f"{name} has shape {shape}: expected {len(dims)} axes, {said}")
            for size, dim in zip(shape, dims, strict=True):
                opened = OpenSize.of(dim)
                if (size - opened.more) % opened.factor:
                    raise InputError(f"{name} has shape {shape}: expected a multiple of {opened.factor}, {said}")
                if dim in self.opened:
                    sizes.setdefault(opened.name, (size - opened.more) // opened.factor)
                known = opened.at(sizes) if dim in self.opened else FIXED_SIZES.get(dim, size)
                if size != known or size == 0:
                    raise InputError(f"{name} has shape {shape}: expected {dim}={known or 'at least 1'}, {said}")

    def without_padding(self, inputs: Inputs) -> Inputs:
        """Return the tensors with zeros where patches are padding: a NaN there would spread through attention."""
        import torch

        patches, valid_BN = inputs[0], inputs[self.names.index(self.valid)].bool()
        if bool(valid_BN.all()):
            return inputs
        return (torch.where(valid_BN.unsqueeze(-1), patches, 0), *inputs[1:])

    @property
    def open_dims(self) -> tuple[dict[int, str], ...]:
        """The names of each tensor's open dimensions, by axis."""
        return tuple({axis: dim for axis, dim in enumerate(dims) if dim in self.opened} for dims in self.dims)

    def completed(self, inputs: tuple[Any, ...], named: Mapping[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return what a caller gave, in order and by name, with what follows from it and may be left out.

        Args:
            inputs: given in order; or one mapping.
            named: given by name.
        """
        return inputs, dict(named)

    def check_sizes(self, sizes: Mapping[str, int], buckets: Sequence[Bucket]) -> None:
        """Check that a bucket takes inputs of these sizes, by the names of their dimensions.

        Args:
            sizes: of the inputs.
            buckets: of the artifact.

        Raises:
            InputError: none does.
        """
        check_sizes(buckets, sizes)


class TimmFormat(InputFormat):
    """timm's: `patches` [B, N, D] float, `patch_coord` [B, N, 2] int64 as (y, x), `patch_valid` [B, N] bool."""

    names = ("patches", "patch_coord", "patch_valid")
    valid = "patch_valid"
    dims = (("batch", "tokens", "values"), ("batch", "tokens", "axes"), ("batch", "tokens"))

    def arrange(self, batch: Batch) -> Inputs:
        return batch.patches, batch.patch_coord, batch.patch_valid

    def check(self, inputs: Sequence[Any], most: int) -> None:
        self.check_tokens(inputs)
        _check_area(values_of(inputs[1]).max(axis=1) + 1, most)

    def check_tokens(self, inputs: Sequence[Any]) -> None:
        coord_BN2, valid_BN = values_of(inputs[1]), values_of(inputs[2]).astype(bool)
        token_N = np.arange(valid_BN.shape[1])
        _check_prefix(valid_BN, "patch_valid")
        grid_B2 = coord_BN2.max(axis=1) + 1
        width_B1 = np.maximum(grid_B2[:, 1:], 1)
        row_by_row = np.stack([token_N // width_B1, token_N % width_B1], axis=-1)
        expected = np.where(valid_BN[..., None], row_by_row, 0)
        wrong_B = (coord_BN2 != expected).any(axis=(1, 2))
        if wrong_B.any():
            image = int(wrong_B.argmax())
            raise InputError(
                f"patch_coord of image {image} does not go row by row through a grid, as (y, x) from (0, 0), with "
                "zeros for padding"
            )


class TransformersFormat(InputFormat):
    """transformers': `pixel_values` [B, N, D] float, `pixel_attention_mask` [B, N] int32, `spatial_shapes` [B, 2].

    The mask holds 1 for a valid token and 0 for padding; the shapes, int64, hold each image's grid as (height, width).
    The dtypes are those that transformers' image processors give.
    """

    names = ("pixel_values", "pixel_attention_mask", "spatial_shapes")
    valid = "pixel_attention_mask"
    dims = (("batch", "tokens", "values"), ("batch", "tokens"), ("batch", "axes"))

    def arrange(self, batch: Batch) -> Inputs:
        import torch

        grid_B2 = torch.tensor(batch.grids, dtype=torch.int64, device=batch.patches.device)
        return batch.patches, batch.patch_valid.to(torch.int32), grid_B2

    def check(self, inputs: Sequence[Any], most: int) -> None:
        mask_BN, grid_B2 = values_of(inputs[1]), values_of(inputs[2])
        self._check_mask(mask_BN)
        self._check_sides(grid_B2)
        _check_area(grid_B2, most)
        self._check_counts(mask_BN, grid_B2)

    def check_tokens(self, inputs: Sequence[Any]) -> None:
        mask_BN, grid_B2 = values_of(inputs[1]), values_of(inputs[2])
        self._check_mask(mask_BN)
        self._check_sides(grid_B2)
        self._check_counts(mask_BN, grid_B2)

    def _check_mask(self, mask_BN: Values) -> None:
        if ((mask_BN != 0) & (mask_BN != 1)).any():
            raise InputError("pixel_attention_mask holds values other than 0 and 1: expected 1 for each valid token")
        _check_prefix(mask_BN.astype(bool), "pixel_attention_mask")

    def _check_counts(self, mask_BN: Values, grid_B2: Values) -> None:
        count_B, area_B = mask_BN.sum(axis=1), grid_B2.prod(axis=1)
        if (count_B != area_B).any():
            image = int((count_B != area_B).argmax())
            height, width = grid_B2[image].tolist()
            raise InputError(
                f"spatial_shapes of image {image} is {height}x{width} = {height * width} patches, and its "
                f"pixel_attention_mask marks {int(count_B[image])}: expected the same number"
            )

    def check_grids(self, grid_B2: Tensor, tokens: int) -> None:
        """Check the shapes of images, where that waits for no device: on a CPU, and where they have values.

        Args:
            grid_B2: [B, 2] the shapes.
            tokens: that the images are padded to.

        Raises:
            InputError: one is below 1x1, or has more patches than there are tokens.
        """
        if has_values(grid_B2) and grid_B2.device.type == "cpu":
            grid, fraction_B = values_of(grid_B2), (grid_B2 != grid_B2.long()).any(dim=1)
            if bool(fraction_B.any()):
                image = int(fraction_B.int().argmax())
                raise InputError(
                    f"spatial_shapes of image {image} is {grid_B2[image].tolist()}: expected whole numbers of patches"
                )
            self._check_sides(grid)
            _check_area(grid, tokens, f"the {tokens} tokens that the batch is padded to")

    def _check_sides(self, grid_B2: Values) -> None:
        if (grid_B2 < 1).any():
            image = int((grid_B2 < 1).any(axis=1).argmax())
            raise InputError(
                f"spatial_shapes of image {image} is {grid_B2[image].tolist()}: expected a height and a width of at "
                "least 1, in patches"
            )


TIMM = TimmFormat()
TRANSFORMERS = TransformersFormat()


def values_of(given: Any) -> Values:
    """Return what a tensor of whole numbers or truth values holds, as int64; an array of such likewise.

    Args:
        given: on any device.
    """
    if isinstance(given, np.ndarray):
        return given.astype(np.int64, copy=False)
    values: Values = given.detach().long().cpu().numpy()
    return values


def _check_prefix(valid_BN: Values, name: str) -> None:
    wrong_B = (valid_BN != (np.arange(valid_BN.shape[1]) < valid_BN.sum(axis=1, keepdims=True))).any(axis=1)
    if wrong_B.any():
        image = int(wrong_B.argmax())
        raise InputError(f"{name} of image {image} has gaps: valid tokens must come first, padding after them")
    if not valid_BN[:, 0].all():
        image = int(valid_BN[:, 0].argmin())
        raise InputError(
            f"{name} marks no token of image {image}: expected at least one, or a batch without that image"
        )


def _check_area(grid_B2: Values, most: int, limit: str = "") -> None:
    # sides are looked at too: the product of two enormous ones wraps around to anything
    large_B = (grid_B2.prod(axis=1) > most) | (grid_B2 > most).any(axis=1)
    if large_B.any():
        image = int(large_B.argmax())
        height, width = grid_B2[image].tolist()
        limit = (
            limit
            or f"the {most} tokens of the largest bucket: export again with a larger --bucket, or resize the image"
        )
        raise InputError(f"image {image} has a grid of {height}x{width} = {height * width} patches, more than {limit}")


def can_be_checked(inputs: Sequence[Tensor]) -> bool:
    """Whether a live call's inputs may be looked at: they are on a CPU, and no graph is being made of the call."""
    import torch

    if torch.compiler.is_compiling() or torch.compiler.is_exporting():
        return False
    return all(
        not isinstance(given, torch.Tensor) or (given.device.type == "cpu" and has_values(given)) for given in inputs
    )


def has_values(tensor: Tensor) -> bool:
    """Whether a tensor's values can be looked at: it is no stand-in of a tracer, nor of a transform of functions."""
    import torch

    kind = type(tensor)
    plain = kind.__torch_dispatch__ is torch.Tensor.__torch_dispatch__ and not tensor.is_meta
    return plain and not torch._C._functorch.is_functorch_wrapped_tensor(tensor)
