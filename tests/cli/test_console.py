"""What is printed, as it was said."""

from __future__ import annotations

import subprocess
import sys

import pytest

from naflex_export.cli.console import print_error, print_note
from naflex_export.errors import RequestError


def test_words_between_colons_are_no_pictures(capsys: pytest.CaptureFixture[str]) -> None:
    print_error(RequestError("model 'a' is no module:factory: expected the names of both"))
    print_note("of module:factory: and :x:")
    printed = capsys.readouterr().err
    assert "no module:factory: expected" in printed and "of module:factory: and :x:" in printed


def test_an_error_that_nobody_reads_keeps_its_code() -> None:
    code = "from naflex_export.cli.supervised import work; work('export')"
    script = '{ "$0" -c "$1" no_such_model --target onnx; echo "ended with $?" >&3; } 3>&2 2>&1 | true'
    done = subprocess.run(["sh", "-c", script, sys.executable, code], capture_output=True, text=True, check=False)
    assert done.stderr.strip() == "ended with 2"


def test_libraries_warn_nobody_of_what_is_not_for_them() -> None:
    code = """
import logging, warnings
from naflex_export.cli.options import quiet_libraries
quiet_libraries(False)
import timm, torch, huggingface_hub
for name in ("timm", "torch", "huggingface_hub"):
    logging.getLogger(f"{name}.utils.some").warning(f"a warning of {name}")
warnings.warn("no CUDA runtime is found")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0 and done.stderr == ""
