"""`pack` and `unpack`: padded batches to packed inputs and back.

Shape legend: B images, N tokens that a batch is padded to, T tokens of all images together, P prefix tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from naflex_export.errors import InputError
from naflex_export.serving.input_formats import TIMM, TRANSFORMERS, InputFormat
from naflex_export.serving.packed_format import PACKED, offsets_of, positions_of


def pack(batches: Any) -> dict[str, Tensor]:
    """Return padded batches as one pack, by name: all images one after the other, unpadded.

    `patches` [T, D] keep their dtype; the rest is int64: `patch_coord` [T, 2] as (y, x), `grids` [B, 2] as (height,
    width) in patches, `offsets` [B + 1] of each image's first token, from 0 to T, and `positions` [N], counting from 0
    to the longest image's tokens. T are the valid tokens of all B images. Gradients flow through patches, as through
    any copy.

    Args:
        batches: a padded batch or a list of several: three tensors in timm's order, or a mapping of timm's names
            (`patches`, `patch_coord`, `patch_valid`) or of transformers' (`pixel_values`, `pixel_attention_mask`,
            `spatial_shapes`).

    Raises:
        InputError: there is none, one is no such batch, or what it says of its images cannot be: an image without a
            token, coordinates that do not go row by row through a grid, a grid of another area.
    """
    is_one = isinstance(batches, Mapping) or (len(batches) == 3 and all(isinstance(part, Tensor) for part in batches))
    if not isinstance(batches, Mapping | list | tuple):
        raise InputError(f"a {type(batches).__qualname__} cannot be packed: expected a batch, or a list of batches")
    padded = [_timm_tensors(batch) for batch in ([batches] if is_one else batches)]
    if not padded:
        raise InputError("no batch was given to pack: expected at least one")
    valid = [valid_BN.bool() for _, _, valid_BN in padded]
    coord = [coord_BN2.long() for _, coord_BN2, _ in padded]
    offsets = offsets_of(torch.cat([valid_BN.sum(dim=1) for valid_BN in valid]))
    grids = [
        (coord_BN2 * valid_BN.unsqueeze(-1)).amax(dim=1) + 1 for coord_BN2, valid_BN in zip(coord, valid, strict=True)
    ]
    widths = sorted({patches.flatten(2).shape[-1] for patches, _, _ in padded})
    if len(widths) > 1:
        raise InputError(f"patches have {widths[0]} values in one batch and {widths[-1]} in another: expected as many")
    packed = {
        "patches": torch.cat([patches.flatten(2)[kept] for (patches, _, _), kept in zip(padded, valid, strict=True)]),
        "patch_coord": torch.cat([coord_BN2[kept] for coord_BN2, kept in zip(coord, valid, strict=True)]),
        "grids": torch.cat(grids),
        "offsets": offsets,
        "positions": positions_of(offsets),
    }
    PACKED.check_tokens(list(packed.values()))
    return packed


def unpack(packed: Mapping[str, Tensor], tokens: int | None = None) -> dict[str, Tensor]:
    """Return a pack as a padded batch of timm's names: the inverse of `pack`, with zeros for padding.

    Args:
        packed: as `pack` gives it.
        tokens: that images are padded to; by default as many as the longest has.

    Raises:
        InputError: it is no pack, or the longest image has more tokens than that.
    """
    inputs = PACKED.of_call(packed)
    packed = dict(zip(PACKED.names, inputs, strict=True))
    offsets = packed["offsets"]
    lengths_B, longest = offsets.diff(), int(offsets.diff().max())
    count = longest if tokens is None else tokens
    if count < longest:
        raise InputError(f"the longest image has {longest} tokens, and it was to be padded to {count}: expected more")
    valid_BN = torch.arange(count, device=offsets.device) < lengths_B.unsqueeze(1)
    return {
        "patches": padded_rows(packed["patches"], valid_BN),
        "patch_coord": padded_rows(packed["patch_coord"], valid_BN),
        "patch_valid": valid_BN,
    }


def padded_rows(rows: Tensor, valid_BN: Tensor, num_prefix_tokens: int = 0) -> Tensor:
    """Return the rows of a pack's tokens as a padded batch has them, with zeros for padding.

    Args:
        rows: [B * P + T, ...] the prefix tokens of each image, one image after the other, and then all patch tokens.
        valid_BN: [B, N] which tokens of the padded batch there are.
        num_prefix_tokens: P.

    Returns:
        [B, P + N, ...].
    """
    num_images, prefix = len(valid_BN), num_prefix_tokens * len(valid_BN)
    padded = rows.new_zeros(*valid_BN.shape, *rows.shape[1:])
    padded[valid_BN.to(rows.device)] = rows[prefix:]
    if not prefix:
        return padded
    return torch.cat([rows[:prefix].reshape(num_images, num_prefix_tokens, *rows.shape[1:]), padded], dim=1)


def _timm_tensors(batch: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Return a padded batch as timm's three tensors.

    Raises:
        InputError: it is none.
    """
    if isinstance(batch, Mapping):
        for form in (TIMM, TRANSFORMERS):
            if all(name in batch for name in form.names):
                return _checked(form, [batch[name] for name in form.names])
        found = ", ".join(map(str, batch))
        raise InputError(
            f"a batch of {found} cannot be packed: expected {', '.join(TIMM.names)}, or {', '.join(TRANSFORMERS.names)}"
        )
    if isinstance(batch, tuple | list) and len(batch) == 3:
        return _checked(TIMM, list(batch))
    raise InputError(f"a {type(batch).__qualname__} cannot be packed: expected a mapping of tensors, or three tensors")


def _checked(form: InputFormat, given: list[Any]) -> tuple[Tensor, Tensor, Tensor]:
    """Return a batch as timm's three tensors, once its tensors are of the right kinds and shapes.

    Raises:
        InputError: they are not; or, of transformers' names, masks and shapes contradict each other.
    """
    for name, tensor in zip(form.names, given, strict=True):
        if not isinstance(tensor, Tensor):
            raise InputError(f"{name} is a {type(tensor).__name__}: expected a torch.Tensor, as torch.from_numpy makes")
    if given[0].ndim < 3:
        raise InputError(f"{form.names[0]} has shape {list(given[0].shape)}: expected [batch, tokens, values]")
    form.check_shapes([given[0].flatten(2), *given[1:]])
    if form is TIMM:
        return given[0], given[1], given[2]
    form.check_tokens(given)
    patches, mask_BN, grid_B2 = given
    token_N, width_B1 = torch.arange(mask_BN.shape[1], device=mask_BN.device), grid_B2.long()[:, 1:]
    coord_BN2 = torch.stack([token_N // width_B1, token_N % width_B1], dim=-1)
    return patches, coord_BN2 * mask_BN.unsqueeze(-1), mask_BN.bool()
