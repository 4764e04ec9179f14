"""What the way to a first artifact costs: README's commands, what a command is charged for, and the page."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import first_artifact
import pytest
import record


def test_the_page_is_current() -> None:
    text = first_artifact.PAGE.read_text(encoding="utf-8")
    assert first_artifact.page(text) == text, "run python tools/first_artifact.py --page"


def test_readme_begins_with_an_install_and_an_export() -> None:
    text = (record.ROOT / "README.md").read_text(encoding="utf-8")
    install, export = first_artifact.readme_commands(text)
    assert install.startswith("pip install ") and export.startswith("naflex-export ")
    with pytest.raises(ValueError, match="holds 3 lines: expected 2"):
        first_artifact.readme_commands("```sh\none\ntwo\nthree\n```")


def test_a_command_is_charged_for_its_children_and_not_for_waiting(tmp_path: Path) -> None:
    burn = "import time; end = time.process_time() + 0.3\nwhile time.process_time() < end: pass"
    (tmp_path / "burn.py").write_text(burn, encoding="utf-8")
    cost = first_artifact.cost_of(f"sleep 0.5 && {sys.executable} burn.py && true", tmp_path, os.environ)
    assert 0.3 <= cost.processor < cost.clock and cost.clock >= 0.8


def test_a_command_that_fails_says_what_it_said(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="ended with 3: no room"):
        first_artifact.cost_of("echo no room >&2; exit 3", tmp_path, os.environ)


def test_the_disk_is_what_files_take(tmp_path: Path) -> None:
    (tmp_path / "weights").write_bytes(os.urandom(3_000_000))
    (tmp_path / "link").symlink_to(tmp_path / "weights")  # counted once
    assert 3.0 <= first_artifact.disk_mb(tmp_path) < 3.1
