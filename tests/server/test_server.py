"""A real server process and real clients on this machine's own address."""

# ruff: noqa: E402  the packages of the extra are looked for before what needs them is imported

from __future__ import annotations

import contextlib
import http.client
import io
import re
import signal
import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from click.testing import CliRunner, Result
from PIL import Image

import naflex_export as nx
from naflex_export.cli.serve import serve_command
from naflex_export.server.asked import IMAGES_ALONE

for package in ("fastapi", "uvicorn", "prometheus_client", "python_multipart", "orjson", "httpx"):
    pytest.importorskip(package, reason=f"{package} is of the extra 'serve' and not installed")

import httpx
import served

from naflex_export.server.vectors import open_served

PHOTOS = Path(nx.__file__).parent / "accuracy" / "photos"

MOST_PIXELS = 400_000


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("served") / "a"
    buckets = [nx.Bucket(16, (1, 4, 8)), nx.Bucket(64, (1, 4, 8))]
    nx.export(tiny.shallow(), "onnx", folder, buckets, effort="quick")
    return folder


@pytest.fixture(scope="module")
def address(artifact: Path) -> Iterator[str]:
    """Return the address of a server that needs no torch."""
    limits = ("--most-pixels", MOST_PIXELS, "--most-mib", 1, "--wait", 20)
    with served.server(artifact, *limits) as (process, address):
        maps = Path(f"/proc/{process.pid}/maps")
        assert not maps.exists() or ("onnxruntime" in maps.read_text() and "libtorch" not in maps.read_text())
        yield address


@pytest.fixture
def client(address: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=address, timeout=30) as client:
        yield client


def jpeg(width: int, height: int, seed: int) -> bytes:
    """Return a crop of a photo as a JPEG."""
    with Image.open(PHOTOS / "coffee.jpg") as photo:
        left, top = seed % 50, seed % 30
        crop = photo.convert("RGB").crop((left, top, left + width, top + height))
    stream = io.BytesIO()
    crop.save(stream, "JPEG")
    return stream.getvalue()


def post(address: str, request: dict[str, Any]) -> httpx.Response:
    with httpx.Client(base_url=address, timeout=30) as client:
        return client.post(**request)


def of_loop(artifact: Path) -> tuple[Callable[[bytes], np.ndarray], Callable[[np.ndarray, nx.Grid], np.ndarray]]:
    """Return what gives the vector of one photo, and of one image's patches, by the library's own loop."""
    run, pre = nx.load(artifact), nx.Preprocessor.of(artifact)

    def vector(named: dict[str, np.ndarray]) -> np.ndarray:
        return run({name: torch.from_numpy(array) for name, array in named.items()})[0].numpy()

    return lambda photo: vector(pre([photo])), lambda patches, grid: vector(pre.collate([(patches, grid)]))


def bad_requests() -> list[tuple[dict[str, Any], int, str]]:
    """Return requests that must be refused, with the status and what the message must name."""
    whole, draw = jpeg(200, 150, 0), np.random.default_rng(0)
    patches = draw.standard_normal((6, 48)).astype(np.float32)
    backwards = np.indices((2, 3)).reshape(2, -1).T - 1
    spoilt = patches.copy()
    spoilt[3, 7] = np.nan
    large = io.BytesIO()
    Image.new("L", (1000, 401)).save(large, "PNG")
    return [
        (served.as_body(b"this is no photo"), 400, "the body: "),
        (served.as_form(whole[: len(whole) // 2]), 400, "file 0 ('a.jpg'): "),
        (served.as_json(large.getvalue()), 413, "images[0]: "),
        (served.as_npz(patches, patch_coord=backwards), 400, "go from [-1, -1] to [0, 1]"),
        (served.as_npz(spoilt, [2, 3]), 400, "patches hold values that are not finite"),
        (served.as_npz(patches[:, :40], [2, 3]), 400, "40 values a patch: expected 48"),
        ({"url": "/v1/embeddings", "json": {"input": "https://example.com/a.jpg"}}, 400, "this server fetches none"),
        ({"url": "/embed", "content": b"text", "headers": {"content-type": "text/plain"}}, 415, "'text/plain'"),
    ]


def test_of_64_requests_8_are_bad_and_the_other_56_get_the_vectors_of_the_loop(artifact: Path, address: str) -> None:
    of_photo, of_patches = of_loop(artifact)
    ways = [
        served.as_body,
        served.as_form,
        served.as_json,
        served.as_openai,
        lambda photo: served.as_openai(photo, "base64"),
    ]
    requests: list[tuple[dict[str, Any], np.ndarray | None]] = []
    draw = np.random.default_rng(1)
    for number in range(46):
        photo = jpeg(60 + 9 * number, 300 - 5 * number, number)
        requests.append((ways[number % 5](photo), of_photo(photo)))
    for number in range(10):
        grid = nx.Grid(1 + number % 4, 1 + number)
        patches = draw.standard_normal((grid.tokens, 48)).astype(np.float32)
        given = {"patches": patches.tolist(), "grid": list(grid)}
        request = {"url": "/embed", "json": given} if number % 2 else served.as_npz(patches, grid)
        requests.append((request, of_patches(patches, grid)))
    bad = bad_requests()
    for place, (request, _, _) in enumerate(bad):
        requests.insert(8 * place + 3, (request, None))
    assert len(requests) == 64 and len(bad) == 8
    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda one: post(address, one[0]), requests))
    refused = [answer for answer, (_, vector) in zip(answers, requests, strict=True) if vector is None]
    for answer, (_, status, message) in zip(refused, bad, strict=True):
        assert answer.status_code == status and message in answer.json()["error"]["message"], answer.text
    right = 0
    for answer, (_, expected) in zip(answers, requests, strict=True):
        if expected is not None:
            assert answer.status_code == 200, answer.text
            found = served.vector_in(answer.json())
            assert np.linalg.norm(found - expected) <= 1e-6 * np.linalg.norm(expected)
            right += 1
    assert right == 56


def test_several_photos_and_other_forms_of_answers(artifact: Path, client: httpx.Client) -> None:
    of_photo, _ = of_loop(artifact)
    photos = [jpeg(200 + 40 * number, 200, number) for number in range(3)]
    files = [("photo", (f"{number}.jpg", photo)) for number, photo in enumerate(photos)]
    answer = client.post("/embed", files=files)
    assert answer.json()["grids"] == [[8, 8], [7, 9], [7, 9]]
    packed = client.post("/embed", files=files, headers={"accept": "application/x-npy"})
    vectors = np.load(io.BytesIO(packed.content))
    assert vectors.shape == (3, 32) and vectors.dtype == np.float32
    for found, also, photo in zip(vectors, answer.json()["vectors"], photos, strict=True):
        assert np.allclose(found, also, rtol=0, atol=1e-6) and np.allclose(found, of_photo(photo), rtol=0, atol=2e-6)
    usage = client.post(**served.as_openai(photos[0])).json()["usage"]
    assert usage == {"prompt_tokens": 64, "total_tokens": 64}


def test_a_request_may_ask_for_fewer_tokens(artifact: Path, client: httpx.Client) -> None:
    run, pre, photo = nx.load(artifact), nx.Preprocessor.of(artifact), jpeg(300, 200, 0)
    expected = run({name: torch.from_numpy(array) for name, array in pre([photo], 16).items()})[0].numpy()
    headers = {"content-type": "image/jpeg"}
    answer = client.post("/embed", params={"tokens": 16}, content=photo, headers=headers).json()
    assert answer["grids"] == [[3, 5]]
    assert np.linalg.norm(np.array(answer["vectors"][0]) - expected) <= 1e-6 * np.linalg.norm(expected)
    for wrong in ("0", "65", "-1", "x"):
        refused = client.post("/embed", params={"tokens": wrong}, content=photo, headers=headers)
        assert refused.status_code == 400
        message = f"tokens='{wrong}': expected an integer from 1 to 64, the largest bucket's"
        assert refused.json()["error"]["message"] == message


def test_one_bad_photo_refuses_its_own_request_and_is_named(client: httpx.Client) -> None:
    photo = jpeg(200, 150, 0)
    answer = client.post("/embed", files=[("a", ("good.jpg", photo)), ("b", ("bad.jpg", b"no photo"))])
    assert answer.status_code == 400 and answer.json()["error"]["message"].startswith("file 1 ('bad.jpg'): ")


@pytest.mark.parametrize(
    ("request_", "status", "message"),
    [
        ({"content": b"", "headers": {"content-type": "image/png"}}, 400, "the body is empty"),
        ({"content": b"x"}, 415, "content type 'none' is not taken"),
        ({"content": b"{", "headers": {"content-type": "application/json"}}, 400, "the body is no JSON"),
        ({"json": [1]}, 400, "the body is a JSON list: expected an object"),
        ({"json": {}}, 400, "the body has none of images, inputs and patches: expected one"),
        ({"json": {"images": []}}, 400, "the request has no image"),
        ({"json": {"images": "x"}}, 400, "'images' is a str: expected a list"),
        ({"json": {"images": [5]}}, 400, "images[0] is a int: expected a photo in base64"),
        ({"json": {"images": ["hello!"]}}, 400, "images[0] is no base64"),
        ({"json": {"images": ["a cat"]}}, 400, IMAGES_ALONE),
        ({"json": {"texts": ["a cat"]}}, 400, IMAGES_ALONE),
        ({"content": b"a cat", "headers": {"content-type": "text/plain"}}, 415, IMAGES_ALONE),
        ({"json": {"images": ["data:image/png,x"]}}, 400, "images[0] is a data URL without ';base64,'"),
        ({"json": {"inputs": [{"patches": [[1.0]]}]}}, 400, "inputs[0] has 'patches': expected patches, and grid or"),
        ({"json": {"patches": [[1.0], [1.0, 2.0]], "grid": [1, 2]}}, 400, "patches has rows of different lengths"),
        ({"json": {"patches": [[1.0] * 48], "grid": [1.5, 1]}}, 400, "grid is float64 [2]: expected integers"),
        ({"json": {"patches": [[1.0] * 48], "grid": [1, -1]}}, 400, "grid is [1, -1]: expected [height, width]"),
        ({"json": {"patches": [[1.0] * 48], "grid": [1, 2]}}, 400, "has 1 patches: expected 2, the grid being 1x2"),
        ({"json": {"patches": [[1.0] * 48] * 65, "grid": [5, 13]}}, 400, "65 tokens are more than any bucket takes"),
        ({"content": b"PK", "headers": {"content-type": "application/x-npz"}}, 400, "the body is no .npz file"),
        ({"content": b"x", "headers": {"content-type": "multipart/form-data"}}, 400, "the body is no multipart form"),
        ({"data": {"a": "text"}, "files": {"b": b""}}, 400, "the form's field 'a' is no file"),
        ({"content": bytes(2**20 + 1)}, 413, "the request has 1048577 bytes: expected at most 1048576"),
        ({"json": {"images": ["eA=="] * 257}}, 413, "the request has 257 images: expected at most 256"),
    ],
    ids=lambda value: str(value)[:40] if isinstance(value, str) else "",
)
def test_a_fault_is_named(client: httpx.Client, request_: dict[str, Any], status: int, message: str) -> None:
    answer = client.post("/embed", **request_)
    assert answer.status_code == status and message in answer.json()["error"]["message"], answer.text


def test_arrays_that_grow_when_they_are_unpacked_are_refused(client: httpx.Client) -> None:
    stream = io.BytesIO()
    np.savez_compressed(stream, patches=np.zeros((2**16, 48), np.float32), grid=np.array([2**8, 2**8]))
    headers = {"content-type": "application/x-npz"}
    answer = client.post("/embed", content=stream.getvalue(), headers=headers)
    assert answer.status_code == 413 and "bytes: expected at most 1048576" in answer.json()["error"]["message"]


def test_other_addresses_and_methods(client: httpx.Client) -> None:
    assert client.get("/health").json() == {"status": "alive"}
    assert client.get("/ready").json() == {"status": "ready"}
    assert client.get("/").json()["buckets"] == ["16:1,4,8", "64:1,4,8"]
    assert client.get("/v1/models").json()["object"] == "list"
    assert (client.get("/nothing").status_code, client.get("/embed").status_code) == (404, 405)
    assert (
        client.post("/v1/embeddings", json={"model": "x"}).json()["error"]["message"].startswith("'input' is missing")
    )
    assert IMAGES_ALONE in client.post("/v1/embeddings", json={"input": "a cat"}).json()["error"]["message"]
    asked = {"input": "eA==", "encoding_format": "hex"}
    assert "expected float or base64" in client.post("/v1/embeddings", json=asked).json()["error"]["message"]
    assert "/embed" in client.get("/openapi.json").json()["paths"]


def test_what_happens_is_counted(client: httpx.Client) -> None:
    def value(name: str) -> float:
        lines = client.get("/metrics").text.splitlines()
        return sum(float(line.split()[-1]) for line in lines if line.startswith(name))

    embedded, refused = 'naflex_images_total{outcome="embedded"}', 'naflex_images_total{outcome="refused"}'
    before = [value(embedded), value(refused), value("naflex_tokens_total")]
    assert client.post(**served.as_npz(np.zeros((6, 48)), [2, 3])).status_code == 200
    assert client.post(**served.as_body(b"no photo")).status_code == 400
    after = [value(embedded), value(refused), value("naflex_tokens_total")]
    assert [new - old for new, old in zip(after, before, strict=True)] == [1, 1, 16]
    assert value('naflex_requests_total{path="/embed",status="400"}') >= 1
    assert value("naflex_images_inside") == 0


def test_a_client_that_goes_is_no_fault_of_the_server(artifact: Path) -> None:
    with served.server(artifact) as (process, address):
        host, port = address.removeprefix("http://").split(":")
        head = "POST /embed HTTP/1.1\r\nhost: x\r\ncontent-type: image/png\r\ncontent-length: 1000\r\n\r\n"
        with socket.create_connection((host, int(port))) as gone:
            gone.sendall(head.encode() + b"half")
        with httpx.Client(base_url=address, timeout=30) as client:
            while 'path="/embed",status="499"' not in client.get("/metrics").text:
                time.sleep(0.01)
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
        assert process.stderr is not None and process.stderr.read() == ""


@pytest.mark.full
def test_an_idle_connection_stays_open(address: str) -> None:
    """For longer than uvicorn's 5 seconds: a client that takes it up again in the moment of closing has no answer."""
    kept = http.client.HTTPConnection(address.removeprefix("http://"), timeout=30)
    with contextlib.closing(kept):
        for pause in (0, 7):
            time.sleep(pause)
            kept.request("GET", "/health")
            with kept.getresponse() as answer:
                assert answer.status == 200 and answer.read()


def test_a_full_queue_refuses_and_a_stop_answers_what_is_inside(artifact: Path) -> None:
    options = ("--wait", 2500, "--batch", 8, "--queue", 3)
    with served.server(artifact, *options) as (process, address), ThreadPoolExecutor(3) as pool:
        request = served.as_npz(np.ones((6, 48)), [2, 3])
        inside = [pool.submit(post, address, request) for _ in range(3)]
        with httpx.Client(base_url=address, timeout=30) as client:
            while "naflex_images_inside 3.0" not in client.get("/metrics").text:
                time.sleep(0.01)
            refused = client.post(**request)
            assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
            assert refused.json()["error"]["message"] == "3 images are in the queue of 3: come again"
            assert (client.get("/ready").status_code, client.get("/health").status_code) == (503, 200)
        process.send_signal(signal.SIGTERM)
        answers = [one.result() for one in inside]
        assert [answer.status_code for answer in answers] == [200, 200, 200]
        assert process.wait(30) == 0
        assert process.stdout is not None and process.stdout.read() == "stopped\n"
        with pytest.raises(httpx.ConnectError):
            httpx.get(f"{address}/health")


def refused(*arguments: object) -> Result:
    return CliRunner().invoke(serve_command, [str(argument) for argument in arguments])


def test_a_port_that_is_taken_ends_it(artifact: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = refused(artifact, "--port", port)
    assert (done.exit_code, done.stdout) == (2, "")
    assert f"127.0.0.1:{port} cannot be listened at: another process does; choose another --port" in done.stderr


def test_the_page_says_what_is_so(
    address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = (Path(nx.__file__).parent.parent / "docs" / "serving.md").read_text(encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    Path("photo.jpg").write_bytes(jpeg(200, 150, 0))
    for code in re.findall(r"```python\n(.*?)```", page, re.DOTALL):
        exec(code.replace("http://127.0.0.1:8000", address), {})
    assert capsys.readouterr().out == "32\n64 ('a', 'c')\n256 ('b',)\n"
    served_by = page[: page.index("## Many machines")]
    named = set(re.findall(r"--([a-z][a-z-]+)", served_by)) - {"data-binary", "target", "out", "tokens"}  # of others
    assert named <= {option.opts[0].removeprefix("--") for option in serve_command.params}


def test_photos_need_not_be_enlarged(artifact: Path) -> None:
    photo = jpeg(24, 16, 0)
    grids = [open_served(artifact, upscale=choice).preprocessor.one(photo)[1] for choice in (None, False)]
    assert grids == [(6, 9), (4, 6)]


def test_missing_packages_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "fastapi" else name)
    done = refused("a", "--port", 0)
    assert done.exit_code == 3
    assert "naflex-serve needs fastapi: pip install 'naflex_export[serve]'" in done.stderr


def test_a_host_of_another_machine_and_no_artifact_end_it(artifact: Path, tmp_path: Path) -> None:
    done = refused(artifact, "--host", "192.0.2.1", "--port", 0)
    assert done.exit_code == 2 and "the host is none of this machine's" in done.stderr
    done = refused(tmp_path, "--port", 0)
    assert done.exit_code == 2 and "manifest.json" in done.stderr
