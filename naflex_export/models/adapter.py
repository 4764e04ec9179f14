"""What the package needs to know of a family of models: one subclass and one file for each."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor, nn

from naflex_export.errors import RequestError, UnsupportedModelError
from naflex_export.serving.input_formats import Layout

if TYPE_CHECKING:
    from PIL.Image import Image


class Family(ABC):
    """The model side of the package for one family.

    Attributes:
        name: how manifests and messages name the family.
        package: the distribution that defines the models; manifests record its version.
        layout: the three inputs, as the model's own forward takes them.
    """

    name: ClassVar[str]
    package: ClassVar[str]
    layout: ClassVar[Layout]

    @abstractmethod
    def owns(self, model: nn.Module) -> bool:
        """Whether the model belongs to this family."""

    @abstractmethod
    def is_vectorized(self, model: nn.Module) -> bool:
        """Whether the model came out of `vectorize`."""

    @abstractmethod
    def vectorize(self, model: nn.Module) -> nn.Module:
        """Return a loop-free model that shares the parameters of `model`.

        Raises:
            UnsupportedModelError: an option of the model is not known here; the message names it.
        """

    @abstractmethod
    def encoder(self, model: nn.Module, outputs: tuple[str, ...]) -> nn.Module:
        """Return a module that takes the three inputs and gives the named outputs as a tuple of tensors.

        Raises:
            RequestError: the family has no output of that name.
        """

    @abstractmethod
    def embedding(self, model: nn.Module) -> nn.Module:
        """Return a module that takes the three inputs and gives what the first block gets, as a tuple of tensors.

        That is the projected patches with their position embedding, and rotary embeddings where there are any; no mask.
        """

    @abstractmethod
    def without_position(self, model: nn.Module) -> nn.Module:
        """Return the model with no position embedding of any kind, all else the same and shared."""

    def tower(self, model: nn.Module) -> nn.Module:
        """Return the part of the model whose forward takes the three inputs: by default all of it."""
        return model

    def unpack(self, output: Any) -> Any:
        """Return what a forward of the tower gave as a tensor, or as a dict of tensors by output name."""
        return output

    def ignored_inputs(self, model: nn.Module) -> tuple[str, ...]:
        """Return the inputs, by name, that the model itself makes no use of: by default it uses all three."""
        return ()

    @abstractmethod
    def token_width(self, model: nn.Module) -> int:
        """Number of values in a flattened patch."""

    @abstractmethod
    def num_prefix_tokens(self, model: nn.Module) -> int:
        """Number of class and register tokens ahead of the patches in the output `tokens`."""

    @abstractmethod
    def num_classes(self, model: nn.Module) -> int:
        """Number of classes in the output `features`, 0 where it holds no logits."""

    @abstractmethod
    def preprocessing(self, model: nn.Module) -> dict[str, Any]:
        """Return what turns a photo into patches, as plain JSON values."""

    @abstractmethod
    def transform(self, model: nn.Module, tokens: int) -> Callable[[Image], dict[str, Tensor]]:
        """Return the family's own transform from an RGB photo to `patches`, `patch_coord` and `patch_valid`."""

    @abstractmethod
    def describe(self, model: nn.Module) -> dict[str, Any]:
        """Return the architecture's name and configuration, as plain JSON values."""

    def at_patch_size(self, model: nn.Module, patch_size: int) -> Family:
        """Return the family as it is for flat patches of another size than the model's own.

        Its `vectorize` folds the resampled patch projection into the weight; its `encoder` of an untouched model lets
        the model resample by itself.

        Raises:
            UnsupportedModelError: the model takes no patches of other sizes.
        """
        raise UnsupportedModelError(
            f"patch size {patch_size} cannot be had: models of {self.name} take one patch size only"
        )


def check_outputs(outputs: tuple[str, ...]) -> None:
    """Check the names of the outputs asked for.

    Raises:
        RequestError: there is none, one is unknown, or one is there twice.
    """
    unknown = [name for name in outputs if name not in ("features", "tokens")]
    if unknown or not outputs or len(set(outputs)) != len(outputs):
        raise RequestError(f"outputs={outputs!r}: expected 'features', 'tokens' or both")
