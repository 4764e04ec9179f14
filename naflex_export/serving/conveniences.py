"""What a Runner does around a call: arrays for tensors, other dtypes, large batches, a card of itself."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from naflex_export.serving.manifest import Manifest


def are_arrays(given: Sequence[object]) -> bool:
    """Whether all inputs are numpy's: then so are the outputs."""
    return bool(given) and all(isinstance(one, np.ndarray) for one in given)


def from_arrays(given: Sequence[Any], manifest: Manifest) -> tuple[Tensor, ...]:
    """Return arrays as tensors; floating ones in bfloat16 where the artifact is in it, for numpy has none.

    Args:
        given: arrays, one for each input.
        manifest: the artifact's.
    """
    tensors = [torch.from_numpy(one if one.flags.writeable else one.copy()) for one in given]
    return cast(tensors, manifest) if manifest.dtype == "bfloat16" else tuple(tensors)


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


def card(manifest: Manifest, kind: str, device: torch.device) -> str:
    """Return what an artifact is in a few lines, as a Runner of it shows itself.

    Args:
        manifest: its own.
        kind: of Runner.
        device: where it runs.
    """
    source, gate = manifest.model.get("source", {}), manifest.gate
    name = source.get("model") or manifest.model.get("architecture") or manifest.model.get("family", "a model")
    weights = source.get("weights", "")
    lines = [f"{kind}: {name}, {manifest.target} in {manifest.precision}, on {device}"]
    lines += [f"  in   {spec}" for spec in manifest.inputs]
    lines += [f"  out  {spec}" for spec in manifest.outputs]
    lines += [f"  buckets (tokens:least,usual,most images): {'; '.join(map(str, manifest.buckets))}"]
    if weights:
        lines.append(f"  weights: {'random, a dry run' if weights == 'random' else weights}")
    if not gate:
        lines.append("  gate: no verdict")
    else:
        error = gate.get("worst", {}).get("relative_l2")
        figure = f", worst relative L2 {error:.1e}" if isinstance(error, float) else ""
        lines.append(f"  gate: {'passed' if gate.get('passed') else 'FAILED'}, on {gate.get('judged', '?')}{figure}")
    return "\n".join(lines)
