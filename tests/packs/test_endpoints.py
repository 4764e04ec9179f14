"""Ports behind ONNX Runtime and behind HTTP, in each protocol: right ones pass, wrong ones are told and diagnosed."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import tiny
from click.testing import CliRunner

import naflex_export as nx
from naflex_export.cli.gate import gate_command
from naflex_export.packs.endpoints import protocol_of
from naflex_export.packs.opened import Pack


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("packs") / "a"
    return nx.export(tiny.siglip(), "onnx", out, [nx.Bucket(256, (1, 4, 32))], effort="quick").path


def run(*words: object) -> tuple[int, str]:
    done = CliRunner().invoke(gate_command, ["judge", *(str(word) for word in words)])
    return done.exit_code, " ".join(done.output.split())


def test_any_onnx_file_is_judged_with_names_of_its_own(pack: Pack, artifact: Path, tmp_path: Path) -> None:
    code, said = run(pack.path, "--onnx", artifact / "model.onnx")
    assert code == 0 and "padding's content: moved" in said and "refused" not in said
    renamed = onnx.load(artifact / "model.onnx")
    for node in renamed.graph.node:
        node.input[:] = ["pixels" if name == "patches" else name for name in node.input]
    (one,) = (found for found in renamed.graph.input if found.name == "patches")
    one.name = "pixels"
    onnx.save(renamed, tmp_path / "other.onnx")
    code, said = run(pack.path, "--onnx", tmp_path / "other.onnx")
    assert code == 2 and "give --input NAME=pixels" in said
    assert run(pack.path, "--onnx", tmp_path / "other.onnx", "--input", "patches=pixels")[0] == 0


Reply = Callable[[str, dict[str, str], bytes], tuple[int, object]]


class Serving:
    """A real HTTP server on a port of its own, for as long as the block runs; `reply` takes path, headers and body."""

    def __init__(self, reply: Reply) -> None:
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.do_POST()

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                status, content = reply(self.path, dict(self.headers), body)
                self.send_response(status)
                self.end_headers()
                self.wfile.write(json.dumps(content).encode())

            def log_message(self, format: str, *args: object) -> None:
                """Say nothing."""

        self.server = HTTPServer(("127.0.0.1", 0), Handler)
        self.thread = threading.Thread(target=self.server.serve_forever)

    def __enter__(self) -> str:
        self.thread.start()
        return f"http://127.0.0.1:{self.server.server_port}"

    def __exit__(self, *error: object) -> None:
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()


class OpenAI:
    """Answers photos by a pack's own right vectors; `leaks` of one image into the next of a request."""

    def __init__(self, pack: Pack, leaks: float = 0.0) -> None:
        self.sent, self.leaks = list[dict[str, Any]](), leaks
        self.vectors = {
            photo.read_bytes(): pack.expected(case)[row]
            for case in pack.photo_cases
            for row, photo in enumerate(pack.photos(case))
        }

    def __call__(self, path: str, headers: dict[str, str], body: bytes) -> tuple[int, object]:
        self.sent.append(json.loads(body))
        photos = [base64.b64decode(url.partition(",")[2]) for url in self.sent[-1]["input"]]
        found = np.stack([self.vectors[photo] for photo in photos])
        found = found + self.leaks * (found.sum(axis=0) - found)
        return 200, {"data": [{"index": row, "embedding": one.tolist()} for row, one in enumerate(found)]}


def test_openais_requests_hold_photos_one_and_several(pack: Pack) -> None:
    right = OpenAI(pack)
    with Serving(right) as url:
        code, said = run(pack.path, "--url", f"{url}/v1/embeddings", "--url-model", "m")
    assert code == 0 and "order in the request: moved 0.0e+00" in said and "not answered: stages" in said
    assert right.sent[0]["model"] == "m" and right.sent[0]["input"][0].startswith("data:image/jpeg;base64,")
    assert {len(one["input"]) for one in right.sent} == {1, 3}
    with Serving(OpenAI(pack, leaks=0.1)) as url:
        code, said = run(pack.path, "--url", f"{url}/v1/embeddings")
    assert code == 1 and "other photos in the request moved the vectors by" in said


class KServe:
    """Serves an artifact's model.onnx in KServe's second protocol, photos too; `drops_mask` as a wrong one would."""

    def __init__(self, artifact: Path, takes_photos: bool = True, drops_mask: bool = False) -> None:
        self.session = onnxruntime.InferenceSession(artifact / "model.onnx", providers=["CPUExecutionProvider"])
        self.prepare, self.takes_photos, self.drops_mask = nx.Preprocessor.of(artifact), takes_photos, drops_mask
        self.asked = list[str]()

    def __call__(self, path: str, headers: dict[str, str], body: bytes) -> tuple[int, object]:
        self.asked.append(path)
        if path == "/v2/models/tiny":
            names = {"patches": "FP32", "patch_coord": "INT64", "patch_valid": "BOOL"}
            names |= {"image": "BYTES"} if self.takes_photos else {}
            inputs = [{"name": name, "datatype": kind, "shape": [-1, -1]} for name, kind in names.items()]
            outputs = [{"name": "features", "datatype": "FP32", "shape": [-1, 32]}]
            return 200, {"name": "tiny", "inputs": inputs, "outputs": outputs}
        if path != "/v2/models/tiny/infer":
            return 404, {"error": "unknown model"}
        length = int(headers.get("Inference-Header-Content-Length", len(body)))
        tensors = {one["name"]: one for one in json.loads(body[:length])["inputs"]}
        feed = self.of_photos(tensors["image"], body[length:]) if "image" in tensors else self.of_tensors(tensors)
        if feed["patches"].shape[1] > 256:
            return 400, {"error": "too many tokens"}
        if self.drops_mask:
            feed["patch_valid"] = np.ones_like(feed["patch_valid"])
        (found,) = self.session.run(["features"], feed)
        output = {"name": "features", "datatype": "FP32", "shape": list(found.shape), "data": found.ravel().tolist()}
        return 200, {"model_name": "tiny", "outputs": [output]}

    def of_tensors(self, tensors: dict[str, Any]) -> dict[str, Any]:
        kinds = {"FP32": np.float32, "INT64": np.int64, "BOOL": np.bool_}
        return {
            name: np.array(one["data"], dtype=kinds[one["datatype"]]).reshape(one["shape"])
            for name, one in tensors.items()
        }

    def of_photos(self, tensor: dict[str, Any], data: bytes) -> dict[str, Any]:
        assert tensor["datatype"] == "BYTES" and tensor["parameters"]["binary_data_size"] == len(data)
        photos = list[bytes]()
        while data:
            length = int.from_bytes(data[:4], "little")
            photos.append(data[4 : 4 + length])
            data = data[4 + length :]
        assert tensor["shape"] == [len(photos), 1]
        return self.prepare(photos)


def test_tritons_protocol_takes_batches_and_photos(pack: Pack, artifact: Path) -> None:
    served = KServe(artifact)
    with Serving(served) as url:
        code, said = run(pack.path, "--url", f"{url}/v2/models/tiny")
    assert code == 0 and "not answered" not in said and "refused" not in said, said
    assert "padding's content: moved" in said and "other photos in the request: moved" in said
    assert served.asked.count("/v2/models/tiny") == 1


def test_a_served_model_that_drops_the_mask_is_told_and_diagnosed(pack: Pack, artifact: Path, tmp_path: Path) -> None:
    page = tmp_path / "r.html"
    with Serving(KServe(artifact, takes_photos=False, drops_mask=True)) as url:
        code, said = run(pack.path, "--url", f"{url}/v2/models/tiny/infer", "--report", page)
    assert code == 1 and "diagnosis: mask-dropped: " in said
    assert "padding's content moved the vectors by" in said and "is the mask ignored?" in said
    html = page.read_text(encoding="utf-8")
    assert "<h2>Diagnosis</h2>" in html and "Mask-dropped: the mask is dropped" in html and "<script" not in html


def test_naflex_serve_answers_all_cases(pack: Pack, artifact: Path) -> None:
    pytest.importorskip("uvicorn")
    from server.served import server

    with server(artifact) as (_, url):
        code, said = run(pack.path, "--url", f"{url}/embed")
        assert code == 0 and "not answered" not in said and "other photos in the request: moved" in said, said
        code, said = run(pack.path, "--url", f"{url}/v1/embeddings")
        assert code == 0 and "not answered: stages, mixed, square, large" in said
        code, said = run(pack.path, "--url", f"{url}/nothing", "--protocol", "naflex-serve")
        assert code == 1 and "status 404" in said


def test_an_endpoint_says_its_protocol_or_why_not(pack: Pack) -> None:
    paths = {
        "/v1/embeddings": "openai",
        "/embed?tokens=64": "naflex-serve",
        "/v2/models/a": "kserve",
        "/v2/models/a/versions/1/infer": "kserve",
    }
    assert {path: protocol_of(f"http://x:1{path}") for path in paths} == paths
    code, said = run(pack.path, "--url", "http://127.0.0.1:1/")
    assert code == 2 and "does not say a protocol: expected a path that ends in" in said
    assert run(pack.path, "--url", "ftp://x/embed")[0] == 2
    code, said = run(pack.path, "--url", "http://127.0.0.1:1/v2/models/a")
    assert code == 2 and "its model cannot be asked about (no reply" in said
    code, said = run(pack.path, "--url", "http://127.0.0.1:1/embed")
    assert code == 1 and "no reply" in said
    other = {"inputs": [{"name": "x", "datatype": "FP32"}], "outputs": []}
    with Serving(lambda path, headers, body: (200, other)) as url:
        code, said = run(pack.path, "--url", f"{url}/v2/models/a")
    assert code == 2 and "has the inputs x, and the pack has patches" in said
