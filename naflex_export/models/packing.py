"""`Packing`: where each token of a pack lies, and attention that keeps images apart.

All layers but attention treat each token by itself, so they run on the rows of a pack as they are. Attention has three
forms that give the same numbers: by image, one call each, on a CPU that may look at the offsets; torch's `varlen_attn`
on a GPU in 16 bits, compiled or not; and by gathering queries, keys and values to a padded batch, which is a graph of
nothing but shapes that every backend runs, with the layers around it still free of padding.

Shape legend: B images, N tokens of the longest, T patch tokens of all images, P prefix tokens of an image, L = P + N,
R = B * P + T rows: the prefix tokens of one image after the other, then all patch tokens; C channels.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import itertools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor

from naflex_export.resample.add import OLDEST_GPU, leaves_torch

HAS_VARLEN = importlib.util.find_spec("torch.nn.attention.varlen") is not None
"""Whether torch has attention to sequences of any length, which its releases from 2.10 on do."""

WIDEST_HEAD = 256
"""Values of a head that torch's kernel for them takes at most; it takes multiples of 8."""


@dataclass(frozen=True)
class Packing:
    """Where the tokens of a pack lie.

    Attributes:
        coord_T12: each token's (y, x), as an image of its own.
        grid_T2: the grid of the image that each token is of.
        image_T: the image that each token is of.
        start_B: where each image's tokens start.
        length_B: how many it has.
        image_R: the image that each row is of.
        place_R: the place of each row among the L of its image, in the padded batch.
        row_BL: the row at each place of the padded batch; where there is none, another image's or its own.
        valid_BN: which places of the padded batch hold a patch token.
        num_prefix_tokens: P.
        window_T: the window of its image that each patch token is in, where attention is within windows and the tokens
            of a window follow each other; None for the whole image. There are no prefix tokens then.
        merge: tokens go through one square of so many a side after the other; 1 for row by row.
    """

    coord_T12: Tensor
    grid_T2: Tensor
    image_T: Tensor
    start_B: Tensor
    length_B: Tensor
    image_R: Tensor
    place_R: Tensor
    row_BL: Tensor
    valid_BN: Tensor
    num_prefix_tokens: int = 0
    window_T: Tensor | None = None
    merge: int = 1
    _made: dict[str, Tensor] = field(default_factory=dict, init=False, repr=False, compare=False)

    @classmethod
    def of(
        cls, coord_T2: Tensor, grid_B2: Tensor, offsets: Tensor, positions_N: Tensor, num_prefix_tokens: int = 0
    ) -> Packing:
        """Return the packing of the inputs that `PackedFormat` names: no look at any value, no loop.

        Args:
            coord_T2: `patch_coord`.
            grid_B2: `grids`.
            offsets: [B + 1].
            positions_N: `positions`.
            num_prefix_tokens: that the model puts ahead of each image.
        """
        # not by a slice: its size, one less than that of offsets, would have to be 2 or more in torch's graphs
        image_B = torch.arange(grid_B2.shape[0], device=coord_T2.device)
        images = image_B, offsets.index_select(0, image_B), offsets.index_select(0, image_B + 1)
        return cls._placed(coord_T2, grid_B2, images, positions_N, num_prefix_tokens)

    @classmethod
    def of_grids(cls, grid_B2: Tensor, tokens: int, positions_N: Tensor, merge: int = 1) -> Packing:
        """Return the packing of images whose patches fill their grids: no look at any value, no loop.

        Args:
            grid_B2: height and width of each image.
            tokens: T.
            positions_N: 0, 1, 2 and so on, as many as the longest image has patches.
            merge: patches go through one square of so many a side after the other; 1 for row by row.
        """
        image_B, area_B = torch.arange(grid_B2.shape[0], device=grid_B2.device), grid_B2[:, 0] * grid_B2[:, 1]
        end_B = torch.where(image_B <= image_B.unsqueeze(1), area_B, 0).sum(dim=1)
        token_T = torch.arange(tokens, device=grid_B2.device)
        image_T = (token_T.unsqueeze(1) >= end_B).sum(dim=1)
        place_T = token_T - (end_B - area_B).index_select(0, image_T)
        coord_T2 = _coordinates(place_T, grid_B2[:, 1].index_select(0, image_T), merge)
        packing = cls._placed(coord_T2, grid_B2, (image_B, end_B - area_B, end_B), positions_N, 0)
        return dataclasses.replace(packing, merge=merge)

    def led_by(self, count: int) -> Packing:
        """Return the packing of the same images with so many more tokens ahead of the patches of each.

        All of them are tokens of their image there, in order: there are no prefix tokens, which have rows of their own.

        Args:
            count: of tokens ahead of each image's patches, which have no places: theirs are below 0.
        """
        image_B, length_B = torch.arange(self.num_images, device=self.image_T.device), self.length_B + count
        end_B = torch.where(image_B <= image_B.unsqueeze(1), length_B, 0).sum(dim=1)
        tokens = self.image_T.shape[0] + self.num_images * count
        token_T = torch.arange(tokens, device=end_B.device)
        image_T = (token_T.unsqueeze(1) >= end_B).sum(dim=1)
        place_T = token_T - (end_B - length_B).index_select(0, image_T) - count
        ahead_BP = torch.arange(count, device=end_B.device).expand(self.num_images, count)  # as in `_placed`
        first_B1, images_B1 = (end_B - length_B).unsqueeze(1), image_B.unsqueeze(1) + 1
        return Packing(
            coord_T12=place_T.view(tokens, 1, 1).expand(tokens, 1, 2),
            grid_T2=self.grid_T2.index_select(0, self.start_B).index_select(0, image_T),
            image_T=image_T,
            start_B=end_B - length_B,
            length_B=length_B,
            image_R=image_T,
            place_R=place_T + count,
            row_BL=torch.cat([first_B1 + ahead_BP, self.row_BL + images_B1 * count], dim=1),
            valid_BN=torch.cat([ahead_BP >= 0, self.valid_BN], dim=1),
        )

    @classmethod
    def _placed(
        cls,
        coord_T2: Tensor,
        grid_B2: Tensor,
        of_images: tuple[Tensor, Tensor, Tensor],
        positions_N: Tensor,
        prefix: int,
    ) -> Packing:
        """Return the packing of the tokens of images, of which the numbers, starts and ends are given."""
        device, (image_B, start_B, end_B) = coord_T2.device, of_images
        tokens, images, longest = coord_T2.shape[0], grid_B2.shape[0], positions_N.shape[0]
        token_T = torch.arange(tokens, device=device)
        image_T = (token_T.unsqueeze(1) >= end_B).sum(dim=1)
        image_R, place_R = image_T, token_T - start_B.index_select(0, image_T) + prefix
        # expanded first: of a sum of two lines of numbers ONNX's rules think that it is a shape
        row_BN = start_B.unsqueeze(1).expand(images, longest) + positions_N
        row_BN = row_BN.clamp(max=tokens - 1) + images * prefix
        if prefix:
            image_B1 = image_B.unsqueeze(1)
            prefix_P = torch.arange(prefix, device=device)
            image_R = torch.cat([image_B1.expand(images, prefix).flatten(), image_R])
            place_R = torch.cat([prefix_P.expand(images, prefix).flatten(), place_R])
            row_BN = torch.cat([image_B1 * prefix + prefix_P, row_BN], dim=1)
        return cls(
            coord_T12=coord_T2.unsqueeze(1),
            grid_T2=grid_B2.index_select(0, image_T),
            image_T=image_T,
            start_B=start_B,
            length_B=end_B - start_B,
            image_R=image_R,
            place_R=place_R,
            row_BL=row_BN,
            valid_BN=positions_N < (end_B - start_B).unsqueeze(1),
            num_prefix_tokens=prefix,
        )

    @property
    def num_images(self) -> int:
        """B."""
        return self.valid_BN.shape[0]

    @property
    def num_prefix_rows(self) -> int:
        """B * P, the rows ahead of all patch tokens."""
        return self.valid_BN.shape[0] * self.num_prefix_tokens

    def padded(self, rows_RC: Tensor) -> Tensor:
        """Return rows as a padded batch [B, L, C]; padding holds other tokens, of whatever image."""
        return F.embedding(self.row_BL, rows_RC)

    def rows(self, padded_BLC: Tensor) -> Tensor:
        """Return the rows [R, C] of a padded batch."""
        return padded_BLC[self.image_R, self.place_R]

    def coord_in_squares(self, merge: int) -> Tensor:
        """Return the (y, x) [T, 2] that tokens would have if they went through squares of `merge` a side in turn."""
        token_T = torch.arange(self.image_T.shape[0], device=self.image_T.device)
        return _coordinates(token_T - self.start_B.index_select(0, self.image_T), self.grid_T2[:, 1], merge)

    def mask(self, dtype: torch.dtype) -> Tensor:
        """Return what is added to scores of a padded batch, [B, 1, L, L]: ONNX Runtime asks for a row a query."""
        images, length = self.row_BL.shape
        length_B = self.length_B + self.num_prefix_tokens
        valid_BL = torch.arange(length, device=length_B.device) < length_B.unsqueeze(1)
        added_BL = torch.zeros(images, length, dtype=dtype, device=length_B.device)
        added_BL = added_BL.masked_fill(~valid_BL, torch.finfo(dtype).min)
        added_B1LL = added_BL[:, None, None, :].expand(images, 1, length, length)
        if self.window_T is None:
            return added_B1LL
        window_BL = self.window_T.index_select(0, self.row_BL.flatten()).view(images, length)
        differ_BLL = window_BL.unsqueeze(2) != window_BL.unsqueeze(1)
        return added_B1LL.masked_fill(differ_BLL.unsqueeze(1), torch.finfo(dtype).min)

    @property
    def spots(self) -> Tensor:
        """Where each row lies when the prefix tokens of an image are ahead of its patch tokens."""
        return self._once("spots", self._spots)

    @property
    def rows_in_order(self) -> Tensor:
        """The rows in that order."""
        return self._once("rows_in_order", self._rows_in_order)

    @property
    def starts(self) -> Tensor:
        """[B + 1] int32 where each image's rows start in that order, prefix tokens included."""
        return self._once("starts", self._starts)

    def _once(self, name: str, make: Callable[[], Tensor]) -> Tensor:
        """Return what is made by the first block that asks; dynamo takes no lock, as `cached_property` has one."""
        if name not in self._made:
            self._made[name] = make()
        return self._made[name]

    def _spots(self) -> Tensor:
        prefix, device = self.num_prefix_tokens, self.image_T.device
        token_T = torch.arange(self.image_T.shape[0], device=device) + (self.image_T + 1) * prefix
        if not prefix:
            return token_T
        image_B1 = torch.arange(self.num_images, device=device).unsqueeze(1)
        first_B1 = self.start_B.unsqueeze(1) + image_B1 * prefix
        return torch.cat([(first_B1 + torch.arange(prefix, device=device)).flatten(), token_T])

    def _rows_in_order(self) -> Tensor:
        spots = self.spots
        return torch.empty_like(spots).scatter_(0, spots, torch.arange(spots.shape[0], device=spots.device))

    def _starts(self) -> Tensor:
        return F.pad((self.length_B + self.num_prefix_tokens).cumsum(dim=0), (1, 0)).to(torch.int32)


def _coordinates(place_T: Tensor, width_T: Tensor, merge: int) -> Tensor:
    """Return the (y, x) [T, 2] of places in images, which go through squares of `merge` a side, one after the other."""
    square_T, columns_T = place_T // (merge * merge), width_T // merge
    within_T = place_T - square_T * (merge * merge)
    down_T = square_T // columns_T.clamp(min=1)  # a width of zero is wrong input, and would end some backends
    row_T = down_T * merge + within_T // merge
    column_T = (square_T - down_T * columns_T) * merge + within_T - within_T // merge * merge
    return torch.stack([row_T, column_T], dim=1)


Rows = tuple[Tensor, Tensor, Tensor]
"""Queries, keys and values [R, C], heads side by side."""


def attend(qkv: Rows, num_heads: int, packing: Packing, *, scale: float | None = None, dropout: float = 0.0) -> Tensor:
    """Return scaled dot-product attention of each image's rows to its own, [R, C].

    Args:
        qkv: queries, keys and values.
        num_heads: how many heads C holds.
        packing: of the rows.
        scale: of the scores; by default one over the root of a head's width.
        dropout: of the scores' softmax.
    """
    device, is_whole = qkv[0].device, not dropout and packing.window_T is None
    if device.type == "cuda" and is_whole and _varlen_takes(qkv[0], num_heads) and not leaves_torch():
        return _by_varlen(qkv, num_heads, packing, scale)
    if device.type == "cpu" and not torch.compiler.is_compiling() and not torch.compiler.is_exporting():
        return _by_image(qkv, num_heads, packing, scale, dropout)
    return _gathered(qkv, num_heads, packing, scale, dropout)


def _varlen_takes(query_RC: Tensor, num_heads: int) -> bool:
    """Whether torch's kernel takes queries: in 16 bits, heads of widths that it knows, a GPU that is not too old."""
    width, is_low = query_RC.shape[-1] // num_heads, query_RC.dtype in (torch.float16, torch.bfloat16)
    return HAS_VARLEN and is_low and width % 8 == 0 and width <= WIDEST_HEAD and _has_flash(query_RC.device.index)


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _has_flash(index: int | None) -> bool:
    """Whether the GPU of that number runs flash attention, as those do that run our kernels."""
    return torch.cuda.get_device_capability(index) >= OLDEST_GPU


def _gathered(qkv: Rows, num_heads: int, packing: Packing, scale: float | None, dropout: float) -> Tensor:
    """As a padded batch: the rows are copied there and back."""
    images, length = packing.row_BL.shape
    query, key, value = (
        packing.padded(rows).view(images, length, num_heads, rows.shape[-1] // num_heads).transpose(1, 2)
        for rows in qkv
    )
    mask = packing.mask(query.dtype)
    given = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, dropout_p=dropout, scale=scale)
    return packing.rows(given.transpose(1, 2).flatten(2))


def _by_image(qkv: Rows, num_heads: int, packing: Packing, scale: float | None, dropout: float) -> Tensor:
    """An image at a time, or a window, on a CPU."""
    heads = [rows.transpose(0, 1).unsqueeze(0) for rows in _by_heads(qkv, num_heads, packing)]
    given, starts = [], packing.starts.tolist()
    if packing.window_T is not None:
        windows = torch.stack([packing.image_T, packing.window_T], dim=1)
        _, counts = torch.unique_consecutive(windows, dim=0, return_counts=True)
        starts = [0, *itertools.accumulate(counts.tolist())]
    for first, last in itertools.pairwise(starts):
        query, key, value = (part[:, :, first:last] for part in heads)
        given.append(F.scaled_dot_product_attention(query, key, value, dropout_p=dropout, scale=scale))
    rows = torch.cat(given, dim=2).squeeze(0).transpose(0, 1).flatten(1)
    return rows.index_select(0, packing.spots) if packing.num_prefix_tokens else rows


def _by_varlen(qkv: Rows, num_heads: int, packing: Packing, scale: float | None) -> Tensor:
    """All images at once, by torch's kernel for a GPU."""
    from torch.nn.attention.varlen import varlen_attn

    query, key, value = _by_heads(qkv, num_heads, packing)
    starts, longest = packing.starts, packing.row_BL.shape[1]
    given = cast(Tensor, varlen_attn(query, key, value, starts, starts, longest, longest, scale=scale)).flatten(1)
    return given.index_select(0, packing.spots) if packing.num_prefix_tokens else given


def _by_heads(qkv: Rows, num_heads: int, packing: Packing) -> list[Tensor]:
    """Return queries, keys and values [R, heads, width], prefix tokens ahead of the patch tokens of their image."""
    ordered = [rows.index_select(0, packing.rows_in_order) if packing.num_prefix_tokens else rows for rows in qkv]
    return [rows.reshape(len(rows), num_heads, -1) for rows in ordered]
