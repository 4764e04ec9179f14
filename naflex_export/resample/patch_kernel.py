"""Resampling a patch projection's kernel to another patch size, as FlexiViT does (Beyer et al., 2023, section 3.4).

A patch x, resized to the base size by A, should project to what the new kernel makes of x itself: the new kernel is the
least-squares solution, the old one times the pseudo-inverse of the resize from base to target,

    k' = k @ pinv(A),   A = kron(A_h, A_w),   pinv(kron(A_h, A_w)) = kron(pinv(A_h), pinv(A_w))

so one matrix an axis is enough, of a few kilobytes: two small matmuls give what the whole matrix gives, with a tenth of
its work from 32x32 to 16x16. The matrices are made in float64 once and kept; they belong to no module, so nothing of
them is in a `state_dict`, is rounded by `.half()` or goes stale with `.to()`.

Shape legend: E features, C channels, H x W base patch, h x w target patch, all in pixels.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor

from naflex_export.errors import RequestError
from naflex_export.resample.autocast import full_precision
from naflex_export.resample.weights import BICUBIC, Mode, Resampling, resampling_matrix

_kept: dict[tuple[int, int, Resampling, torch.device], Tensor] = {}


def resample_kernel(kernel_ECHW: Tensor, target: tuple[int, int], resampling: Resampling = BICUBIC) -> Tensor:
    """Return a patch projection's kernel for another patch size.

    Equals timm's `resample_patch_embed`, whose matrix is rounded to float32 before it is inverted; computed in float32,
    under autocast too.

    Args:
        kernel_ECHW: [E, C, H, W] as a convolution has it, any floating dtype.
        target: height and width of the new patch size.
        resampling: the resize that patches are compared by, without `align_corners`.

    Returns:
        [E, C, h, w] in the kernel's dtype; the kernel itself where the size is its own.

    Raises:
        RequestError: a length is below 1.
    """
    base = (kernel_ECHW.shape[2], kernel_ECHW.shape[3])
    if target == base:
        return kernel_ECHW
    rows_Hh, columns_Ww = (
        axis_pinv(source, length, resampling, kernel_ECHW.device) for source, length in zip(base, target, strict=True)
    )
    with full_precision(kernel_ECHW.device.type):
        resampled_EChw = rows_Hh.mT @ (kernel_ECHW.float() @ columns_Ww)
    return resampled_EChw.to(kernel_ECHW.dtype)


def resample_weight(
    weight_ED: Tensor,
    base: tuple[int, int],
    target: tuple[int, int],
    resampling: Resampling = BICUBIC,
    *,
    channels_last: bool = True,
) -> Tensor:
    """Return the weight of a linear patch projection for another patch size.

    Args:
        weight_ED: [E, H*W*C], or with `channels_last=False` [E, C*H*W].
        base: height and width of the weight's own patch size.
        target: height and width of the new one.
        resampling: as in `resample_kernel`.
        channels_last: the order of the values of a flat patch.

    Returns:
        [E, h*w*C] or [E, C*h*w], in the weight's dtype.

    Raises:
        RequestError: a length is below 1, or the weight is not one of patches of the base size.
    """
    features, width = weight_ED.shape
    channels, rest = divmod(width, base[0] * base[1])
    if rest:
        raise RequestError(
            f"a weight of {width} values a patch is none of {base[0]}x{base[1]} patches: expected a multiple of "
            f"{base[0] * base[1]}"
        )
    if channels_last:
        kernel_ECHW = weight_ED.reshape(features, *base, channels).permute(0, 3, 1, 2)
        return resample_kernel(kernel_ECHW, target, resampling).permute(0, 2, 3, 1).reshape(features, -1)
    return resample_kernel(weight_ED.reshape(features, channels, *base), target, resampling).reshape(features, -1)


def axis_pinv(source: int, target: int, resampling: Resampling, device: torch.device) -> Tensor:
    """Return the [source, target] float32 pseudo-inverse of an axis' resize from source to target, from those kept.

    Args:
        source: length of the kernel's axis.
        target: length that it is resampled to.
        resampling: the resize whose pseudo-inverse it is.
        device: where the matrix is to be.

    Raises:
        RequestError: a length is below 1.
    """
    if torch.compiler.is_compiling():  # the graph calls for the matrix, of any target, and does not trace its making
        return _axis_pinv_op(source, target, resampling.mode, resampling.antialias, device)
    key = (source, target, resampling, device)
    found = _kept.get(key)
    if found is None:
        with torch.inference_mode(False):  # a tensor made in inference mode could not serve a later backward
            found = torch.linalg.pinv(resampling_matrix(source, target, resampling, torch.float64)).to(
                device, torch.float32
            )
        _kept[key] = found
    return found


@torch.library.custom_op("naflex_export::axis_pinv", mutates_args=())
def _axis_pinv_op(source: int, target: int, mode: str, antialias: bool, device: torch.device) -> Tensor:
    # a copy: compiled code may write over what an operator gave it
    return axis_pinv(source, target, Resampling(cast(Mode, mode), antialias), device).clone()


@_axis_pinv_op.register_fake
def _(source: int, target: int, mode: str, antialias: bool, device: torch.device) -> Tensor:
    return torch.empty(source, target, device=device)
