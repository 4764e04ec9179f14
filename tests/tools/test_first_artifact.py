"""What the way to a first artifact costs: README's commands, what a command is charged for, and the page."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

import first_artifact
import pytest
import record


def test_the_page_is_current() -> None:
    text = first_artifact.PAGE.read_text(encoding="utf-8")
    assert first_artifact.page(text) == text, "run python tools/first_artifact.py --page"


def test_readme_says_what_torch_without_cuda_saves() -> None:
    """A figure there is of the newest row of its way to install, as in the table."""
    text = (record.ROOT / "README.md").read_text(encoding="utf-8")
    said = re.search(r"out: (\d+) CPU s to that artifact in\s+place of (\d+), (\S+) GB in place of (\S+)\.", text)
    found = {row["installer"].partition("torch")[0]: row for row in record.read(first_artifact.ROWS)}
    rows = found["uv, "], found["pip"]
    assert said is not None
    assert said.groups()[:2] == tuple(f"{first_artifact.cpu_seconds(row):.0f}" for row in rows)
    assert said.groups()[2:] == tuple(f"{float(row['disk_mb']) / 1000:.1f}" for row in rows)


def test_a_share_is_of_the_first_row() -> None:
    said = {"installer": "pip", "install_s": "1", "export": "naflex-export", "export_s": "1"}
    first = {**said, "commit": "a", "install_cpu_s": "60", "export_cpu_s": "40", "disk_mb": "6400"}
    then = {**said, "commit": "b", "install_cpu_s": "8", "export_cpu_s": "32", "disk_mb": "1300"}
    lines = first_artifact.tables([first, {**then, "export": "naflex-export --quick"}]).splitlines()
    assert lines[-2] == "| a | pip |  | 60 | 40 | 100.0 | 1.00 | 6.4 | 1.00 |"
    assert lines[-1] == "| b | pip | `--quick` | 8 | 32 | 40.0 | 0.40 | 1.3 | 0.20 |"


def test_readme_begins_with_an_install_and_an_export() -> None:
    text = (record.ROOT / "README.md").read_text(encoding="utf-8")
    install, export = first_artifact.readme_commands(text)
    assert install.startswith("pip install ") and export.startswith("naflex-export ")
    with pytest.raises(ValueError, match="holds 3 lines: expected 2"):
        first_artifact.readme_commands("```sh\none\ntwo\nthree\n```")


def test_wheels_of_a_folder_take_the_place_of_the_two_packages_alone(tmp_path: Path) -> None:
    for wheel in ("torch-2.13.0+cpu", "torchvision-0.28.0+cpu"):
        (tmp_path / f"{wheel}-cp311-cp311-linux_x86_64.whl").touch()
    versions = first_artifact.versions_of(tmp_path)
    assert versions == {"torch": "2.13.0+cpu", "torchvision": "0.28.0+cpu"}
    text = first_artifact.pinned("# tested\ntorch==2.14.1\ntorchvision==0.29.1\ntqdm==4.70.1\n", versions)
    assert text == "# tested\ntqdm==4.70.1\ntorch==2.13.0+cpu\ntorchvision==0.28.0+cpu\n"
    command = first_artifact.from_wheels("pip install -c constraints.txt .", Path("a b"), Path("pins.txt"))
    assert command == "pip install -c pins.txt --find-links 'a b' ."
    with pytest.raises(ValueError, match="expected '-c constraints.txt' in it"):
        first_artifact.from_wheels("pip install .", tmp_path, tmp_path)


def test_a_folder_without_both_wheels_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="holds none: expected a wheel of torch, one of torchvision"):
        first_artifact.versions_of(tmp_path)
    (tmp_path / "torch-2.13.0+cpu-cp311-cp311-linux_x86_64.whl").touch()
    with pytest.raises(SystemExit, match=r"holds torch-2\.13\.0\+cpu: expected"):
        first_artifact.versions_of(tmp_path)


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
