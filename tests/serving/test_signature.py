"""Named tensors with named dimensions: their sizes, and padding by a dimension's name."""

from __future__ import annotations

import torch

from naflex_export.serving.input_formats import TIMM, TRANSFORMERS
from naflex_export.serving.signature import TensorSpec, sizes_of
from naflex_export.serving.tensors import padded, without_last

SPECS = (
    TensorSpec("patches", "float32", ("batch", "tokens", 12)),
    TensorSpec("shapes", "int64", ("batch", 2)),
    TensorSpec("mask", "bool", ("tokens", "batch")),
)
TENSORS = (torch.ones(2, 3, 12), torch.ones(2, 2, dtype=torch.int64), torch.ones(3, 2, dtype=torch.bool))


def test_sizes_go_by_name_wherever_the_dimension_is() -> None:
    assert sizes_of(SPECS, TENSORS) == {"batch": 2, "tokens": 3}
    assert [spec.at({"batch": 2, "tokens": 3}) for spec in SPECS] == [tuple(tensor.shape) for tensor in TENSORS]
    assert [spec.axis_of("tokens") for spec in SPECS] == [1, None, 0]


def test_a_row_is_added_along_the_named_dimension_and_nowhere_else() -> None:
    patches, shapes, mask = padded(SPECS, TENSORS, "tokens")
    assert patches.shape == (2, 4, 12) and mask.shape == (4, 2) and shapes is TENSORS[1]
    assert not patches[:, 3].any() and not mask[3].any()
    assert torch.equal(patches[:, :3], TENSORS[0]) and torch.equal(mask[:3], TENSORS[2])


def test_an_output_loses_the_row_where_its_size_is_computed_too() -> None:
    tokens, features = (
        TensorSpec("tokens", "float32", ("batch", "4 + tokens", 8)),
        TensorSpec("f", "float32", ("batch", 8)),
    )
    value = torch.randn(2, 6, 8)
    assert torch.equal(without_last(tokens, value, "tokens"), value[:, :5])
    assert without_last(features, value[:, 0], "tokens").shape == (2, 8)


def test_formats_name_the_open_dimensions() -> None:
    assert TIMM.open_dims == ({0: "batch", 1: "tokens"}, {0: "batch", 1: "tokens"}, {0: "batch", 1: "tokens"})
    assert TRANSFORMERS.open_dims == ({0: "batch", 1: "tokens"}, {0: "batch", 1: "tokens"}, {0: "batch"})
