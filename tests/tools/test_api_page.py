"""docs/api.md is written from the code, and current."""

from __future__ import annotations

import api_page

import naflex_export as nx


def test_the_page_is_current() -> None:
    assert api_page.PAGE.read_text(encoding="utf-8") == api_page.page(), "run python tools/api_page.py"


def test_every_public_name_has_its_place() -> None:
    page = api_page.page()
    for name in nx.__all__:
        assert f"### nx.{name}\n" in page or f"### {name}\n" in page or f"- `{name}`: " in page


def test_what_callers_make_shows_what_it_takes_and_its_defaults() -> None:
    page = api_page.page()
    assert "Bucket(tokens: int = 256, batch: tuple[int, int, int] = (1, 8, 32))\n" in page
    assert "Grid(height: int, width: int)\n" in page
    assert "    clock: Callable[[], float] = time.monotonic,\n" in page
    assert set(api_page.RESULTS) < set(nx.__all__) and "\nRunner(" not in page
    assert "<" not in "".join(page.split("```")[1::2])  # no object of Python's, as it prints itself


def test_sections_are_lists() -> None:
    """The site takes lines for a list only behind an empty line."""
    assert "**Args**\n\n- `model`: " in api_page.page()
