"""The real Triton server with the model that `naflex-export --triton` writes, and Triton's own clients.

NAFLEX_TRITON_ENV names a virtual environment of the Python whose server it is, as docs/serving.md makes it.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from PIL import Image

import naflex_export as nx
from naflex_export.packs.endpoints import from_url
from naflex_export.packs.judge import judge_answers
from naflex_export.packs.opened import Pack
from naflex_export.packs.write import write_pack
from naflex_export.server.triton_repository import write_repository

ENVIRONMENT = Path(os.environ.get("NAFLEX_TRITON_ENV", "none"))
PACKAGES = next(iter(ENVIRONMENT.glob("lib/python3*/site-packages")), Path("none"))
SERVER = PACKAGES / "pytriton" / "tritonserver"

pytestmark = [
    pytest.mark.full,
    pytest.mark.skipif(
        not SERVER.is_dir(), reason="NAFLEX_TRITON_ENV names no environment with nvidia-pytriton: docs/serving.md"
    ),
]

ROOT = Path(nx.__file__).parent.parent
PHOTOS = Path(nx.__file__).parent / "accuracy" / "photos"


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


@contextlib.contextmanager
def triton(repository: Path, folder: Path) -> Iterator[tuple[str, str]]:
    """Run Triton on a repository for as long as the block runs; its addresses for HTTP and gRPC."""
    version = PACKAGES.parent.name.removeprefix("python")
    shutil.copytree(SERVER / "backends", folder / "backends")
    shutil.copy(
        SERVER / "python_backend_stubs" / version / "triton_python_backend_stub", folder / "backends" / "python"
    )
    http, grpc = free_port(), free_port()
    options = {
        "model-repository": repository,
        "backend-directory": folder / "backends",
        "http-address": "127.0.0.1",
        "http-port": http,
        "grpc-address": "127.0.0.1",
        "grpc-port": grpc,
        "allow-metrics": "false",
    }
    environment = {
        "PATH": "/usr/bin:/bin",
        "LD_LIBRARY_PATH": str(PACKAGES / "nvidia_pytriton.libs"),
        "PYTHONPATH": f"{ROOT}{os.pathsep}{PACKAGES}",
        "OMP_NUM_THREADS": "1",
    }
    command = [str(SERVER / "bin" / "tritonserver"), *(f"--{name}={value}" for name, value in options.items())]
    with (
        (folder / "log").open("w") as log,
        subprocess.Popen(command, env=environment, stdout=log, stderr=log) as server,
    ):
        try:
            for _ in range(240):
                assert server.poll() is None, (folder / "log").read_text()[-5000:]
                with contextlib.suppress(urllib.error.URLError, ConnectionError):
                    urllib.request.urlopen(f"http://127.0.0.1:{http}/v2/health/ready", timeout=5).close()
                    break
                time.sleep(0.5)
            yield f"127.0.0.1:{http}", f"127.0.0.1:{grpc}"
        finally:
            server.terminate()
            server.wait(60)


def jpeg(width: int, height: int) -> bytes:
    with Image.open(PHOTOS / "coffee.jpg") as photo:
        crop = photo.convert("RGB").crop((20, 10, 20 + width, 10 + height))
    stream = io.BytesIO()
    crop.save(stream, "JPEG")
    return stream.getvalue()


def test_of_64_requests_8_are_bad_and_the_other_56_get_the_vectors_of_the_loop(tmp_path: Path) -> None:
    artifact, repository = tmp_path / "a", tmp_path / "models"
    nx.export(tiny.shallow(), "onnx", artifact, [nx.Bucket(16, (1, 4, 8)), nx.Bucket(64, (2, 4, 8))], effort="quick")
    write_repository(artifact, repository, "tiny")
    run, pre = nx.load(artifact), nx.Preprocessor.of(artifact)
    draw = np.random.default_rng(0)
    requests: list[tuple[dict[str, Any], np.ndarray | str]] = []

    def loop(named: dict[str, np.ndarray]) -> np.ndarray:
        return run({name: torch.from_numpy(np.repeat(array, 2, axis=0)) for name, array in named.items()})[:1].numpy()

    def patched(height: int, width: int, padding: int) -> dict[str, np.ndarray]:
        grid = nx.Grid(height, width)
        return pre.collate([(draw.standard_normal((grid.tokens, 48)), grid)], grid.tokens + padding)

    for number in range(28):
        photo = jpeg(60 + 9 * number, 300 - 5 * number)
        requests.append(({"image": np.frombuffer(photo, np.uint8)}, loop(pre([photo]))))
        named = patched(1 + number % 7, 1 + number % 8, number % 3)
        requests.append((named, loop(named)))
    whole, named = jpeg(200, 150), patched(2, 3, 0)
    backwards, spoilt = {**named, "patch_coord": named["patch_coord"] - 1}, dict(named)
    spoilt["patches"] = np.where(draw.random(named["patches"].shape) < 0.1, np.float32(np.nan), named["patches"])
    bad = [
        ({"image": np.frombuffer(b"no photo", np.uint8)}, "image 0: "),
        ({"image": np.frombuffer(whole[: len(whole) // 2], np.uint8)}, "image 0: "),
        (backwards, "patch_coord of 6 patches go from [-1, -1] to [0, 1]"),
        (spoilt, "patches hold values that are not finite"),
        ({**named, "patch_valid": np.zeros((1, 6), bool)}, "6 tokens, 0 of them valid"),
        (patched(5, 13, 0), "65 tokens: expected at most 64"),
        ({"patches": named["patches"]}, "input patch_coord is missing"),
        ({**named, "image": np.frombuffer(whole, np.uint8)}, "expected image, or the others"),
    ]
    for place, one in enumerate(bad):
        requests.insert(8 * place + 3, one)
    assert len(requests) == 64
    arrays = {f"{number}/{name}": value for number, (one, _) in enumerate(requests) for name, value in one.items()}
    np.savez(tmp_path / "requests.npz", **arrays)
    with triton(repository, tmp_path) as addresses:
        client = [str(ENVIRONMENT / "bin" / "python"), str(Path(__file__).parent / "triton_client.py"), "tiny"]
        files = [str(tmp_path / "requests.npz"), str(tmp_path / "answers.npz")]
        done = subprocess.run([*client, *files, *addresses], capture_output=True, text=True, check=False, timeout=300)
        assert done.returncode == 0, done.stderr
    with np.load(tmp_path / "answers.npz") as found:
        answers = {name: found[name] for name in found.files}
    served = 0
    for number, (_, expected) in enumerate(requests):
        if isinstance(expected, str):
            assert expected in str(answers[f"{number}/error"])
            continue
        assert f"{number}/features" in answers, str(answers.get(f"{number}/error"))
        assert np.linalg.norm(answers[f"{number}/features"] - expected) <= 1e-6 * np.linalg.norm(expected)
        served += 1
    assert served == 56
    (statistics,) = json.loads(done.stdout)["model_stats"]
    assert int(statistics["execution_count"]) < int(statistics["inference_count"])  # ragged requests went together


def test_a_golden_pack_judges_what_triton_serves(tmp_path: Path) -> None:
    artifact, repository = tmp_path / "a", tmp_path / "models"
    nx.export(tiny.shallow(), "onnx", artifact, [nx.Bucket(256, (1, 4, 8))], effort="quick")
    write_repository(artifact, repository, "tiny")
    write_pack(tiny.shallow(), tmp_path / "pack", small=True)
    pack = Pack.open(tmp_path / "pack")
    with triton(repository, tmp_path) as (http, _):
        found = from_url(pack, f"http://{http}/v2/models/tiny")
    verdict = judge_answers(pack, found)
    assert verdict.passed and not verdict.unanswered, verdict.failures
    assert sum(not one.refused for one in verdict.asked) >= 6
