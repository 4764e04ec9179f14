"""A server process: an address of its own, an artifact, and an end in which no request is lost."""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable
from pathlib import Path

import uvicorn

from naflex_export.errors import BackendError, RequestError
from naflex_export.server.app import Addresses, make_app
from naflex_export.server.engine import Engine
from naflex_export.server.metrics import Metrics
from naflex_export.server.settings import ServeSettings
from naflex_export.server.vectors import open_served

GRACE = 30
"""Seconds that requests have to end when the server is told to stop."""

KEEP_ALIVE = 75
"""Seconds that a connection may be idle: more than load balancers leave one, or it would be closed as they use it."""


def listening(host: str, port: int) -> socket.socket:
    """Return a socket at an address, found to be free before minutes go into loading an artifact.

    It does not listen yet: whoever connects before the artifact is loaded is refused, and not kept waiting.

    Args:
        host: a name or an address of this machine.
        port: 0 for any free one.

    Raises:
        RequestError: the address is taken, or none of this machine's.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        found = socket.socket(family, kind, protocol)
        try:
            found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a server that ended just now is no other
            found.bind(address)
        except BaseException:
            found.close()
            raise
    except (OSError, OverflowError) as error:
        raise RequestError(f"{host}:{port} cannot be listened at: {_why(error)}") from error
    return found


def _why(error: Exception) -> str:
    number = getattr(error, "errno", None)
    if number == errno.EADDRINUSE:
        return "another process does; choose another --port, or stop it"
    if number == errno.EACCES:
        return "this user may not; choose a --port of 1024 or more"
    if isinstance(error, socket.gaierror) or number == errno.EADDRNOTAVAIL:
        return "the host is none of this machine's; expected one such as 127.0.0.1, or 0.0.0.0 for all of them"
    return f"{error}"


def serve(
    folder: Path,
    at: socket.socket,
    settings: ServeSettings,
    *,
    device: str | None = None,
    patch_size: int | None = None,
    announce: Callable[[str], None] = lambda text: None,
    access_log: bool = False,
) -> None:
    """Serve an artifact until the process is told to stop by SIGTERM or SIGINT; requests in flight are answered.

    Args:
        folder: the artifact's.
        at: where to listen.
        settings: of the server.
        device: where to run, as for `nx.load`.
        patch_size: which entry point, of an artifact of several patch sizes.
        announce: is told once requests are taken.
        access_log: write a line for each request.

    Raises:
        RequestError: the artifact gives no features, or has several patch sizes and none was chosen.
        ArtifactError: the folder is no artifact, or does not say how photos are preprocessed.
        BackendError: a package or device that it needs is missing.
    """
    served = open_served(folder, device, patch_size, settings.most_pixels, settings.upscale)
    manifest = served.manifest
    metrics = Metrics()
    about = {
        "model": str(manifest.model.get("source", {}).get("model") or manifest.model["architecture"]),
        "target": manifest.target,
        "dtype": manifest.dtype,
        "buckets": [str(bucket) for bucket in manifest.buckets],
        "weights_sha256": manifest.model["weights_sha256"],
    }

    def make_engine() -> Engine:
        return Engine(served, settings, metrics)

    make_engine()  # its settings are checked here, and not in an event loop
    config = uvicorn.Config(
        make_app(Addresses(make_engine, about)),
        log_level="info" if access_log else "warning",
        access_log=access_log,
        timeout_graceful_shutdown=GRACE,
        timeout_keep_alive=KEEP_ALIVE,
        server_header=False,
    )
    server = uvicorn.Server(config)
    host, port = at.getsockname()[:2]
    buckets = ", ".join(map(str, manifest.buckets))
    said = f"serving {manifest.target}, buckets {buckets}, at http://{host}:{port}"
    if manifest.text is not None:
        said += "\nimages alone are served: for texts take run.text([...]) of the loaded artifact"
    _announce_start(server, lambda: announce(said))
    try:
        server.run(sockets=[at])
    except OSError as error:  # the address was taken while the artifact was loaded
        raise RequestError(f"{host}:{port} cannot be listened at: {_why(error)}") from error
    if not server.started:
        raise BackendError("the server did not start, as its log says above")


def _announce_start(server: uvicorn.Server, announce: Callable[[], None]) -> None:
    startup = server.startup

    async def started(sockets: list[socket.socket] | None = None) -> None:
        await startup(sockets)
        if server.started:
            announce()

    server.startup = started
