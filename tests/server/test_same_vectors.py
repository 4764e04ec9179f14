# ruff: noqa: E402  the packages of the extra are looked for before what needs them is imported
"""2,000 photos, 3 % of them broken in ten ways, by naflex-serve and by Triton: all there, with the loop's vectors."""

from __future__ import annotations

import asyncio
import importlib.util
import io
import struct
import subprocess
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tiny
from PIL import Image

import naflex_export as nx

for package in ("fastapi", "uvicorn", "prometheus_client", "python_multipart", "orjson", "httpx"):
    pytest.importorskip(package, reason=f"{package} is of the extra 'serve' and not installed")

import httpx
import ray_here
import served
import test_triton_server as by_triton

from naflex_export.server.triton_repository import write_repository

pytestmark = pytest.mark.full

COUNT, EVERY = 2000, 33

Answers = dict[int, np.ndarray | None]
"""The vector of each photo by its number, None of one that was refused."""


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("same") / "a"
    nx.export(tiny.shallow(), "onnx", folder, [nx.Bucket(16, (1, 8, 16)), nx.Bucket(64, (2, 8, 16))], effort="quick")
    return folder


@pytest.fixture(scope="module")
def photos() -> list[bytes]:
    draw = np.random.default_rng(0)
    with Image.open(by_triton.PHOTOS / "coffee.jpg") as opened:
        whole = opened.convert("RGB")
    found = []
    for number in range(COUNT):
        width, height = (int(side) for side in draw.integers(20, 200, 2))
        left, top = (int(side) for side in draw.integers(0, 150, 2))
        stream = io.BytesIO()
        whole.crop((left, top, left + width, top + height)).save(stream, "PNG" if number % 4 == 0 else "JPEG")
        found.append(stream.getvalue())
    for place, broken in enumerate(range(0, COUNT, EVERY)):
        found[broken] = BROKEN[place % len(BROKEN)](found[broken + 1], found[broken + (4 - broken % 4)])
    return found


def claimed(png: bytes, side: int) -> bytes:
    """Return a PNG whose header says that it is a square of that side."""
    header = b"IHDR" + struct.pack(">II", side, side) + png[24:29]
    return png[:12] + header + struct.pack(">I", zlib.crc32(header)) + png[33:]


BROKEN: list[Callable[[bytes, bytes], bytes]] = [
    lambda other, png: b"no photo at all",
    lambda other, png: b"<!DOCTYPE html><title>404</title>",
    lambda other, png: other[: len(other) // 2],
    lambda other, png: png[: len(png) // 2],
    lambda other, png: other[:20],
    lambda other, png: png[8:],
    lambda other, png: claimed(png, 100_000),
    lambda other, png: claimed(png, 0),
    lambda other, png: b'<svg xmlns="http://www.w3.org/2000/svg"/>',
    lambda other, png: bytes(1000),
]
"""What becomes of a photo: of the next one, and of the next PNG."""


@pytest.fixture(scope="module")
def expected(artifact: Path, photos: list[bytes]) -> Answers:
    """Return what the library's own loop gives, a photo at a time."""
    run, pre = nx.load_numpy(artifact), nx.Preprocessor.of(artifact)
    found: Answers = {}
    for number, photo in enumerate(photos):
        try:
            patches = pre.one(photo)
        except nx.PhotoError:
            found[number] = None
        else:
            found[number] = run(pre.collate([patches, patches]))[0]  # the larger bucket takes two or more
    assert sum(vector is None for vector in found.values()) == len(range(0, COUNT, EVERY))
    return found


def check(found: Answers, expected: Answers) -> None:
    assert sorted(found) == sorted(expected)
    assert [number for number in found if (found[number] is None) != (expected[number] is None)] == []
    for number, vector in expected.items():
        other = found[number]
        if vector is not None and other is not None:
            assert np.linalg.norm(other - vector) <= 1e-6 * np.linalg.norm(vector), number


def test_naflex_serve(artifact: Path, photos: list[bytes], expected: Answers) -> None:
    async def ask(address: str) -> Answers:
        limit = asyncio.Semaphore(32)
        async with httpx.AsyncClient(base_url=address, timeout=60) as client:

            async def one(photo: bytes) -> np.ndarray | None:
                async with limit:
                    answer = await client.post(**served.as_body(photo))
                assert answer.status_code in (200, 400, 413), answer.text
                return served.vector_in(answer.json()) if answer.status_code == 200 else None

            return dict(enumerate(await asyncio.gather(*map(one, photos))))

    with served.server(artifact) as (_, address):
        check(asyncio.run(ask(address)), expected)


BY_RAY = """
import sys
import numpy as np, ray, ray.data
import naflex_export as nx

ray.init(address="auto")
with np.load(sys.argv[2]) as photos:
    rows = [{"number": int(name), "bytes": photos[name].tobytes()} for name in photos.files]
found = nx.ray.embed(ray.data.from_items(rows), sys.argv[1]).take_all()
good = {str(row["number"]): row["vector"] for row in found if row["error"] is None}
np.savez(sys.argv[3], bad=[row["number"] for row in found if row["error"] is not None], **good)
"""


@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="ray is of the extra 'ray' and not installed")
def test_ray(artifact: Path, photos: list[bytes], expected: Answers, tmp_path: Path) -> None:
    np.savez(tmp_path / "photos.npz", **{str(n): np.frombuffer(photo, np.uint8) for n, photo in enumerate(photos)})
    with ray_here.head() as env:
        done = ray_here.run(BY_RAY, artifact, tmp_path / "photos.npz", tmp_path / "found.npz", env=env)
    assert done.returncode == 0, done.stderr
    with np.load(tmp_path / "found.npz") as found:
        vectors: Answers = {int(name): found[name] for name in found.files if name != "bad"}
        check(vectors | dict.fromkeys(found["bad"].tolist()), expected)


@pytest.mark.skipif(not by_triton.SERVER.is_dir(), reason="NAFLEX_TRITON_ENV names no environment: docs/serving.md")
def test_triton(artifact: Path, photos: list[bytes], expected: Answers, tmp_path: Path) -> None:
    write_repository(artifact, tmp_path / "models", "tiny")
    files = [tmp_path / "requests.npz", tmp_path / "answers.npz"]
    np.savez(files[0], **{f"{n}/image": np.frombuffer(photo, np.uint8) for n, photo in enumerate(photos)})
    with by_triton.triton(tmp_path / "models", tmp_path) as addresses:
        client = [str(by_triton.ENVIRONMENT / "bin" / "python"), str(Path(__file__).parent / "triton_client.py")]
        subprocess.run([*client, "tiny", *map(str, files), *addresses], check=True, timeout=600, capture_output=True)
    with np.load(files[1]) as answers:
        named = [name.split("/") for name in answers.files]
        check({int(n): answers[f"{n}/{kind}"][0] if kind == "features" else None for n, kind in named}, expected)
