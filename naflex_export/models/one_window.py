"""Convolutions that see a single window at a time, as the matrix products that they are.

Vision towers project a patch, and some merge a square of tokens, by a convolution whose window is all of its input. On
a GPU torch makes float32 convolutions of TF32 products unless it is told otherwise, which keep 10 bits of each factor,
while its matrix products are of float32: a tower in float32 would be off by 3e-4. On a CPU (one thread, torch 2.14)
the product takes a quarter of the time for patches of 16x16 and 14x14 pixels, and for merging 2x2 tokens of width 1536
two fifths forward and a tenth with the gradient.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class OneWindowConv2d(nn.Conv2d):
    """`Conv2d` that multiplies matrices where the window is all of the input."""

    def forward(self, input: Tensor) -> Tensor:
        """Return what the class itself gives, [T, C, 1, 1] for [T, D, height, width] of one window."""
        return _product(self, input) if _is_one_window(self, input) else super().forward(input)


class OneWindowConv3d(nn.Conv3d):
    """`Conv3d` that multiplies matrices where the window is all of the input."""

    def forward(self, input: Tensor) -> Tensor:
        """Return what the class itself gives, [T, C, 1, 1, 1] for [T, D, frames, height, width] of one window."""
        return _product(self, input) if _is_one_window(self, input) else super().forward(input)


TWINS: dict[type[nn.Module], type[nn.Module]] = {nn.Conv2d: OneWindowConv2d, nn.Conv3d: OneWindowConv3d}


def as_products(model: nn.Module) -> None:
    """Make every convolution of a model one that multiplies matrices where it can; parameters stay what they are.

    A subclass may do more than torch's own class does, and is left alone.

    Args:
        model: changed in place.
    """
    for module in model.modules():
        if type(module) in TWINS:
            module.__class__ = TWINS[type(module)]


def _is_one_window(convolution: nn.Conv2d | nn.Conv3d, input: Tensor) -> bool:
    is_plain = convolution.groups == 1 and all(step == 1 for step in convolution.dilation)
    is_bare = convolution.padding == "valid" or all(side == 0 for side in convolution.padding)
    size = tuple(convolution.kernel_size)
    return is_plain and is_bare and input.ndim == len(size) + 2 and tuple(input.shape[2:]) == size


def _product(convolution: nn.Conv2d | nn.Conv3d, input: Tensor) -> Tensor:
    rows = F.linear(input.flatten(1), convolution.weight.flatten(1), convolution.bias)
    return rows.view(*rows.shape, *(1 for _ in convolution.kernel_size))
