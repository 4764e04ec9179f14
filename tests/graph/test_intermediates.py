"""Which values of a graph are what a module gives, by name."""

from __future__ import annotations

import torch
from torch import nn

from naflex_export.graph.intermediates import OUTSIDE, Edge, Place, fitting, module_outputs, tap_names


def test_modules_to_tap_are_those_of_a_block_and_all_outside_of_it(siglip: nn.Module) -> None:
    names = tap_names(siglip)
    assert {"embeds.proj", "blocks.1", "blocks.1.attn", "attn_pool.mlp.fc1"} <= set(names)
    assert "blocks.1.attn.qkv" not in names


def test_what_may_be_a_modules_output() -> None:
    """In these graphs a module m, of which m.part is a part; every value is named after its maker."""
    part, whole, other = Place(frozenset({"m", "m.part"})), Place(frozenset({"m"})), Place(frozenset({"n"}))
    assert module_outputs([Edge("a", part, (whole,)), Edge("b", whole, (other, OUTSIDE))]) == {
        "m.part": ["a"],
        "m": ["b"],
    }
    assert module_outputs([Edge("a", whole, (other,)), Edge("b", whole, (OUTSIDE,))]) == {"m": ["a", "b"]}
    without = Place.of([], [whole, whole])  # a node that the exporter made up, read within m only
    assert without == Place(frozenset({"m"}), certain=False)
    assert module_outputs([Edge("a", part, (without,)), Edge("b", whole, (OUTSIDE,))]) == {"m": ["b"]}
    assert module_outputs([Edge("a", whole, (Place.of([], [other]),))]) == {}
    assert Place.of(["_empty_nn_module_stack_from_metadata_hook"], [whole]) == Place(frozenset({"m"}), certain=False)
    assert Place.of(["", "model", "model.m"], []) == whole


def test_of_values_that_may_be_an_output_the_one_of_its_shape_is() -> None:
    two, three = torch.zeros(2), torch.zeros(3)
    shapes = {"m": torch.Size([2]), "n": torch.Size([2])}
    assert fitting([("m", three), ("m", two), ("n", two), ("n", two.clone())], shapes) == {"m": two}
