"""What keeps a reference right where torch is not."""

from __future__ import annotations

from typing import Any

import torch
from torch.overrides import TorchFunctionMode


class SoundInterpolate(TorchFunctionMode):
    """Runs antialiased resizes to a width of 1 where torch's CPU kernel is right: in channels-last memory.

    On any other memory layout that kernel does not resize the height (measured with torch 2.13 to 2.15), an error as
    large as the values. timm's position embedding happens to lie channels-last. transformers' does not, to torch: so
    eager SigLIP 2 is wrong on a CPU for an image of a single column, and would reject every candidate that is right.
    Nothing but the layout changes, and nothing at all for any other resize.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if (
            func is torch.nn.functional.interpolate
            and kwargs.get("antialias")
            and _is_to_one_column(kwargs.get("size"))
        ):
            image, *rest = args
            return func(image.clone(memory_format=torch.channels_last), *rest, **kwargs)
        return func(*args, **kwargs)


def _is_to_one_column(size: Any) -> bool:
    return size == 1 or (isinstance(size, tuple | list | torch.Size) and len(size) == 2 and size[1] == 1)
