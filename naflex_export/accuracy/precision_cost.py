"""What it costs to keep parts of a model in float32, estimated: a multiple of the time that all takes in 16 bits.

Counted, not measured: multiply-adds, and values that are moved to and from memory, of one image of as many tokens as a
bucket takes. It orders choices, and says what a step of a search is worth; `naflex-bench` says what is true of a GPU.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from naflex_export.batch import noise_batch
from naflex_export.graph.intermediates import listening
from naflex_export.grid import Grid
from naflex_export.models.adapter import ModelAdapter
from naflex_export.models.kept_parts import blocks_of, is_norm, kept_of
from naflex_export.precision import Precision

FLOAT32_FACTOR = 8
"""How many times as long a product takes in float32, without TF32, as in 16 bits on tensor cores.

By peak rates 8 on a T4, 16 on an A100, 15 on an H100, 4 on an L4.
"""

PRODUCTS_PER_BYTE = 100
"""Multiply-adds in 16 bits in the time that it takes to move a byte: an A100's 156e12 beside 1.6e12 bytes a second."""


@dataclass(frozen=True)
class Costs:
    """What each part of a model costs, in multiply-adds of 16 bits.

    Attributes:
        adapter: of the model.
        products: multiply-adds of each module that has a matrix, by its name.
        scores: of the product of queries and keys, by the name of the attention.
        moved: values of its scores.
        normed: values that each norm gives.
        streams: values of the tokens that each block gives.
    """

    adapter: ModelAdapter
    products: Mapping[str, float]
    scores: Mapping[str, float]
    moved: Mapping[str, float]
    normed: Mapping[str, float]
    streams: Mapping[str, float]

    @classmethod
    def of(cls, adapter: ModelAdapter, tokens: int) -> Costs:
        """Return the costs of a model at a number of tokens.

        Args:
            adapter: of the model, in float32 on a CPU.
            tokens: of one image.
        """
        modules, blocks = dict(adapter.tower.named_modules()), blocks_of(adapter)
        products, scores, moved, normed, streams = (dict[str, float]() for _ in range(5))

        def take(name: str, output: Tensor) -> None:
            module = modules[name]
            if isinstance(module, nn.Linear | nn.Conv2d):
                products[name] = output.numel() / module.weight.shape[0] * module.weight.numel()
            elif is_norm(module):
                normed[name] = output.numel()
            elif "attention" in type(module).__name__.lower():
                scores[name] = output.numel() * tokens
                moved[name] = getattr(module, "num_heads", 1) * output.shape[-2] * tokens
            elif name in blocks:
                streams[name] = output.numel()

        batch = noise_batch("cost", [Grid(1, tokens)], tokens, adapter.token_width)
        with torch.no_grad(), listening(adapter.tower, modules, take):
            adapter.encoder(adapter.default_outputs)(*adapter.input_format.arrange(batch))
        return cls(adapter, products, scores, moved, normed, streams)

    def of_precision(self, precision: Precision) -> float:
        """Return the estimated time of a precision: 1 for all in 16 bits.

        Args:
            precision: of 16 bits, with any parts of the model in float32.
        """
        kept = kept_of(self.adapter, precision)
        per_value = 2 * PRODUCTS_PER_BYTE  # of two bytes more than in 16 bits
        extra = sum((FLOAT32_FACTOR - 1) * cost for name, cost in self.products.items() if kept.holds(name))
        extra += sum((FLOAT32_FACTOR - 1) * 2 * cost for name, cost in self.scores.items() if kept.holds(name))
        extra += sum(per_value * values for name, values in self.normed.items() if kept.holds(name))
        if kept.softmax:
            extra += sum((FLOAT32_FACTOR - 1) * cost for name, cost in self.scores.items() if not kept.holds(name))
            # written, masked and normalized, none of it fused
            extra += 6 * per_value * sum(values for name, values in self.moved.items() if not kept.holds(name))
        if kept.residual:
            extra += 4 * per_value * sum(self.streams.values())  # two sums a block, each read and written
        return 1 + extra / self.low

    @property
    def low(self) -> float:
        """What all in 16 bits costs."""
        moved = 2 * sum(self.normed.values()) + 4 * sum(self.streams.values())
        return sum(self.products.values()) + 2 * sum(self.scores.values()) + 2 * PRODUCTS_PER_BYTE * moved
