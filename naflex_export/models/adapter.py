"""A model and what is known of its family, together: one subclass and one file for each family.

A `ModelAdapter` is an `EncoderAdapter` of images, and says besides what only they have: patches, positions, photos.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Collection, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Self

from torch import Tensor, nn

from naflex_export.errors import UnsupportedModelError
from naflex_export.models.copies import replaced_methods
from naflex_export.models.encoder_adapter import EncoderAdapter
from naflex_export.models.original import Original
from naflex_export.models.preprocessing import PHOTO_CHANNELS
from naflex_export.models.text_tower import TextTower

if TYPE_CHECKING:
    from PIL.Image import Image


class ModelAdapter(EncoderAdapter):
    """All that the package asks of a model of images, in the same words for every family.

    Attributes:
        options: further arguments that a forward of the tower takes by name, where its signature does not say.
        patch_size: of the flat patches that the model is given, in pixels, where it is not the model's own; else None.
        given: how photos are prepared, in place of what the model says; None for that.
    """

    options: ClassVar[frozenset[str] | None] = None

    def __init__(self, model: nn.Module, patch_size: int | None = None, given: Mapping[str, Any] | None = None) -> None:
        self.model = model
        self.patch_size = patch_size
        self.given = given

    def of(self, model: nn.Module) -> Self:
        """Return the adapter of another copy of the model, such as one in another dtype, for the same patches."""
        return type(self)(model, self.patch_size, self.given)

    @abstractmethod
    def vectorized(self) -> Self:
        """Return the adapter of a loop-free model that shares the parameters of this one.

        Where patches have another size than the model's own, the resampled patch projection is folded into its weight.

        Raises:
            UnsupportedModelError: an option of the model is not known here; the message names it.
        """

    def text_tower(self, tokenizer: str | None = None) -> TextTower:
        """Return the text tower that the image tower was trained with.

        Args:
            tokenizer: the folder of its tokenizer; None for where the model was loaded from.

        Raises:
            UnsupportedModelError: there is none; the message says what has one.
            RequestError: its tokenizer cannot be had, or is not the model's.
        """
        raise UnsupportedModelError(
            f"models of {self.name} have no text tower: --tower image,text is for transformers' Siglip2Model"
        )

    def be_strict(self) -> None:
        """Let the vectorized model refuse tokens that do not go row by row through a grid."""

    @abstractmethod
    def encoder(self, outputs: tuple[str, ...]) -> nn.Module:
        """Return a module that takes the inputs and gives the named outputs as a tuple of tensors.

        `features` are what a call of the model itself returns, its hooks and an overridden forward included.

        Where patches have another size than the model's own, an untouched model resamples by itself.

        Raises:
            RequestError: the family has no output of that name.
        """

    @abstractmethod
    def embedding(self) -> nn.Module:
        """Return a module that takes the inputs and gives what the first block gets, as a tuple of tensors.

        That is the projected patches with their position embedding, and rotary embeddings where there are any; no mask.
        """

    @abstractmethod
    def without_position(self) -> Self:
        """Return the adapter of the model with no position embedding of any kind, all else the same and shared."""

    def by_interpolate(self) -> Self:
        """Return the adapter of the model that resizes a learned position by `F.interpolate`, image by image.

        It is what typical faults change. By default the model itself: a family overrides this where its library has
        a release that resizes in another way.
        """
        return self

    @property
    def original(self) -> Original:
        """What a vectorized model was made from, to warn where it has changed since."""
        return Original()

    @property
    def remarks(self) -> tuple[str, ...]:
        """What a user should know of an export of the model, a sentence each: by default nothing."""
        return ()

    @property
    @abstractmethod
    def channels(self) -> int:
        """Number of channels of an image."""

    @property
    def why_no_photos(self) -> str:
        """Why the model cannot be judged on photos; empty where it can."""
        if self.channels == PHOTO_CHANNELS:
            return ""
        return f"the model takes images of {self.channels} channel{'s'[: self.channels - 1]}, and photos have 3"

    def prepared_by(self, given: Mapping[str, Any] | None) -> Self:
        """Return the adapter of the same model whose photos are prepared by these settings; by its own for None.

        Raises:
            RequestError: they are not possible for models of this family.
        """
        if given is None:
            return self
        prepared = type(self)(self.model, self.patch_size, given)
        prepared.check_preprocessing()
        return prepared

    @abstractmethod
    def check_preprocessing(self) -> None:
        """Check that what turns photos into patches is known, and possible.

        Raises:
            RequestError: it is not.
        """

    @abstractmethod
    def preprocessing(self) -> dict[str, Any]:
        """Return what turns a photo into patches, as plain JSON values; warn where nobody has said it."""

    @abstractmethod
    def transform(self, tokens: int) -> Callable[[Image], dict[str, Tensor]]:
        """Return the family's own transform from an RGB photo to `patches`, `patch_coord` and `patch_valid`."""

    def at_patch_size(self, patch_size: int) -> Self:
        """Return the adapter of the same model for flat patches of another size than its own.

        Raises:
            UnsupportedModelError: the model takes no patches of other sizes.
        """
        raise UnsupportedModelError(
            f"patch size {patch_size} cannot be had: models of {self.name} take one patch size only"
        )


def one_tensor(given: Any, owner: nn.Module) -> Tensor:
    """Return what a model's own call gave, where that is one tensor.

    Args:
        given: by the call.
        owner: the model.

    Raises:
        UnsupportedModelError: it is something else; the message says what the model would have to return.
    """
    if isinstance(given, Tensor):
        return given
    raise UnsupportedModelError(
        f"a call of the model, a {type(owner).__qualname__}, returns a {type(given).__qualname__}: expected one "
        "tensor, the features. Does its forward, or a hook on it, return something else?"
    )


def refuse_replaced(module: nn.Module, methods: Collection[str], name: str) -> None:
    """Check that an instance has no methods of its own where another class is about to bring them.

    Args:
        module: the instance.
        methods: that the other class brings.
        name: of the instance in its model.

    Raises:
        UnsupportedModelError: it has one; the message names it.
    """
    found = sorted(set(replaced_methods(module)) & set(methods))
    if found:
        raise UnsupportedModelError(
            f"{name}.{found[0]} was replaced on the instance, by a {type(vars(module)[found[0]]).__qualname__}: what "
            f"it does to the position embedding cannot be known; expected {type(module).__qualname__}'s own method"
        )
