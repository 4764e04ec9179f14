"""A Ray of this machine alone for tests, in processes of its own, and scripts that are run beside it."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path

MARK = "NAFLEX_TEST_RAY"
"""Is in the environment of all processes of a test's Ray, by which they are told from those of others."""

HOLD = """
import logging, sys, ray
ray.init(
    address="local", include_dashboard=False, num_cpus=4, object_store_memory=200 * 2**20, log_to_driver=False,
    logging_level=logging.ERROR,
)
print(ray.get_runtime_context().gcs_address, flush=True)
sys.stdin.read()
"""


@contextlib.contextmanager
def head() -> Iterator[dict[str, str]]:
    """Run a Ray that listens on the loopback for as long as the block runs; the environment of those that use it.

    RAY_ADDRESS says where it is.
    """
    root = str(Path(__file__).parents[1])
    environment = {
        **os.environ,
        "PYTHONPATH": root,
        "OMP_NUM_THREADS": "1",
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_AUTH_MODE": "disabled",  # or the token that Ray makes for itself would be the first one's alone
        MARK: uuid.uuid4().hex,
    }
    command = [sys.executable, "-c", HOLD]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, env=environment, **pipes) as holder:
        assert holder.stdin is not None and holder.stdout is not None
        try:
            address = holder.stdout.readline().strip()
            assert address.startswith("127.0.0.1:"), address
            yield {**environment, "RAY_ADDRESS": address}
        finally:
            holder.stdin.close()  # by which it comes to its end, and ends those that it started
            holder.wait(60)


def run(code: str, *arguments: object, env: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    """Run a script to its end and return what became of it.

    Args:
        code: of the script.
        arguments: of it.
        env: as `head` gives it.
    """
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, check=False, capture_output=True, text=True, timeout=600, env=dict(env))
