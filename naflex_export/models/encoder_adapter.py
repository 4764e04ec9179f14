"""`EncoderAdapter`: what a graph, a gate and an export ask of any encoder; one of images or of texts says more."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar, Self

from torch import Tensor, nn

from naflex_export.models.copies import made_plain, whole_copy
from naflex_export.resample.stored import Axis
from naflex_export.serving.input_formats import InputFormat

Outputs = dict[str, Tensor]
"""What an encoder gives, by the names of its outputs: `features` and `tokens`."""


class EncoderAdapter(ABC):
    """What tracing, casting and judging ask of an encoder, whatever it encodes.

    Attributes:
        name: how manifests and messages name the family.
        package: the distribution that defines the models; manifests record its version.
        input_format: the inputs, as the model's own forward takes them.
        model: the model itself, untouched or vectorized.
        blocks: the name of the tower's list of blocks; empty for the numbered modules that hold most of the weights.
        ahead: the tower's modules ahead of the blocks, where the order in which it has them does not say so.
    """

    name: ClassVar[str]
    package: ClassVar[str]
    blocks: ClassVar[str] = ""
    ahead: ClassVar[tuple[str, ...]] = ()
    input_format: InputFormat
    model: Any

    @abstractmethod
    def of(self, model: nn.Module) -> Self:
        """Return the adapter of another copy of the model, such as one in another dtype."""

    @classmethod
    @abstractmethod
    def owns(cls, model: nn.Module) -> bool:
        """Whether a model belongs to this family."""

    @property
    @abstractmethod
    def is_vectorized(self) -> bool:
        """Whether the model came out of `vectorized`, and that changes it."""

    @abstractmethod
    def vectorized(self) -> Self:
        """Return the adapter of a loop-free model that shares the parameters of this one.

        Raises:
            UnsupportedModelError: an option of the model is not known here; the message names it.
        """

    @abstractmethod
    def encoder(self, outputs: tuple[str, ...]) -> nn.Module:
        """Return a module that takes the inputs and gives the named outputs as a tuple of tensors.

        `features` are what a call of the model itself returns, its hooks and an overridden forward included.

        Raises:
            RequestError: the family has no output of that name.
        """

    def own_copy(self) -> Self:
        """Return the adapter of a copy with tensors of its own, whose weights are plain parameters.

        What `torch.nn.utils.prune` and the `weight_norm` of old make before each forward is made once.
        """
        twin = whole_copy(self.model)
        made_plain(twin)
        return self.of(twin)

    @property
    def tower(self) -> nn.Module:
        """The part of the model whose forward takes the inputs: by default all of it."""
        return self.model

    def unpack(self, output: Any) -> Any:
        """Return what a forward of the tower gave as a tensor, or as a dict of tensors by output name."""
        return output

    @property
    def default_outputs(self) -> tuple[str, ...]:
        """The outputs of an export that asks for none: the features, where the model pools any."""
        return ("features",)

    @property
    def ignored_inputs(self) -> tuple[str, ...]:
        """The inputs, by name, that the model itself makes no use of: by default it uses all."""
        return ()

    @property
    def position_axes(self) -> tuple[Axis, ...]:
        """The axes of learned grids that are read with a weight for every sample: by default none."""
        return ()

    @property
    def fixed_tokens(self) -> int | None:
        """The tokens that every input has, where the model takes one number of them alone; None where it is open."""
        return None

    @property
    @abstractmethod
    def token_width(self) -> int:
        """Number of values in a flattened patch; of text, how many different tokens there are."""

    @property
    def num_prefix_tokens(self) -> int:
        """Number of class and register tokens ahead of the others in the output `tokens`: by default none."""
        return 0

    @property
    def num_classes(self) -> int:
        """Number of classes in the output `features`, 0 where it holds no logits, as by default."""
        return 0

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """Return the architecture's name and configuration, as plain JSON values."""
