"""`compile`: a live model, vectorized and under torch.compile."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from naflex_export.batch import noise_batch
from naflex_export.errors import RequestError
from naflex_export.graph.intermediates import (
    Once,
    Shapes,
    Tapped,
    listening,
)
from naflex_export.grid import Bucket, Grid, check_buckets
from naflex_export.models import adapter_of
from naflex_export.models.vectorize import vectorize


class CompiledModel(nn.Module):
    """A vectorized model under `torch.compile`, one graph for any grid, batch size and token count.

    torch specializes a dimension of size 1, so a batch of one image gets a graph of its own: two in all, in each mode
    (train or eval, gradients on or off) that is used. Images of a single token would take two more, and are not worth
    them: they run uncompiled. Parameters and `state_dict` keys are those of the model. Of a model of images and texts,
    the image tower is compiled and called.

    Attributes:
        model: the vectorized model; it shares the parameters of the model it was made from.
    """

    _compiled: Callable[..., Any]

    def __init__(self, model: nn.Module, buckets: Sequence[Bucket], **options: Any) -> None:
        super().__init__()
        self.model = vectorize(model)
        self.train(model.training)
        self._adapter = adapter_of(self.model)
        self._buckets, self._options = check_buckets(buckets), options
        compiled = torch.compile(self._tower, fullgraph=True, dynamic=True, **options)
        object.__setattr__(self, "_compiled", compiled)  # as a submodule it would hold every parameter once more

    @property
    def _tower(self) -> nn.Module:
        """The part of the model that sees images."""
        return self._adapter.tower

    def forward(self, *inputs: Any, **named: Any) -> Any:
        """Return what the model returns, for its own inputs: tensors, by name or in order, or timm's dict of them."""
        names = self._adapter.input_format.names
        if len(inputs) == 1 and isinstance(inputs[0], Mapping) and not named:
            inputs = tuple(inputs[0][name] for name in names)
        patches = inputs[0] if inputs else named.get(names[0])
        if isinstance(patches, Tensor) and patches.shape[1] == 1:
            return self._tower(*inputs, **named)
        if torch.compiler.is_compiling():  # part of a larger graph, whose settings are not ours
            return self._compiled(*inputs, **named)
        # With `dynamic`, torch would make inputs of the model's float attributes, such as a drop rate: it then compiles
        # a training graph twice, and fails where a size depends on one inside a checkpoint (torch 2.14).
        with torch._dynamo.config.patch(specialize_float=True):
            return self._compiled(*inputs, **named)

    def warmup(self) -> CompiledModel:
        """Compile now what the first calls would compile, in the model's present mode, dtype and device; return self.

        Runs a batch of one and a batch of several, of each bucket's usual size, forward only.
        """
        parameter = next(self.model.parameters())
        width = self._adapter.token_width
        for bucket in self._buckets:
            for size in sorted({1, max(2, bucket.batch[1])}):
                batch = noise_batch("warmup", [Grid(1, bucket.tokens)] * size, bucket.tokens, width)
                inputs = [tensor.to(parameter.device) for tensor in self._adapter.input_format.arrange(batch)]
                inputs[0] = inputs[0].to(parameter.dtype)
                self(*inputs)
        return self

    def taps(self, inputs: tuple[Tensor, ...], modules: Shapes) -> Tapped:
        """Return the outputs of these modules, from the model compiled once more so that it gives them too."""
        tower, seen = self._tower, Once()

        def run(*inputs: Tensor) -> tuple[Any, dict[str, Tensor]]:
            given = tower(*inputs)
            return given, dict(seen.values)

        with listening(tower, modules, seen.take), torch._dynamo.config.patch(specialize_float=True):
            compiled = torch.compile(run, fullgraph=True, dynamic=True, **self._options)
            given, values = compiled(*inputs)
        found = self._adapter.unpack(given)
        return Tapped(values, found if isinstance(found, dict) else {"features": found})

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """Return the model's own state, under the model's own keys."""
        return self.model.state_dict(*args, **kwargs)

    def load_state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """Load a state under the model's own keys."""
        return self.model.load_state_dict(*args, **kwargs)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        """Take the model's own keys from a wrapper too, such as DistributedDataParallel, which loads child by child."""
        for key in [key for key in state_dict if key.startswith(prefix)]:
            state_dict[f"{prefix}model.{key.removeprefix(prefix)}"] = state_dict.pop(key)
        super()._load_from_state_dict(state_dict, prefix, *args)


def compile(model: nn.Module, buckets: Sequence[Bucket] | None = None, **options: Any) -> CompiledModel:
    """Return the model vectorized and compiled as one graph, ready for any grid; `.warmup()` compiles ahead.

    Args:
        model: a model that `vectorize` takes. Parameters are shared with it.
        buckets: shapes that `warmup` compiles with; every other shape is served by the same graphs.
        options: passed on to `torch.compile`, such as `mode="max-autotune"`.

    Raises:
        RequestError: `fullgraph` or `dynamic` is among the options; both are always on.
        UnsupportedModelError: the model, or one of its options, is not known to this release.
    """
    fixed = {"fullgraph", "dynamic"} & set(options)
    if fixed:
        raise RequestError(f"option {sorted(fixed)[0]!r} cannot be given: fullgraph and dynamic are always on")
    return CompiledModel(model, buckets or [Bucket()], **options)
