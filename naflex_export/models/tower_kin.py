"""Towers that are one family under several names: transformers writes each model's classes out, under names of its own.

The forward of a family's towers is written once, ahead of whichever of these classes a tower is of. Classes are made
when a tower of theirs is met, for importing all of transformers' modules takes seconds, and a release may lack some.
"""

from __future__ import annotations

import importlib
from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple

from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutputWithPooling

from naflex_export.models.packing import Packing
from naflex_export.models.tower import JoinedQkvAttention, TowerAdapter, VectorizedTower
from naflex_export.models.tower_call import tower_call


class Kin(NamedTuple):
    """What a tower of a family is called in a model of transformers.

    Attributes:
        package: of the model, in `transformers.models`.
        tower: the class of the tower.
        attention: the class of its attention.
        output: the class of what it returns; transformers' own for pooled outputs where it is empty.
        attends: what is put ahead of the class of attention.
    """

    package: str
    tower: str
    attention: str
    output: str = ""
    attends: type[nn.Module] = JoinedQkvAttention

    @property
    def module(self) -> str:
        """The module that defines the classes."""
        return f"transformers.models.{self.package}.modeling_{self.package}"


class KinTower(VectorizedTower):
    """The first class of a vectorized tower whose family has kin.

    Attributes:
        output_class: of what a call returns.
    """

    output_class: ClassVar[type[BaseModelOutputWithPooling]]

    @tower_call
    def forward(
        self, hidden_states: Tensor, grid_thw: Tensor, positions: Tensor | None = None, **kwargs: Any
    ) -> BaseModelOutputWithPooling:
        """Return the tower's outputs, as `encoded` gives them.

        Args:
            hidden_states: [T, D] patches, those of a token one after the other.
            grid_thw: [B, 3].
            positions: [N] as of `VectorizedTower.packing`.
            kwargs: transformers' own; none changes what is computed.
        """
        packing = self.packing(hidden_states, grid_thw, positions)
        return self.output_class(**self.encoded(hidden_states, grid_thw, packing))

    @abstractmethod
    def encoded(self, hidden_states: Tensor, grid_thw: Tensor, packing: Packing) -> dict[str, Any]:
        """Return the values of `output_class`, by name.

        Args:
            hidden_states: [T, D] as of a call.
            grid_thw: [B, 3] as of a call.
            packing: where the patches lie.
        """


class KinAdapter(TowerAdapter):
    """Of a family of towers with kin.

    Attributes:
        kin: the towers.
        forward_class: what is put ahead of a tower's class.
    """

    kin: ClassVar[tuple[Kin, ...]]
    forward_class: ClassVar[type[KinTower]]

    @classmethod
    def kin_of(cls, model: object) -> Kin | None:
        """Return what a tower is; None where it is none of the family."""
        names = {(base.__module__, base.__name__) for base in type(model).__mro__}
        return next((kin for kin in cls.kin if (kin.module, kin.tower) in names), None)

    @classmethod
    def owns(cls, model: object) -> bool:
        return cls.kin_of(model) is not None

    @property
    def own_class(self) -> type[nn.Module]:
        return next(iter(self.own_twins))

    @property
    def own_twins(self) -> Mapping[type[nn.Module], type[nn.Module]]:
        kin = self.kin_of(self.model)
        assert kin is not None  # or the model would be of another family
        return _twins(kin, self.forward_class)


_made: dict[Kin, Mapping[type[nn.Module], type[nn.Module]]] = {}


def _twins(kin: Kin, forward_class: type[KinTower]) -> Mapping[type[nn.Module], type[nn.Module]]:
    """Return what stands in for each of transformers' classes, made once; the tower's first."""
    if kin in _made:
        return _made[kin]
    defined = importlib.import_module(kin.module)
    output = getattr(defined, kin.output) if kin.output else BaseModelOutputWithPooling
    made = {}
    for name, ahead, attributes in (
        (kin.tower, forward_class, {"output_class": output}),
        (kin.attention, kin.attends, {}),
    ):
        kind: type[nn.Module] = getattr(defined, name)
        said = {"__module__": forward_class.__module__, "__doc__": f"`{name}` within each image of a pack."}
        made[kind] = type(f"Vectorized{name}", (ahead, kind), {**said, **attributes})
    return _made.setdefault(kin, made)


def twin_named(name: str, adapter: type[KinAdapter]) -> Any:
    """Return the class of a vectorized tower, or of its attention, by its name: what unpickling asks a module for.

    Args:
        name: such as `VectorizedQwen3VLVisionModel`.
        adapter: of the family.

    Raises:
        AttributeError: the family has none of that name.
    """
    for kin in adapter.kin:
        if name in (f"Vectorized{kin.tower}", f"Vectorized{kin.attention}"):
            return next(twin for twin in _twins(kin, adapter.forward_class).values() if twin.__name__ == name)
    raise AttributeError(f"module {adapter.__module__!r} has no attribute {name!r}")
