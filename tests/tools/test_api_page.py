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
