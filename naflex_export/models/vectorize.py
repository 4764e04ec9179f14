"""`vectorize`: the same model without its per-image loop."""

from __future__ import annotations

from typing import TypeVar, cast

from torch import nn

from naflex_export.errors import UnsupportedModelError
from naflex_export.models import adapter_of, family_of, packed_of
from naflex_export.models.copies import shared_copy
from naflex_export.models.exportable import refuse_uncopied
from naflex_export.models.rounding import remember
from naflex_export.models.self_check import check_embedding
from naflex_export.models.towers import with_vectorized_towers

Model = TypeVar("Model", bound=nn.Module)


def vectorize(model: Model, strict: bool = False, packed: bool = False) -> Model:
    """Return a loop-free model of the same class that shares every parameter and buffer of `model`.

    With RoPE the class is a subclass of timm's `NaFlexVit`, for that is where timm has its loop. Of a model that holds
    such models, a classifier, a wrapper or a module of one's own, all of them are loop-free in what is returned.

    Its outputs are those of `model` to float32 rounding, in train and eval mode, under autocast, in any dtype and on
    any device; `state_dict` keys are the same, and `model` itself is untouched. Shared parameters move together: a
    later `.to()` or `.half()` on one moves both, and what `.half()` rounds stays rounded in both. Nothing else is
    shared: mode, layers and hooks are those that `model` had. A call warns where those of `model` have changed since.

    A token is embedded where its coordinates say. timm goes by its place in the sequence instead, as if tokens always
    went row by row through all of the image's grid; the two agree on such tokens alone. Shuffled tokens, or a part of
    them as masked autoencoders take, are embedded here by their coordinates.

    Args:
        model: of timm or transformers.
        strict: refuse tokens that do not go row by row through a grid, with an `InputError`. This looks at the
            coordinates in each call, which on a GPU waits for them.
        packed: let the model take packs too, `fast(nx.pack(batches))`, with the outputs and gradients that the padded
            batches have.

    Raises:
        UnsupportedModelError: the model, or one of its options, is not known to this release, or a look at its
            embedding on two tiny grids finds a difference.
    """
    refuse_uncopied(model)
    if family_of(model) is None:
        if packed:
            raise UnsupportedModelError(
                f"{type(model).__qualname__} is no model that takes packs: give the tower in it, with packed=True"
            )
        return with_vectorized_towers(model, strict)
    adapter = adapter_of(model)
    remember(model)
    twin = packed_of(adapter).vectorized() if packed else adapter.vectorized()
    if twin.model is not model:
        check_embedding(adapter, twin)
    elif strict:
        twin = twin.of(shared_copy(model))
    if strict:
        twin.be_strict()
    return cast(Model, twin.model)
