"""`Runner`: an artifact as a callable that refuses what the artifact was not made for."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import Tensor

from naflex_export.errors import RequestError
from naflex_export.grid import Grid
from naflex_export.serving.card import card
from naflex_export.serving.closing import Closable
from naflex_export.serving.conveniences import are_arrays, as_array, cast, from_arrays, parts_of
from naflex_export.serving.known_formats import input_format_of
from naflex_export.serving.manifest import Manifest
from naflex_export.serving.signature import check_inputs, in_order
from naflex_export.serving.tensors import TENSORS, plain

if TYPE_CHECKING:
    from naflex_export.serving.text import TextEncoder


class Runner(Closable, ABC):
    """Runs an artifact on the inputs of its model. `close()`, or the end of a `with` block, gives back what it holds.

    Attributes:
        manifest: what the artifact says of itself.
        input_format: how its model takes a batch.
        device: where it runs; inputs may come from anywhere, outputs are there.
        check_inputs: look at the values of coordinates, grids and masks before each call, and put zeros where patches
            are padding. On a GPU this waits for them. Without it, a wrong grid or mask gives wrong numbers and no
            error, an image of padding only gives features of nothing, and a NaN in padding spreads.
        cast: bring floating inputs into the artifact's dtype, in place of refusing others. Off by default: a model that
            hands over another dtype than it was exported in may be another model.
        split: run a batch that is larger than any bucket in parts of about one size, in place of refusing it. Off by
            default. A pack is refused all the same: make several, of fewer images.
        folder_handle: keeps hold of the folder that the artifact was loaded from, whatever is published there since.
        opens_text: opens the text tower beside it; None where there is no folder to open it from.
    """

    def __init__(self, manifest: Manifest, device: torch.device) -> None:
        self.manifest = manifest
        self.input_format = input_format_of([spec.name for spec in manifest.inputs], manifest.inputs[0].shape)
        self.device = device
        self.check_inputs = True
        self.cast = self.split = False
        self.folder_handle: object = None
        self.opens_text: Callable[[], TextEncoder] | None = None
        self._text: TextEncoder | None = None

    def __call__(self, *inputs: Tensor | Mapping[str, Tensor], **named: Tensor) -> Tensor | dict[str, Tensor]:
        """Return what the eager model returns: a tensor for one output, a dict by name for several.

        Numpy arrays in give numpy arrays out; in bfloat16, which numpy has not, both are float32.
        Outputs have no gradients, whatever mode the caller is in, and are in the artifact's dtype under autocast too.

        Args:
            inputs: tensors of the manifest's `inputs`, in that order. For a timm model: patches [B, N, D] in the
                artifact's dtype, coordinates [B, N, 2] int64 as (y, x) and validity [B, N] bool; coordinates of
                padding must be zero. For a transformers model: patches likewise, mask [B, N] int32 and grids [B, 2]
                int64 as (height, width). Valid tokens come first, row by row, at least one an image; what padding
                holds of patches does not matter. They may be given as one mapping by name. Packed: what `nx.pack`
                gives, of which `positions` may be left out.
            named: the same tensors, by name.

        Raises:
            InputError: a rank, dtype, shape, grid, batch or token count is not what the artifact accepts.
            ClosedError: it was closed.
        """
        self.refuse_closed()
        inputs, named = self.input_format.completed(inputs, named)
        given: Any = in_order(self.manifest.inputs, inputs, named)
        arrays = are_arrays(given, self.manifest)
        if arrays:
            given = from_arrays(given, self.manifest, self.cast)
        if self.cast:
            given = cast(given, self.manifest)
        parts = [self._outputs_of(part) for part in (parts_of(given, self.manifest) if self.split else [given])]
        found: list[Any] = parts[0] if len(parts) == 1 else [torch.cat(pieces) for pieces in zip(*parts, strict=True)]
        outputs = [as_array(output) for output in found] if arrays else found
        return outputs[0] if len(outputs) == 1 else dict(zip(self.output_names, outputs, strict=True))

    def _outputs_of(self, given: Any) -> list[Tensor]:
        """Return the outputs for inputs of one bucket, once they are checked."""
        self.check(*given)
        with torch.inference_mode(False), torch.no_grad():  # one mode for all: tensors know theirs
            tensors = tuple(plain(tensor, self.device) for tensor in given)
            if self.check_inputs:
                tensors = self.input_format.without_padding(tensors)
            return self.execute(tensors)

    def warmup(self) -> Self:
        """Run each bucket's smallest, usual and largest batch once, so that no caller waits for what first calls do.

        That is compiling, for a `compile` artifact, and memory and kernels anywhere. Returns the Runner itself.
        """
        for bucket in self.manifest.buckets:
            for images in dict.fromkeys(bucket.batch):
                self(*self.example("warmup", images, bucket.tokens))
        return self

    def example(self, name: str, images: int, tokens: int) -> tuple[Tensor, ...]:
        """Return inputs of no meaning, as many images of as many tokens, in the artifact's dtype.

        Args:
            name: that the values are drawn from.
            images: of the batch.
            tokens: of each, valid ones in a row.
        """
        width = self.input_format.token_width(self.manifest.inputs[0].shape)
        batch = self.input_format.example(name, [Grid(1, tokens)] * images, tokens, width)
        return cast(self.input_format.arrange(batch), self.manifest)

    def __repr__(self) -> str:
        """Return what the artifact is, what it takes and gives, and what the gate said of it."""
        return card(self.manifest, self.kind, self.device)

    @property
    def text(self) -> TextEncoder:
        """The text tower: `run.text(["a photo of a cat"])` gives vectors [texts, C]. It is opened when first used.

        Raises:
            RequestError: the artifact has none.
            ArtifactError, BackendError: its tokenizer or graph cannot be loaded.
            ClosedError: the Runner was closed.
        """
        self.refuse_closed()
        if self._text is None:
            if self.opens_text is None:
                raise RequestError(
                    "the artifact has no text tower: export the model again with --tower image,text, in Python "
                    "towers=('image', 'text')"
                )
            self._text = self.opens_text()
        return self._text

    @property
    def output_names(self) -> list[str]:
        """Names of the outputs, in order."""
        return [spec.name for spec in self.manifest.outputs]

    @abstractmethod
    def execute(self, inputs: tuple[Tensor, ...]) -> list[Tensor]:
        """Return the outputs, in the manifest's order, for checked inputs that are on the device."""

    def trim(self) -> None:
        """Give back memory that the backend keeps between calls; nothing where memory is torch's own."""

    def manifest_for(self, inputs: Sequence[object]) -> Manifest:
        """Return the manifest of what runs these inputs: the artifact's own, or that of one patch size in it."""
        return self.manifest

    def check(self, *inputs: Tensor) -> None:
        """Check inputs as a call does, without running anything.

        Raises:
            InputError: they are not what the artifact accepts.
        """
        specs = self.manifest_for(inputs).inputs
        self.input_format.check_sizes(check_inputs(specs, inputs, TENSORS), self.manifest.buckets)
        if self.check_inputs:
            with torch.inference_mode(False), torch.no_grad():
                values = [plain(tensor, tensor.device) for tensor in inputs]
            self.input_format.check(values, max(bucket.tokens for bucket in self.manifest.buckets))
