"""Towers inside other models: classifiers, image and text models, wrappers, a user's own modules.

A tower that a family owns is swapped for its loop-free twin wherever the model around it holds it, in a copy that
shares every parameter. What the model does besides is left as it is.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from torch import nn

from naflex_export.errors import UnsupportedModelError
from naflex_export.models import adapter_of, family_of, towers_in
from naflex_export.models.copies import shared_copy
from naflex_export.models.rounding import remark_on_precision, remember

Model = TypeVar("Model", bound=nn.Module)


def with_vectorized_towers(model: Model, strict: bool = False) -> Model:
    """Return a copy of a model, which shares every parameter and buffer, with all towers in it vectorized.

    Where all of them are already, that is the model itself.

    Args:
        model: that holds towers.
        strict: as for `vectorize`, of each tower.

    Raises:
        UnsupportedModelError: there is none, an option of one is not known, or the model around it cannot be copied.
    """
    towers = towers_in(model)
    if not towers:
        adapter_of(model)  # which raises, and says what is known
    for tower in towers.values():
        remember(tower)
    adapters = {path: adapter_of(tower).vectorized() for path, tower in towers.items()}
    if strict:
        for adapter in adapters.values():
            adapter.be_strict()
    twins = {path: adapter.model for path, adapter in adapters.items()}
    if all(twins[path] is tower for path, tower in towers.items()):
        return model
    replaced: dict[int, nn.Module] = {}
    for path, tower in towers.items():
        parts = dict(twins[path].named_modules(remove_duplicate=False))
        # modules of the tower that the model around it refers to by itself are swapped with it
        replaced |= {id(part): parts[name] for name, part in tower.named_modules(remove_duplicate=False)}
    try:
        return shared_copy(model, replaced)
    except UnsupportedModelError as refused:  # whatever a module of the user's raised when it was copied
        path, cause = next(iter(towers)), refused.__cause__ or refused
        raise UnsupportedModelError(
            f"{type(model).__module__}.{type(model).__qualname__} cannot be copied ({type(cause).__name__}: {cause}): "
            f"put the tower in its place yourself, model.{path} = nx.vectorize(model.{path})"
        ) from cause


def remarks_on(model: nn.Module, preprocessing: Mapping[str, Any] | None = None) -> tuple[str, ...]:
    """Return what a user should know of what an export of a model is made of, a sentence each; mostly none.

    Args:
        model: to be exported.
        preprocessing: how photos are prepared, in place of what the model says; None for that.
    """
    adapter = adapter_of(model).prepared_by(preprocessing)
    remarks = (*adapter.remarks, *filter(None, [remark_on_precision(adapter.model)]))
    if family_of(model) is not None:
        return remarks
    ((path, tower),) = towers_in(model).items()
    inside = (
        f"the model is a {type(model).__qualname__}: what is exported and judged is its tower `{path}`, a "
        f"{type(tower).__qualname__}, without what comes before and after it"
    )
    return (inside, *remarks)
