"""A look at what `vectorize` made: the embedding of the original and of the vectorized model, on two tiny grids.

Names of options are compared with those of known releases, but no list of names knows that a method now means something
else, or that a class was patched. Numbers do.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

from naflex_export.batch import noise_batch
from naflex_export.errors import UnsupportedModelError
from naflex_export.grid import Grid
from naflex_export.models.adapter import ModelAdapter
from naflex_export.models.copies import WEIGHT_HOOKS, shared_copy
from naflex_export.resample.autocast import full_precision

GRIDS = (Grid(2, 3), Grid(3, 2))
TOKENS = 7

LIMIT = 1e-4
"""Largest difference that passes in float32, as a share of the largest value; 6e-8 is usual. In others, 8 roundings."""


def check_embedding(adapter: ModelAdapter, vectorized: ModelAdapter) -> None:
    """Check that a model and its vectorized copy embed alike; nothing where the model itself cannot be run as it is.

    Neither the model's mode, nor its hooks, nor any generator of random numbers has a part in it.

    Args:
        adapter: of the model, not vectorized.
        vectorized: what it was made into.

    Raises:
        UnsupportedModelError: they do not, or the vectorized copy cannot be run.
    """
    probe = _probe(adapter)
    state = [*probe.parameters(), *probe.buffers()]
    if not state or any(tensor.is_meta or isinstance(tensor, FakeTensor) for tensor in state):
        return
    device, dtype = state[0].device, state[0].dtype
    if not dtype.is_floating_point:
        return
    with torch.device("cpu"):
        batch = noise_batch("self-check", GRIDS, TOKENS, adapter.token_width)
        arranged = adapter.input_format.arrange(batch)
    inputs = [tensor.to(device, dtype if tensor.is_floating_point() else tensor.dtype) for tensor in arranged]
    with torch.no_grad(), full_precision(device.type):
        try:
            expected = probe(*inputs)
        except Exception:  # a device or dtype that eager does not run on, or whole images only: nothing to compare with
            return
        try:
            found = _probe(vectorized)(*inputs)
        except Exception as error:
            raise UnsupportedModelError(
                f"the vectorized model cannot be run where the original can ({type(error).__name__}: {error}): is "
                f"{adapter.package} a release that this one was not written for?"
            ) from error
    far = max(_share(one, other) for one, other in zip(found, expected, strict=True))
    limit = max(LIMIT, 8 * torch.finfo(dtype).eps)
    if not far <= limit:
        raise UnsupportedModelError(
            f"the vectorized model embeds grids of {GRIDS[0]} and {GRIDS[1]} patches otherwise than the original, by "
            f"{far:.1e} of the largest value (expected {limit:.0e}): {adapter.package} is a release that this one was "
            "not written for, or its classes were patched"
        )


def _probe(adapter: ModelAdapter) -> nn.Module:
    """Return a model's embedding alone, in eval mode and without hooks, in a copy that shares its tensors."""
    embedding = shared_copy(adapter.embedding()).eval()
    _unhook(embedding)
    return embedding


def _share(found: Tensor, expected: Tensor) -> float:
    """Return the largest difference as a share of the largest value; 0 where the original's values are no numbers."""
    if not bool(expected.isfinite().all()):
        return 0.0
    if found.shape != expected.shape:
        return float("inf")
    difference = float((found.double() - expected.double()).abs().max())
    return difference and difference / max(float(expected.double().abs().max()), 1e-30)


def _unhook(model: nn.Module) -> None:
    """Take off all hooks but those that make a weight."""
    for module in model.modules():
        module._forward_hooks.clear()
        for key, hook in list(module._forward_pre_hooks.items()):
            if not isinstance(hook, WEIGHT_HOOKS):
                del module._forward_pre_hooks[key]
