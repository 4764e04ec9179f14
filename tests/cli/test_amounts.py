"""Amounts are shown in a unit in which they are more than nothing."""

from __future__ import annotations

import pytest

from naflex_export.cli.amounts import bytes_in_words, parameters_in_words, seconds_in_words


@pytest.mark.parametrize(
    ("amount", "said"),
    [
        (0, "0 bytes"), (1, "1 byte"), (1023, "1023 bytes"), (1024, "1.0 KiB"), (3500, "3.4 KiB"),
        (2**20 - 1, "1.0 MiB"), (2**20, "1.0 MiB"), (389_021_696, "371.0 MiB"), (2**30 - 1, "1.0 GiB"),
        (5 * 2**40, "5120.0 GiB"),
    ],
)  # fmt: skip
def test_bytes_have_a_unit_that_shows_them(amount: int, said: str) -> None:
    assert bytes_in_words(amount) == said


def test_estimates_of_time_and_parameters_are_never_nothing() -> None:
    assert [seconds_in_words(one) for one in (0.01, 1.2, 119, 240)] == [
        "under a second", "about 1 s", "about 119 s", "about 4 min",
    ]  # fmt: skip
    assert [parameters_in_words(one) for one in (19_266, 92_884_224)] == [
        "19,266 parameters",
        "92.9 million parameters",
    ]
