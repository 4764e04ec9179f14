"""What a call of a vectorized vision tower may ask for besides its inputs, in place of transformers' own decorators."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from typing import Any

import torch

from naflex_export.errors import InputError

FOUND_BY_GRIDS = (
    *("position_ids", "cu_seqlens", "window_index", "cu_window_seqlens", "merged_shape"),
    *("interp_indices", "interp_weights", "bilinear_indices", "bilinear_weights"),
)
"""What transformers' towers take ready-made, such as for exports of its own, in place of finding it by the grids."""

RECORDED = ("output_hidden_states", "output_attentions")
"""What transformers' decorators record of a call that asks for it, or whose config does."""


def tower_call(forward: Callable[..., Any]) -> Callable[..., Any]:
    """Return a tower's forward that gives a tuple where it is asked for, and says what it does not heed.

    Args:
        forward: of a vectorized tower.
    """

    @functools.wraps(forward)
    def call(self: Any, *inputs: Any, **named: Any) -> Any:
        is_tuple = wants_tuple(self, named)
        for name in FOUND_BY_GRIDS:
            if named.get(name) is not None:
                raise InputError(
                    f"{name} was given to a vectorized tower, which finds it by {self.input_format.names[1]}: leave it "
                    "out, or call the original tower"
                )
        given = forward(self, *inputs, **named)
        return given.to_tuple() if is_tuple else given

    return call


def wants_tuple(model: Any, named: dict[str, Any]) -> bool:
    """Return whether a call is to give a tuple, and warn where it asks for what is not recorded.

    Args:
        model: that is called, whose config says what a call does not.
        named: what the call is given by name; `return_dict` is taken out.
    """
    return_dict = named.pop("return_dict", getattr(model.config, "return_dict", True))
    for name in RECORDED:
        if named.get(name, getattr(model.config, name, False)) and not torch.compiler.is_compiling():
            warnings.warn(
                f"{name} was asked for, and a vectorized tower records none of a pack: of what it gives they are left "
                "out; the original has them",
                stacklevel=3,
            )
    return return_dict is False
