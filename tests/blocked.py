"""Code in a process of its own, in which some packages count as not installed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Collection
from pathlib import Path

BLOCKED = ("timm", "transformers", "torchvision", "onnx", "onnx_ir", "onnxscript", "PIL", "matplotlib")
"""What builds artifacts, or draws."""

BLOCKING = """
import json, sys
BLOCKED, folder = json.loads(sys.argv[1]), sys.argv[2]
FINDERS = list(sys.meta_path)


class Installed:
    # finds all that is installed but for what is blocked

    @staticmethod
    def find_spec(name, path=None, target=None):
        if name.partition(".")[0] not in BLOCKED:
            return next((spec for finder in FINDERS if (spec := finder.find_spec(name, path, target))), None)


sys.meta_path[:] = [Installed]
"""


def run_blocked(
    code: str, folder: Path, blocked: Collection[str] = BLOCKED, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run code that knows its `folder`, and may import `json` and `sys` from above.

    Args:
        code: to be run.
        folder: that it is given.
        blocked: packages that it does not find.
        environment: variables beside those of this process.
    """
    return subprocess.run(
        [sys.executable, "-c", BLOCKING + code, json.dumps(list(blocked)), str(folder)],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
