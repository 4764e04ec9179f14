"""`vectorize`: the same model without its per-image loop."""

from __future__ import annotations

from typing import TypeVar, cast

from torch import nn

from naflex_export.models import adapter_of

Model = TypeVar("Model", bound=nn.Module)


def vectorize(model: Model) -> Model:
    """Return a loop-free model of the same class that shares every parameter and buffer of `model`.

    With RoPE the class is a subclass of timm's `NaFlexVit`, for that is where timm has its loop.

    Its outputs are those of `model` to float32 rounding, in train and eval mode, under autocast, in any dtype and on
    any device; `state_dict` keys are the same, and `model` itself is untouched. Shared parameters move together: a
    later `.to()` or `.half()` on one moves both.

    Raises:
        UnsupportedModelError: the model, or one of its options, is not known to this release.
    """
    return cast(Model, adapter_of(model).vectorized().model)
