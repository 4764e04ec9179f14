"""One ExportedProgram for all targets: the vectorized encoder with batch and tokens left open."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from naflex_export.cases import noise_batch
from naflex_export.errors import BuildError, RequestError
from naflex_export.grid import Bucket, Grid, check_buckets
from naflex_export.models import Family, family_of

DTYPES: dict[str, torch.dtype] = {
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
}

EXAMPLE = (Grid(2, 5), Grid(4, 2), Grid(1, 11))
"""Grids of the batch a model is traced with. No judged case has its shape, 3 images of 11 tokens."""

EXAMPLE_TOKENS = 11


@dataclass(frozen=True)
class TensorSpec:
    """Name, dtype and shape of a graph's input or output; open dimensions are named `batch` and `tokens`."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]

    def __str__(self) -> str:
        return f"{self.name}: {self.dtype} [{', '.join(map(str, self.shape))}]"


@dataclass(frozen=True)
class Program:
    """A traced encoder and what there is to know of it without running it.

    Attributes:
        exported: the graph, its weights in the program's dtype.
        inputs, outputs: their names, dtypes and shapes.
        buckets: what the graph is to serve, ordered by tokens.
        dtype: "float32", "float16" or "bfloat16".
        dim_names: what the graph's own symbols stand for, such as {"s36": "batch"}.
    """

    exported: ExportedProgram
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    buckets: tuple[Bucket, ...]
    dtype: str
    dim_names: dict[str, str]


def check_dtype(dtype: str) -> torch.dtype:
    """Return torch's dtype of that name.

    Raises:
        RequestError: it is not one of `DTYPES`.
    """
    if dtype not in DTYPES:
        raise RequestError(f"dtype {dtype!r} is not supported: expected one of {', '.join(DTYPES)}")
    return DTYPES[dtype]


def trace(
    model: nn.Module,
    buckets: Sequence[Bucket],
    dtype: str = "float32",
    outputs: Sequence[str] = ("features",),
    patch_size: int | None = None,
) -> Program:
    """Return the vectorized model as one graph with named dynamic dimensions.

    The weights are copied before they are cast, so `model` keeps its own dtype and mode. The graph is on the model's
    device.

    Args:
        model: a model that `vectorize` takes, not yet vectorized.
        buckets: their largest tokens and batch bound the graph's dimensions.
        dtype: of the weights and of the floating inputs and outputs.
        outputs: names of the outputs, in order.
        patch_size: fold the patch projection, resampled to this size, into the weight; by default the model's own.

    Raises:
        RequestError: a dtype, bucket, output name or patch size is not possible.
        BuildError: torch.export refused, or fixed a dimension that must stay open.
    """
    family, torch_dtype, ordered = family_of(model, patch_size), check_dtype(dtype), check_buckets(buckets)
    own = copy.deepcopy(family.vectorize(model)).to(torch_dtype).eval()
    encoder = family.encoder(own, tuple(outputs)).eval()
    # the example must fit, whatever the buckets are; a Runner holds its callers to the buckets
    batch = Dim("batch", min=1, max=max(len(EXAMPLE), *(bucket.batch[2] for bucket in ordered)))
    tokens = Dim("tokens", min=1, max=max(EXAMPLE_TOKENS, ordered[-1].tokens))

    example = example_inputs(family, own, torch_dtype)
    dynamic_shapes = family.layout.open_dims(batch, tokens)
    try:
        with torch.no_grad():
            exported = torch.export.export(encoder, example, dynamic_shapes=dynamic_shapes, strict=False)
    except Exception as error:  # whatever torch.export raises, it is about this model's graph
        raise BuildError(f"torch.export refused {type(model).__qualname__}: {error}") from error
    return _describe(exported, family, tuple(outputs), ordered, dtype)


def example_inputs(family: Family, model: nn.Module, dtype: torch.dtype) -> tuple[Tensor, ...]:
    """Return the inputs a model is traced with."""
    batch = noise_batch("example", EXAMPLE, EXAMPLE_TOKENS, family.token_width(model))
    device = next(model.parameters()).device
    return tuple(
        tensor.to(device, dtype if tensor.is_floating_point() else tensor.dtype)
        for tensor in family.layout.arrange(batch)
    )


def _describe(
    exported: ExportedProgram,
    family: Family,
    outputs: tuple[str, ...],
    buckets: tuple[Bucket, ...],
    dtype: str,
) -> Program:
    placeholders = {node.name: node.meta["val"] for node in exported.graph.nodes if node.op == "placeholder"}
    in_values = [placeholders[name] for name in exported.graph_signature.user_inputs]
    (result,) = (node for node in exported.graph.nodes if node.op == "output")
    out_values = [node.meta["val"] for node in result.args[0]]

    dim_names = {}
    for size, name in zip(in_values[0].shape[:2], ("batch", "tokens"), strict=True):
        if isinstance(size, int):
            raise BuildError(f"torch.export fixed {name} at {size}: the graph would serve that size alone")
        dim_names[str(size)] = name

    def spec(name: str, value: Tensor) -> TensorSpec:
        shape = tuple(size if isinstance(size, int) else _rename(str(size), dim_names) for size in value.shape)
        return TensorSpec(name, str(value.dtype).removeprefix("torch."), shape)

    return Program(
        exported=exported,
        inputs=tuple(spec(name, value) for name, value in zip(family.layout.names, in_values, strict=True)),
        outputs=tuple(spec(name, value) for name, value in zip(outputs, out_values, strict=True)),
        buckets=buckets,
        dtype=dtype,
        dim_names=dim_names,
    )


def _rename(expression: str, dim_names: dict[str, str]) -> str:
    for symbol, name in dim_names.items():
        expression = expression.replace(symbol, name)
    return expression
