"""The table of a bench on screens of any width."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from naflex_export.bench.techniques import Figures
from naflex_export.bench.timing import Timing
from naflex_export.cli.figures import HEADINGS, figures_table

FOUND = [
    Figures("eager", 8, 256, Timing((0.4123, 0.5)), 1.0, 2**27, 0.0, 0.1, 0.138),
    Figures("eager, compiled", 8, 256, failure="no compiler"),
    Figures("artifact", 8, 256, Timing((0.1, 0.11)), 3.97, 2**26, 2.7e-7),
]


@pytest.mark.parametrize("width", [44, 50, 60, 80, 120])
def test_no_number_is_cut_and_a_narrow_screen_has_fewer(width: int) -> None:
    screen = io.StringIO()
    Console(file=screen, width=width).print(figures_table(FOUND, "8 images of 256 tokens", width))
    shown = screen.getvalue()
    assert max(map(len, shown.splitlines())) <= width
    assert "…" not in shown
    assert all(word in shown for word in ("eager, compiled", "456.1", "3.97x", "2.7e-07"))
    assert [heading in shown for heading in HEADINGS].count(False) == {44: 4, 50: 3, 60: 2}.get(width, 0)
