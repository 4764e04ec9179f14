"""A server process for tests, on an address of its own, and what clients send to it."""

from __future__ import annotations

import base64
import contextlib
import io
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

COMMAND = "from naflex_export.cli.serve import serve_command as run; run()"


@contextlib.contextmanager
def server(artifact: Path, *options: object) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Run `naflex-serve` on a free port for as long as the block runs; its process and its address."""
    command = [sys.executable, "-c", COMMAND, str(artifact), "--port", "0", *map(str, options)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    ) as process:
        try:
            assert process.stdout is not None and process.stderr is not None
            line = process.stdout.readline()
            found = re.search(r"at (http://\S+)", line)
            assert found, line + process.stderr.read()
            yield process, found[1]
        finally:
            process.kill()


def as_body(photo: bytes) -> dict[str, Any]:
    return {"url": "/embed", "content": photo, "headers": {"content-type": "image/jpeg"}}


def as_form(photo: bytes) -> dict[str, Any]:
    return {"url": "/embed", "files": {"photo": ("a.jpg", photo)}}


def as_json(photo: bytes) -> dict[str, Any]:
    return {"url": "/embed", "json": {"images": [base64.b64encode(photo).decode()]}}


def as_openai(photo: bytes, encoding: str = "float") -> dict[str, Any]:
    url = f"data:image/jpeg;base64,{base64.b64encode(photo).decode()}"
    return {"url": "/v1/embeddings", "json": {"input": [url], "model": "any", "encoding_format": encoding}}


def as_npz(patches: object, grid: object = None, **arrays: object) -> dict[str, Any]:
    """Return a request with patches in a .npz file, and their grid or other arrays."""
    stream = io.BytesIO()
    named = {"patches": patches, **({} if grid is None else {"grid": grid}), **arrays}
    np.savez(stream, **{name: np.asarray(value) for name, value in named.items()})
    return {"url": "/embed", "content": stream.getvalue(), "headers": {"content-type": "application/x-npz"}}


def vector_in(answer: dict[str, Any]) -> np.ndarray:
    """Return the first vector of an answer of either kind."""
    if "vectors" in answer:
        return np.array(answer["vectors"][0], dtype=np.float32)
    found = answer["data"][0]["embedding"]
    if isinstance(found, str):
        return np.frombuffer(base64.b64decode(found), dtype="<f4")
    return np.array(found, dtype=np.float32)
