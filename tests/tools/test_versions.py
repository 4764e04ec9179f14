"""The page of releases, from its rows, and what a row says."""

from __future__ import annotations

import check_versions
import pytest
import record
import torch
from torch import nn


def test_the_page_is_current() -> None:
    page = check_versions.page(record.read(check_versions.ROWS))
    assert check_versions.PAGE.read_text(encoding="utf-8") == page, "run python tools/check_versions.py --page"


def test_a_release_says_what_became_of_each_configuration(monkeypatch: pytest.MonkeyPatch) -> None:
    make = check_versions.timm_model
    assert (
        check_versions._outcome("timm: bicubic", lambda: make({"pos_embed_interp_mode": "bicubic"}))["outcome"]
        == "passes"
    )
    assert check_versions._outcome("timm: none", lambda: make({"no_such_option": 1}))["outcome"] == "absent"

    def unknown() -> nn.Module | None:
        model = make({})
        assert model is not None
        model.embeds.pos_embed_rotation = True
        return model

    assert check_versions._outcome("timm: unknown", unknown)["outcome"] == "refused"
    monkeypatch.setattr(check_versions, "share", lambda found, expected: 0.5)
    assert check_versions._outcome("timm: wrong", lambda: make({}))["outcome"] == "fails"
    broken = check_versions._outcome("timm: broken", lambda: nn.Linear(2, torch.tensor(1.5)))  # type: ignore[arg-type]
    assert broken["outcome"] == "eager fails" and "TypeError" in broken["why"]


def test_releases_of_python_have_rows_of_their_own() -> None:
    rows = record.read(check_versions.ROWS)
    text = check_versions.page(rows)
    assert [python for python in ("3.13", "3.14") if f"| here | {python} | 2.14.1 |" not in text] == []
