"""A traced model as data: the graph, and what there is to know of it without running it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from torch.export import ExportedProgram

from naflex_export.grid import Bucket
from naflex_export.precision import ALL_LOW, Kept, Precision
from naflex_export.serving.signature import TensorSpec

OUTPUT_DIMS = {"features": ("batch",), "tokens": ("batch", "tokens")}
"""The open dimensions of each output for padded inputs, by its name; further ones are the model's."""

PACKED_OUTPUT_DIMS = {"features": ("images",), "tokens": ("tokens",)}
"""The same for packed inputs; `tokens` are the prefix tokens of all images, and then all patch tokens.

All other outputs of packed inputs have a row for each token, too.
"""


@dataclass(frozen=True)
class Program:
    """A traced encoder and what there is to know of it without running it.

    Attributes:
        exported: the graph, its weights in the program's precision.
        inputs, outputs: their names, dtypes and shapes.
        buckets: what the graph is to serve, ordered by tokens.
        precision: what the graph computes in.
        dim_names: what the graph's own symbols stand for, such as {"s36": "batch"}.
        ignored: inputs that the model itself makes no use of.
        kept: what of the model is in float32 all the same.
        quantized: names of the layers whose products a graph has in 8 bits; the traced one has none of them yet.
        stores_matrices: whether it holds resampling matrices; else it computes their weights, where it has any.
    """

    exported: ExportedProgram
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    buckets: tuple[Bucket, ...]
    precision: Precision
    dim_names: dict[str, str]
    ignored: tuple[str, ...] = ()
    kept: Kept = ALL_LOW
    stores_matrices: bool = False
    quantized: tuple[str, ...] = ()


def name_dims(text: str, names: Mapping[str, str]) -> str:
    """Return an expression of torch's symbols, such as `4*s36`, with the names given in their place."""
    return re.sub(r"\b[A-Za-z]\w*", lambda symbol: names.get(symbol.group(), symbol.group()), text)
