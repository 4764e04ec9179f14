"""Which quantized layers to keep, so that the others pass: each layer's own part in the error, from the eager model."""

from __future__ import annotations

import math

import torch

from naflex_export.accuracy.comparison import Comparison, float32_reference
from naflex_export.batch import Batch, picked
from naflex_export.models.copies import whole_copy
from naflex_export.models.kept_parts import blocks_of
from naflex_export.models.quantized import quantize_eagerly, quantized_layers

MARGIN = 0.5
"""Of the limit: how far off the layers that are left may be together, for a graph's scales are not an eager model's."""

IMAGES = 2
"""That each layer is tried on."""


def layers_to_keep(comparison: Comparison, batch: Batch) -> tuple[str, ...]:
    """Return the fewest modules whose layers to keep unquantized, besides those kept already.

    Errors of layers add in squares, for one knows nothing of another. Each layer is quantized alone, in an eager copy.

    Args:
        comparison: of a candidate with quantized layers.
        batch: to try them on.
    """
    part = picked(batch, range(min(IMAGES, len(batch.grids))))
    precision, output = comparison.precision, comparison.outputs[0]
    wanted = comparison.reference_of(part)[output]
    valid = comparison.valid_in(part, wanted)
    adapter = float32_reference(comparison.reference)
    twin = adapter.of(whole_copy(adapter.model))
    encoder, inputs = twin.encoder(comparison.outputs), comparison.reference.input_format.arrange(part)
    errors: dict[str, float] = {}
    for name in quantized_layers(adapter, precision):
        layer = twin.tower.get_submodule(name)
        weight = layer.weight.detach().clone()  # type: ignore[operator]
        handles = quantize_eagerly(twin, [name], precision.quantized)
        with torch.no_grad():
            given = encoder(*inputs)[comparison.outputs.index(output)]
            layer.weight.copy_(weight)  # type: ignore[operator]
        for handle in handles:
            handle.remove()
        kept = torch.ones_like(wanted, dtype=torch.bool) if valid is None else valid.unsqueeze(-1)
        difference, whole = (torch.where(kept, one, 0).double().norm() for one in (given - wanted, wanted))
        errors[name] = float(difference / whole) if math.isfinite(difference) else math.inf
    return _as_blocks(_largest(errors, MARGIN * comparison.limits.relative_l2), errors, blocks_of(adapter))


def _largest(errors: dict[str, float], allowed: float) -> list[str]:
    """Return the fewest names without which the others' errors are at most as large, together; one at least."""
    ordered = sorted(errors, key=lambda name: -errors[name])
    for count in range(1, len(ordered) + 1):
        if math.sqrt(sum(errors[name] ** 2 for name in ordered[count:])) <= allowed:
            return ordered[:count]
    return ordered


def _as_blocks(names: list[str], errors: dict[str, float], blocks: tuple[str, ...]) -> tuple[str, ...]:
    """Return the names in the model's order, a block's own in place of all of its layers."""
    found: dict[str, None] = {}
    for name in errors:
        block = next(block for block in blocks if name.startswith(f"{block}."))
        whole = all(other in names for other in errors if other.startswith(f"{block}."))
        if name in names:
            found[block if whole else name] = None
    return tuple(found)
