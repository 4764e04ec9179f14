"""Ray, imported where it is needed: a cluster that is there already, or one of this machine alone while it is used.

Whether an address answers is asked by a process of its own: `ray.init` waits for minutes, and cannot be told to stop.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

from naflex_export.errors import BackendError, RequestError, first_line
from naflex_export.serving.optional_package import optional_package

LOCAL, AUTO = "local", "auto"
"""A Ray of this machine alone, and the one that RAY_ADDRESS or this machine's own files name."""

CONNECT_SECONDS, ANSWER_SECONDS = 5, 30
"""How long a port may take to open, and Ray to answer there."""

_ALONE = {
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # by which Ray listens on the loopback alone, whatever the system is
    "RAY_USAGE_STATS_ENABLED": "0",
}


def require_ray(module: str = "") -> Any:
    """Return ray, or a module of it.

    Args:
        module: such as "data"; empty for ray itself.

    Raises:
        BackendError: it is not installed.
    """
    return optional_package("ray", "ray", module)


@contextlib.contextmanager
def cluster(address: str) -> Iterator[Any]:
    """Give ray, connected for as long as the block runs; a connection that is there already is taken as it is.

    Args:
        address: "host:port" as `ray start --head` says it, "auto", or "local" for a Ray of this machine alone, which
            listens on the loopback and ends with the block.

    Raises:
        RequestError: the address is none.
        BackendError: ray is missing, or does not answer at the address within `CONNECT_SECONDS` + `ANSWER_SECONDS`.
    """
    if address == LOCAL and "ray" not in sys.modules:
        for name, value in _ALONE.items():
            os.environ.setdefault(name, value)
    ray = require_ray()
    if ray.is_initialized():
        yield ray
        return
    if address == LOCAL:
        options: dict[str, Any] = {"include_dashboard": False}
    else:
        options = {}
        check_answers(address)
    try:
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, **options)
    except Exception as error:  # Ray's own are of many classes
        raise BackendError(f"Ray at {address!r} cannot be used ({first_line(error)})") from error
    try:
        yield ray
    finally:
        ray.shutdown()


def health_check() -> list[str]:
    """Return the command that asks a Ray whether it is there."""
    return [sys.executable, "-P", "-m", "ray.scripts.scripts", "health-check"]


def check_answers(address: str) -> None:
    """Raise unless Ray answers at an address.

    Args:
        address: "host:port" or "auto".

    Raises:
        RequestError: it is neither.
        BackendError: no Ray answers.
    """
    expected = "expected host:port as `ray start --head` says it, 'auto', or 'local' for a Ray of this machine alone"
    command = health_check()
    if address != AUTO:
        host, colon, port = address.rpartition(":")
        if not colon or not host or "/" in host or not port.isascii() or not port.isdigit() or int(port) > 65535:
            raise RequestError(f"Ray address {address!r}: {expected}")
        try:
            socket.create_connection((host.strip("[]"), int(port)), CONNECT_SECONDS).close()
        except OSError as error:
            raise BackendError(
                f"Ray does not answer at {address!r} ({error.strerror or error}): {expected}; is it running?"
            ) from error
        command += ["--address", address]
    try:
        done = subprocess.run(command, capture_output=True, check=False, timeout=ANSWER_SECONDS)
    except subprocess.TimeoutExpired as error:
        raise BackendError(
            f"Ray does not answer at {address!r} within {ANSWER_SECONDS} s: {expected}; does another server "
            "listen there?"
        ) from error
    if done.returncode:
        said = done.stderr.decode(errors="replace").strip().splitlines() or ["no reason given"]
        raise BackendError(f"Ray does not answer at {address!r} ({said[-1][:300]}): {expected}")
