"""Grids and buckets."""

from __future__ import annotations

import re
from typing import Any

import pytest

from naflex_export.errors import RequestError
from naflex_export.grid import Bucket, Grid, check_buckets, check_patch_sizes


def test_grid_counts_and_lists_its_patches() -> None:
    assert Grid(2, 3).tokens == 6
    assert Grid(2, 3).coordinates() == [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2)]
    assert str(Grid(7, 23)) == "7x23"


def test_bucket_round_trips_through_text() -> None:
    assert Bucket.parse("256:1,8,32") == Bucket(256, (1, 8, 32))
    assert Bucket.parse(" 576 ") == Bucket(576)
    assert Bucket.parse(str(Bucket(64, (2, 2, 4)))) == Bucket(64, (2, 2, 4))


@pytest.mark.parametrize("text", ["", "x", "256:1,8", "256:1,8,32,64", "-3", "256:", "25.6:1,2,3", "256:1;8;32"])
def test_malformed_bucket_names_the_text_and_the_form(text: str) -> None:
    with pytest.raises(RequestError, match=re.escape(f"bucket {text!r} is malformed: expected TOKENS")):
        Bucket.parse(text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("256:8,1,32", "expected min <= opt <= max"),
        ("256:0,1,2", "expected three integers of at least 1"),
        ("0:1,1,1", "tokens=0: expected an integer of at least 1"),
    ],
)
def test_impossible_bucket_says_what_is_expected(text: str, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        Bucket.parse(text)


def test_buckets_are_ordered_and_distinct() -> None:
    assert check_buckets([Bucket(256), Bucket(64)]) == (Bucket(64), Bucket(256))
    with pytest.raises(RequestError, match="no bucket was given"):
        check_buckets([])
    with pytest.raises(RequestError, match="have the same tokens"):
        check_buckets([Bucket(64), Bucket(64, (1, 1, 1))])


def test_a_bucket_has_a_range_for_each_named_dimension() -> None:
    bucket = Bucket(24, (2, 4, 8))
    assert bucket.dims == {"batch": (2, 4, 8), "tokens": (1, 24, 24)}
    assert bucket.takes({"batch": 2, "tokens": 1}) and bucket.takes({"batch": 8, "tokens": 24})
    assert not bucket.takes({"batch": 1, "tokens": 24}) and not bucket.takes({"batch": 9, "tokens": 24})
    assert not bucket.takes({"batch": 2, "tokens": 25})


def test_a_bucket_or_a_number_stands_for_a_list() -> None:
    assert check_buckets([256]) == check_buckets(256) == check_buckets(Bucket(256)) == (Bucket(256),)
    assert check_patch_sizes(16) == (16,)


@pytest.mark.parametrize("wrong", ["256", None, [None], [Bucket, 3], [True], 0, 2.0])
def test_what_is_no_bucket_is_refused(wrong: Any) -> None:
    with pytest.raises(RequestError, match="expected"):
        check_buckets(wrong)
