"""Runs pytest again and again, each time in a fork of a process that has imported the libraries it was given by name.

It reads requests from standard input, a line of JSON each: `tree`, `tests` and `timeout` in seconds; and answers with
pytest's exit code, or -1 where it did not end, and with what pytest printed. Nothing of the package is imported ahead.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Sequence
from pathlib import Path

import pytest


def main() -> None:
    """Answer each request."""
    for name in sys.argv[1:]:
        importlib.import_module(name)
    for line in sys.stdin:
        request = json.loads(line)
        with tempfile.NamedTemporaryFile("r", encoding="utf-8") as said:
            code = forked(request["tree"], request["tests"], request["timeout"], Path(said.name))
            print(json.dumps({"code": code, "said": said.read()}), flush=True)


def forked(tree: str, tests: Sequence[str], timeout: float, said: Path) -> int:
    """Return pytest's exit code, or -1 where it does not end.

    Args:
        tree: where the tests and the package are.
        tests: files, or tests in them.
        timeout: in seconds.
        said: the file that takes what is printed.
    """
    child = os.fork()
    if child == 0:
        os.setsid()  # so that what it starts can be ended with it
        _run(tree, tests, said)
    end = time.monotonic() + timeout
    while time.monotonic() < end:
        found, status = os.waitpid(child, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.05)
    os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return -1


def _run(tree: str, tests: Sequence[str], said: Path) -> None:
    output = os.open(said, os.O_WRONLY)
    for stream in (1, 2):
        os.dup2(output, stream)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.chdir(tree)
    os.environ["PYTHONPATH"] = tree  # for what the tests start
    sys.path.insert(0, tree)
    sys.dont_write_bytecode = True
    code = 1
    try:
        quiet = ("-W", "ignore::pytest.PytestAssertRewriteWarning")  # what is imported holds no tests
        code = int(pytest.main(["-x", "-q", "-n", "0", "-p", "no:cacheprovider", "--tb=line", *quiet, *tests]))
    except BaseException:  # whatever it is, the fork ends here
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    main()
