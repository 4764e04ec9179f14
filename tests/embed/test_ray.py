"""Photos to vectors by a real Ray on the loopback, whatever is killed on the way."""

from __future__ import annotations

import importlib.util
import signal
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray_here
import test_embed_files as files

import naflex_export as nx
from naflex_export.embed import ray_cluster
from naflex_export.embed.sources import Files, Several

needs_ray = [
    pytest.mark.full,
    pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="ray is of the extra 'ray' and not installed"),
]

artifact, folder = files.artifact, files.folder  # fixtures

COMMAND = "from naflex_export.cli.embed import embed_command as run; run()"


@pytest.fixture(scope="module")
def ray_env() -> Iterator[dict[str, str]]:
    with ray_here.head() as env:
        yield env


def test_an_address_that_does_not_answer_is_refused() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and nobody listens
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(nx.BackendError, match=f"Ray does not answer at '{address}' .*expected host:port"):
            ray_cluster.check_answers(address)
    for address in ("localhost", "127.0.0.1:port", "127.0.0.1:99999", ":1", "ray://127.0.0.1:1"):
        with pytest.raises(nx.RequestError, match=f"Ray address '{address}': expected host:port"):
            ray_cluster.check_answers(address)


def test_what_is_no_ray_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_cluster, "ANSWER_SECONDS", 1)
    monkeypatch.setattr(ray_cluster, "health_check", lambda: [sys.executable, "-c", "import time; time.sleep(60)"])
    with socket.create_server(("127.0.0.1", 0)) as silent:
        began = time.monotonic()
        with pytest.raises(nx.BackendError, match="within 1 s: .*does another server listen there"):
            ray_cluster.check_answers(f"127.0.0.1:{silent.getsockname()[1]}")
        assert time.monotonic() - began < 30


@pytest.mark.skipif(importlib.util.find_spec("ray") is not None, reason="ray is installed")
def test_without_ray_the_command_says_what_to_install(artifact: Path, folder: Path, tmp_path: Path) -> None:
    done = files.run(artifact, folder, "--out", tmp_path / "out", "--ray", "local")
    assert done.exit_code == 3 and "pip install naflex_export[ray]" in done.output and not (tmp_path / "out").exists()
    with pytest.raises(nx.BackendError, match=r"naflex_export\[ray\]"):
        nx.ray.embed(None, artifact)


def test_a_part_of_a_source_is_its_photos(tmp_path: Path) -> None:
    whole = Several([Files(["a", "b", "c"]), Files([]), Files(["d", "e"])])
    part = whole.part(1, 4)
    assert list(part.names) == ["b", "c", "d"] == list(part.read(0, 3)) and list(part.part(1, 3).read(1, 2)) == ["d"]


KILL = """
import os, signal, sys
from pathlib import Path
from naflex_export.embed.embed_files import embed_files
from naflex_export.embed.embed_request import EmbedRequest

done = killed = 0
def actors():
    for path in Path("/proc").iterdir():
        if path.name.isdigit():
            try:
                is_actor = (path / "cmdline").read_bytes().startswith(b"ray::ShardActor")
                if is_actor and os.environ["NAFLEX_TEST_RAY"].encode() in (path / "environ").read_bytes():
                    yield int(path.name)
            except OSError:
                pass

def tell(photos, failed):
    global done, killed
    done += photos
    if not killed:
        killed = next(actors())
        os.kill(killed, signal.SIGKILL)
        print("killed actor", killed, flush=True)
    if done >= int(sys.argv[4]):
        os.kill(os.getpid(), signal.SIGKILL)

artifact, photos, out = map(Path, sys.argv[1:4])
request = EmbedRequest(artifact, (photos,), out, shard=8, workers=2, ray=os.environ["RAY_ADDRESS"])
embed_files(request, tell)
print("all", done)
"""


class TestOnACluster:
    pytestmark = needs_ray

    def test_killed_actors_and_drivers_lose_nothing(
        self,
        ray_env: dict[str, str],
        artifact: Path,
        folder: Path,
        tmp_path: Path,
    ) -> None:
        out, names = tmp_path / "out", files.files_of(folder)
        killed = ray_here.run(KILL, artifact, folder, out, 20, env=ray_env)
        assert killed.returncode == -signal.SIGKILL and "killed actor" in killed.stdout, killed.stderr
        there = len(files.rows_in(out))
        assert 20 <= there < files.COUNT
        finished = ray_here.run(KILL, artifact, folder, out, 10_000, env=ray_env)  # which kills an actor of its own
        assert finished.returncode == 0 and "killed actor" in finished.stdout, finished.stderr
        files.check(out, artifact, names, names)
        again = ray_here.run(
            COMMAND, artifact, folder, "--out", out, "--shard", files.SHARD, "--ray", "auto", env=ray_env
        )
        assert again.returncode == 0 and f"; {files.COUNT} were there before" in again.stdout, again.stderr
        assert "3 of 45" not in again.stderr and not list(out.glob(".*"))

    def test_a_fault_of_all_photos_is_said_as_elsewhere(
        self,
        ray_env: dict[str, str],
        artifact: Path,
        folder: Path,
        tmp_path: Path,
    ) -> None:
        out = tmp_path / "out"
        done = ray_here.run(COMMAND, artifact, folder, "--out", out, "--ray", "auto", "--device", "tpu", env=ray_env)
        assert done.returncode in (2, 3) and "'tpu'" in done.stderr and "Traceback" not in done.stderr, done.stderr

    def test_the_command_ends_where_no_ray_answers(
        self, ray_env: dict[str, str], artifact: Path, folder: Path, tmp_path: Path
    ) -> None:
        with socket.create_server(("127.0.0.1", 0)) as silent:
            address, began = f"127.0.0.1:{silent.getsockname()[1]}", time.monotonic()
            done = ray_here.run(COMMAND, artifact, folder, "--out", tmp_path / "out", "--ray", address, env=ray_env)
        assert done.returncode == 3 and f"Ray does not answer at '{address}' within 30 s" in done.stderr, done.stderr
        assert time.monotonic() - began < 300 and not (tmp_path / "out").exists()

    def test_a_dataset_has_vectors_and_errors(
        self,
        ray_env: dict[str, str],
        artifact: Path,
        folder: Path,
        tmp_path: Path,
    ) -> None:
        done = ray_here.run(DATASETS, artifact, folder, tmp_path, env=ray_env)
        assert done.returncode == 0, done.stderr
        names = files.files_of(folder)
        embedder = nx.Embedder(artifact)
        wanted = dict(zip(names, embedder(names), strict=True))
        for kind in ("paths", "bytes", "arrays"):
            with np.load(tmp_path / f"{kind}.npz") as found:
                assert sorted(found["path"]) == sorted(
                    names if kind != "arrays" else [n for n in names if _good(wanted[n])]
                )
                for name, vector, error in zip(found["path"], found["vector"], found["error"], strict=True):
                    expected = wanted[name]
                    assert bool(error) == (not _good(expected))
                    if not error:
                        assert np.abs(vector - expected).max() <= 1e-6 * np.abs(expected).max()
        files.check(tmp_path / "out", artifact, sorted(names), sorted(names))
        assert done.stdout.split()[-1] == "45"


def _good(found: Any) -> bool:
    return not isinstance(found, nx.PhotoError)


DATASETS = """
import sys
from pathlib import Path
import numpy as np, ray, ray.data
from PIL import Image
import naflex_export as nx
from naflex_export.embed.sources import source_of

artifact, folder, out = map(Path, sys.argv[1:])
ray.init(address="auto")
names = list(source_of([folder]).names)
items = {"paths": [{"path": name} for name in names]}
items["bytes"] = [{"path": name, "bytes": Path(name).read_bytes()} for name in names]
def opened(name):
    try:
        return np.asarray(Image.open(name).convert("RGB"))
    except OSError:
        return None
items["arrays"] = [{"path": name, "image": array} for name in names if (array := opened(name)) is not None]
for kind, rows in items.items():
    embedded = nx.ray.embed(ray.data.from_items(rows), artifact, rows=16)
    found = embedded.take_all()
    vector = [np.zeros(32) if row["vector"] is None else row["vector"] for row in found]
    error = [row["error"] or "" for row in found]
    np.savez(out / f"{kind}.npz", path=[row["path"] for row in found], vector=vector, error=error)
shards = nx.ray.embed(ray.data.from_items(items["paths"]), artifact, out=out / "out", shard=8)
try:
    nx.ray.embed(ray.data.from_items([{"x": 1}]), artifact)
except nx.RequestError as error:
    assert "has the columns x: expected image, bytes" in str(error), error
else:
    raise AssertionError
print(shards.count())
"""
