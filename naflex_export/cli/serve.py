"""`naflex-serve`: parsing and printing only."""

from __future__ import annotations

import importlib.util
import os
from functools import partial
from pathlib import Path

import click

from naflex_export.cli.exits import Terminated, exit_codes
from naflex_export.cli.options import device_option, quiet_libraries, verbose_option
from naflex_export.cli.supervised import LEFT
from naflex_export.errors import BackendError
from naflex_export.version import __version__

NEEDED = ("fastapi", "uvicorn", "prometheus_client", "python_multipart", "orjson")


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("artifact", type=click.Path(path_type=Path))
@click.option("--host", default="127.0.0.1", show_default=True, help="Where to listen; 0.0.0.0 for every address.")
@click.option("--port", default=8000, show_default=True, type=click.IntRange(0, 65535), help="0 for any free one.")
@click.option("--batch", "size", type=click.IntRange(1), help="Images of a full batch.  [default: the bucket's usual]")
@click.option(
    "--wait", default=5.0, show_default=True, type=click.FloatRange(0), help="Longest wait for others, in ms."
)
@click.option(
    "--queue", default=256, show_default=True, type=click.IntRange(1), help="Images inside at once; others get 503."
)
@click.option(
    "--most-mib", default=32.0, show_default=True, type=click.FloatRange(0, min_open=True), help="Of a request."
)
@click.option("--most-pixels", type=click.IntRange(1), help="Of a photo.  [default: 89478485, as PIL]")
@click.option("--decoders", type=click.IntRange(1), help="Threads that decode photos.  [default: one a core]")
@click.option(
    "--no-upscale",
    is_flag=True,
    help="Enlarge no photo: a small one has few tokens, and a smaller bucket.  [default: as the model's library]",
)
@click.option("--patch-size", type=click.IntRange(1), help="Which one, of an artifact of several.")
@device_option
@click.option("--access-log", is_flag=True, help="Write a line for each request.")
@verbose_option
@click.version_option(__version__, package_name="naflex_export")
@partial(exit_codes, left=LEFT["serve"])
def serve_command(
    artifact: Path,
    host: str,
    port: int,
    size: int | None,
    wait: float,
    queue: int,
    most_mib: float,
    most_pixels: int | None,
    decoders: int | None,
    no_upscale: bool,
    patch_size: int | None,
    device: str | None,
    access_log: bool,
    verbose: bool,
) -> None:
    """Serve ARTIFACT over HTTP: photos or patches in, vectors out.

    POST /embed takes photos (multipart files, the body itself, base64 in JSON) or patches with their grid, and
    /v1/embeddings what OpenAI's clients send. /health, /ready and /metrics are for whoever watches it; /docs describes
    all of it. SIGTERM ends it once the requests inside are answered.

    There is no password and no TLS: it listens on this machine alone unless told otherwise. What a compile, aot or trt
    artifact holds runs as code, as with nx.load: serve such a one only if you know who made it.

    Exit codes: 0 stopped as asked, 2 the request was wrong (a port that is taken, no artifact), 3 a backend, a device
    or the packages of naflex_export[serve] are missing, 70 something unexpected, 130 and 143 stopped while loading.
    """
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise BackendError(f"naflex-serve needs {', '.join(missing)}: pip install 'naflex_export[serve]'")
    from naflex_export.server.process import listening, serve
    from naflex_export.server.settings import ServeSettings

    quiet_libraries(verbose)
    settings = ServeSettings(
        size=size,
        wait=wait / 1000,
        most_waiting=queue,
        most_bytes=round(most_mib * 2**20),
        decoders=decoders or os.cpu_count() or 1,
        upscale=False if no_upscale else None,
        **({} if most_pixels is None else {"most_pixels": most_pixels}),
    )
    ready = False

    def announce(text: str) -> None:
        nonlocal ready
        ready = True
        click.echo(text)

    with listening(host, port) as at:
        try:
            serve(
                artifact,
                at,
                settings,
                device=device,
                patch_size=patch_size,
                announce=announce,
                access_log=access_log,
            )
        except (KeyboardInterrupt, Terminated):
            if not ready:
                raise
    click.echo("stopped")
