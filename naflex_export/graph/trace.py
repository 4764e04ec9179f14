"""One ExportedProgram for all targets: the vectorized encoder with batch and tokens left open."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from naflex_export.errors import BuildError
from naflex_export.graph.checks import check_program, require
from naflex_export.graph.mask_limits import leave_room_for_scores
from naflex_export.graph.program import Program, name_dims
from naflex_export.graph.size_conditions import export_for_all_sizes
from naflex_export.grid import Bucket, Grid, check_buckets
from naflex_export.models.encoder_adapter import EncoderAdapter
from naflex_export.models.mixed_precision import cast_encoder, cast_model, keeping_softmax
from naflex_export.precision import ALL_LOW, FLOAT32, Kept, Precision
from naflex_export.resample.stored import StoredMatrices, are_stored, reading
from naflex_export.serving.signature import OpenSize, TensorSpec

EXAMPLE = (Grid(2, 5), Grid(4, 2), Grid(1, 11))
"""Grids of the batch a model is traced with. No judged case has its shape, 3 images of 11 tokens."""

EXAMPLE_TOKENS = 11

PACKED_SIZES = {
    "images": len(EXAMPLE),
    "tokens": sum(grid.tokens for grid in EXAMPLE),
    "longest": EXAMPLE_TOKENS,
    "rows": sum(grid.height for grid in EXAMPLE),
}
"""The sizes of the same batch packed."""

_LEAST = Bucket(EXAMPLE_TOKENS, (1, 1, len(EXAMPLE)))
"""What every graph serves, whatever its buckets: the example must fit."""


def trace(
    adapter: EncoderAdapter,
    buckets: Sequence[Bucket],
    precision: Precision = FLOAT32,
    outputs: Sequence[str] = ("features",),
    matrices: str | None = None,
) -> Program:
    """Return the vectorized model as one graph with named dynamic dimensions.

    The weights are copied before they are cast, so the model keeps its own dtype and mode. The graph is on the model's
    device. Where patches have another size than the model's own, the resampled patch projection is in its weight.

    Args:
        adapter: of a model that is not yet vectorized.
        buckets: their largest tokens and batch bound the graph's dimensions.
        precision: of the weights and of the floating inputs and outputs.
        outputs: names of the outputs, in order.
        matrices: "stored" or "computed": where the weights of a learned grid come from; None for the rule of
            `resample/stored.py`.

    Raises:
        RequestError: a bucket or output name is not possible, or matrices were to be stored that cannot be.
        BuildError: torch.export refused, or the graph fails a check of `graph/checks.py`.
    """
    own, stored = adapter.vectorized().own_copy(), None
    if stores_matrices(own, buckets, precision, matrices):
        stored = StoredMatrices.of(own.position_axes, _longest(own, buckets), next(own.model.parameters()).device)
    kept = cast_model(own, precision)
    own.model.eval()
    return capture(
        cast_encoder(own.encoder(tuple(outputs)), precision).eval(),
        dict(zip(own.input_format.names, example_inputs(own, precision.torch_dtype), strict=True)),
        open_dims=own.input_format.open_dims,
        buckets=buckets,
        precision=precision,
        outputs=outputs,
        ignored=own.ignored_inputs,
        kept=kept,
        stored=stored,
    )


def stores_matrices(
    adapter: EncoderAdapter, buckets: Sequence[Bucket], precision: Precision, matrices: str | None
) -> bool:
    """Whether a model's graph is to hold its resampling matrices.

    Args:
        adapter: of the model.
        buckets: that the graph serves; their most tokens are the longest side that a grid can have.
        precision: of the weights.
        matrices: "stored", "computed", or None for the rule; packed graphs store them only where they are asked to.

    Raises:
        RequestError: matrices were to be stored that cannot be.
    """
    if adapter.input_format.is_packed and matrices is None:
        return False  # where a token is one of several patches, sides are long and tables large
    weights = sum(parameter.numel() for parameter in adapter.model.parameters()) * precision.torch_dtype.itemsize
    return are_stored(matrices, adapter.position_axes, _longest(adapter, buckets), weights)


def _longest(adapter: EncoderAdapter, buckets: Sequence[Bucket]) -> int:
    """Return the longest side that a grid can have, in patches: all tokens in one row or column."""
    return adapter.input_format.patches_along(max((bucket.tokens for bucket in buckets), default=1))


def capture(
    encoder: nn.Module,
    example: dict[str, Tensor],
    *,
    open_dims: Sequence[dict[int, str]],
    buckets: Sequence[Bucket],
    precision: Precision,
    outputs: Sequence[str],
    ignored: tuple[str, ...] = (),
    kept: Kept = ALL_LOW,
    stored: StoredMatrices | None = None,
) -> Program:
    """Return a module as one graph with named dynamic dimensions, checked.

    Args:
        encoder: the module; its forward takes the inputs in order and returns a tuple of the outputs.
        example: inputs to trace with, by name, of `EXAMPLE`'s batch and tokens.
        open_dims: the axes of each input that stay open, and their names.
        buckets: their largest tokens and batch bound the graph's dimensions.
        precision: of the weights and of the floating inputs and outputs.
        outputs: names of the outputs, in order.
        ignored: inputs that the model itself makes no use of.
        kept: what of the model is in float32 all the same.
        stored: resampling matrices that the graph is to hold; without, it computes weights.

    Raises:
        RequestError: there is no bucket, or two alike.
        BuildError: torch.export refused, or the graph fails a check of `graph/checks.py`.
    """
    ordered = check_buckets(buckets)
    # the example must fit, whatever the buckets are; a Runner holds its callers to the buckets
    names = {name for axes in open_dims for name in axes.values()}
    example_sizes = PACKED_SIZES if "images" in names else {"batch": len(EXAMPLE), "tokens": EXAMPLE_TOKENS}
    dims: dict[str, Any] = {
        name: Dim(name, min=1, max=max(size, *(bucket.dims_of(names)[name].largest for bucket in ordered)))
        for name, size in example_sizes.items()
        if any(OpenSize.of(opened).name == name for opened in names)
    }
    if "images + 1" in names:  # a dimension of its own, which no graph ties to the other
        dims["images + 1"] = Dim("ends", min=2, max=1 + max(bucket.batch[2] for bucket in (*ordered, _LEAST)))
    for name in names - set(dims):
        opened = OpenSize.of(name)
        dims[name] = opened.factor * dims[opened.name]
    dynamic_shapes = tuple({axis: dims[name] for axis, name in axes.items()} for axes in open_dims)
    try:
        with torch.no_grad(), keeping_softmax(kept), reading(stored):
            exported = export_for_all_sizes(encoder, tuple(example.values()), dynamic_shapes)
    except Exception as error:  # whatever torch.export raises, it is about this model's graph
        raise BuildError(f"torch.export refused the model: {error}") from error
    if precision.dtype != "float32":
        leave_room_for_scores(exported, precision.torch_dtype)
    dim_names = _dim_names(exported, open_dims)
    inputs, results = _values(exported)
    program = Program(
        exported=exported,
        inputs=tuple(_spec(name, value, dim_names) for name, value in zip(example, inputs, strict=True)),
        outputs=tuple(_spec(name, value, dim_names) for name, value in zip(outputs, results, strict=True)),
        buckets=ordered,
        precision=precision,
        dim_names=dim_names,
        ignored=ignored,
        kept=kept,
        stores_matrices=stored is not None,
    )
    require(check_program(program, open_dims))
    return program


def example_inputs(adapter: EncoderAdapter, dtype: torch.dtype) -> tuple[Tensor, ...]:
    """Return the inputs a model is traced with."""
    batch = adapter.input_format.example(
        "example", EXAMPLE, adapter.fixed_tokens or EXAMPLE_TOKENS, adapter.token_width
    )
    device = next(adapter.model.parameters()).device
    return tuple(
        tensor.to(device, dtype if tensor.is_floating_point() else tensor.dtype)
        for tensor in adapter.input_format.arrange(batch)
    )


def _values(exported: ExportedProgram) -> tuple[list[Tensor], list[Tensor]]:
    """Return what stands for the inputs, and for the outputs, in the graph: tensors of a shape and no contents."""
    placeholders = {node.name: node.meta["val"] for node in exported.graph.nodes if node.op == "placeholder"}
    (result,) = (node for node in exported.graph.nodes if node.op == "output")
    inputs = [placeholders[name] for name in exported.graph_signature.user_inputs]
    return inputs, [node.meta["val"] for node in result.args[0]]


def _dim_names(exported: ExportedProgram, open_dims: Sequence[dict[int, str]]) -> dict[str, str]:
    inputs, _ = _values(exported)
    names: dict[str, str] = {}
    for value, axes in zip(inputs, open_dims, strict=True):
        for axis, name in axes.items():
            size: Any = value.shape[axis]
            if not isinstance(size, int):  # one that torch fixed, which `check_open` reports
                is_multiple = OpenSize.of(name).factor > 1
                names[str(size).rpartition("*")[2]] = OpenSize.of(name).name if is_multiple else name
    return names


def _spec(name: str, value: Tensor, dim_names: dict[str, str]) -> TensorSpec:
    sizes = (str(size) for size in value.shape)  # torch has symbols that stand for one number, too
    shape = tuple(int(size) if size.isdecimal() else name_dims(size, dim_names) for size in sizes)
    return TensorSpec(name, str(value.dtype).removeprefix("torch."), shape)
