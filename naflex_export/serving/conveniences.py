"""What a Runner does around a call: arrays for tensors, other dtypes, large batches."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from naflex_export.errors import InputError
from naflex_export.serving.manifest import Manifest
from naflex_export.serving.signature import ARRAYS, check_dtype

FLOATS = ("float16", "float32", "float64")
"""Floating dtypes that both numpy and torch have, and that can be cast where that is asked for."""


def are_arrays(given: Sequence[object], manifest: Manifest) -> bool:
    """Return whether all inputs are numpy's: then so are the outputs.

    Args:
        given: one for each input.
        manifest: the artifact's.

    Raises:
        InputError: some are numpy's, and others torch's.
    """
    array = _first_of(np.ndarray, given)
    tensor = _first_of(Tensor, given)
    if array is not None and tensor is not None and len(given) == len(manifest.inputs):
        names = [spec.name for spec in manifest.inputs]
        raise InputError(
            f"{names[array]} is a numpy array and {names[tensor]} a torch tensor: expected all of one kind"
        )
    return bool(given) and all(isinstance(one, np.ndarray) for one in given)


def _first_of(kind: type, given: Sequence[object]) -> int | None:
    return next((place for place, one in enumerate(given) if isinstance(one, kind)), None)


def from_arrays(given: Sequence[Any], manifest: Manifest, casts: bool) -> tuple[Tensor, ...]:
    """Return arrays as tensors, however they lie in memory. Of an artifact in bfloat16, float32 ones become that.

    Args:
        given: arrays, one for each input.
        manifest: the artifact's.
        casts: whether floating ones may be of another dtype than the artifact takes.

    Raises:
        InputError: one has a dtype that the artifact does not take.
    """
    tensors = []
    for spec, array in zip(manifest.inputs, given, strict=False):  # the check says where there are too many
        native = array.dtype.newbyteorder("=")
        expected = "float32" if spec.dtype == "bfloat16" else spec.dtype
        if not (casts and native.name in FLOATS and expected in FLOATS):
            check_dtype(spec.name, str(native), expected, ARRAYS)
        tensors.append(torch.from_numpy(np.require(array, native, ["C", "ALIGNED", "WRITEABLE", "ENSUREARRAY"])))
    found = (*tensors, *given[len(tensors) :])
    return cast(found, manifest) if manifest.dtype == "bfloat16" else found


def as_array(output: Tensor) -> Any:
    """Return an output as numpy's, in float32 where it is in bfloat16."""
    found = output.detach().cpu()
    return (found.float() if found.dtype == torch.bfloat16 else found).numpy()


def cast(given: Sequence[Any], manifest: Manifest) -> tuple[Any, ...]:
    """Return inputs with floating tensors in the artifact's dtype; anything else as it is.

    Args:
        given: one for each input.
        manifest: the artifact's.
    """
    wanted = manifest.precision.torch_dtype
    return tuple(one.to(wanted) if isinstance(one, Tensor) and one.is_floating_point() else one for one in given)


def parts_of(given: Sequence[Any], manifest: Manifest) -> list[tuple[Any, ...]]:
    """Return a batch in parts of about one size that each fit into a bucket; as it is where it fits, or is no batch.

    Args:
        given: one for each input.
        manifest: the artifact's.
    """
    whole = [tuple(given)]
    if manifest.packed:
        return whole
    specs = manifest.inputs
    shapes = [tuple(getattr(one, "shape", ())) for one in given]
    if len(given) != len(specs) or any(len(s) != len(spec.shape) for s, spec in zip(shapes, specs, strict=True)):
        return whole  # the check says what is wrong
    images, tokens = shapes[0][0], shapes[0][1]
    largest = max((bucket.batch[2] for bucket in manifest.buckets if tokens <= bucket.tokens), default=0)
    if not largest or images <= largest or any(shape[0] != images for shape in shapes):
        return whole
    count = math.ceil(images / largest)
    edges = [images * part // count for part in range(count + 1)]
    return [tuple(one[start:end] for one in given) for start, end in itertools.pairwise(edges)]
