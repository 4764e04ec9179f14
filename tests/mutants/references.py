"""Wrong references: such as would prove nothing, or are none."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

import naflex_export as nx
from mutants.mutant import true


@dataclass(frozen=True)
class WrongReference:
    """A reference that the gate must not take: what is wrong, how to make it, the dtype asked for, what the gate says.

    The candidate is the reference itself, in that dtype, so that nothing else can be what fails.
    """

    fault: str
    make: Callable[[], nn.Module]
    says: str
    dtype: str = "float32"


def with_head(value: float, bias: bool) -> nn.Module:
    """Return the classifier with every weight of its head, and every bias if asked to, at a value."""
    model = true(torch.float32)
    nn.init.constant_(model.head.weight, value)
    if bias:
        nn.init.constant_(model.head.bias, value)
    return model


def overflowing_reference() -> nn.Module:
    """Return a classifier that is finite in float32, and not in float16."""
    model = true(torch.float32)
    with torch.no_grad():
        model.blocks[0].mlp.fc1.weight.mul_(3e5)
    return model


WRONG_REFERENCES = {
    "untrained-head": WrongReference(
        "The head's weights are zero, as timm leaves them: logits are its bias.",
        lambda: with_head(0.0, bias=False),
        says="the reference's output proves nothing: it is the same for every image",
    ),
    "zero": WrongReference(
        "The head is zero, bias and all.",
        lambda: with_head(0.0, bias=True),
        says="the reference's output proves nothing: it is zero everywhere: an untrained head, perhaps",
    ),
    "not-a-number": WrongReference(
        "The weights hold NaN, so that every output does.",
        lambda: with_head(float("nan"), bias=False),
        says="the reference's output proves nothing: it holds values that are not finite",
    ),
    "overflows-in-float16": WrongReference(
        "Eager itself overflows in the dtype asked for: no candidate could be right.",
        overflowing_reference,
        says="eager itself is not finite in this dtype: keep the model in float32, or try bfloat16",
        dtype="float16",
    ),
    "vectorized": WrongReference(
        "The reference has been through `vectorize`: a fault there would stand on both sides.",
        lambda: nx.vectorize(true(torch.float32)),
        says="the reference is a vectorized model",
    ),
}
