"""Answers from an HTTP endpoint, in one of three protocols: OpenAI's embeddings, naflex-serve's own, KServe's second.

The last is what Triton Inference Server speaks. OpenAI's takes photos alone; the others take patches too, so all cases.
"""

from __future__ import annotations

import base64
import http.client
import json
import re
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from naflex_export.errors import RequestError
from naflex_export.packs import asked
from naflex_export.packs.answers import SECONDS, Answers, of_cases, vectors_in
from naflex_export.packs.asked import NoAnswerError
from naflex_export.packs.opened import Array, Pack

OPENAI, NAFLEX, KSERVE = "openai", "naflex-serve", "kserve"
PROTOCOLS = (OPENAI, NAFLEX, KSERVE)

PHOTO = "image"
"""The input of a Triton model that takes photos, as `naflex-export --triton` writes it."""

FLOATS = {"FP32": np.float32, "FP16": np.float16, "FP64": np.float64}
TYPES: dict[str, Any] = {**FLOATS, "INT64": np.int64, "INT32": np.int32, "BOOL": np.bool_}
"""KServe's names of what a pack's inputs may be cast to."""


def protocol_of(url: str) -> str:
    """Return the protocol that a URL's path says.

    Raises:
        RequestError: it says none, or the URL is not one of HTTP.
    """
    if not re.match(r"https?://", url):
        raise RequestError(f"--url {url!r}: expected one that begins with http:// or https://")
    path = re.sub(r"^https?://[^/]*", "", url).partition("?")[0].rstrip("/")
    if re.search(r"/v2/models/[^/]+(/versions/[^/]+)?(/infer)?$", path):
        return KSERVE
    if path.endswith("/embeddings"):
        return OPENAI
    if path.endswith("/embed"):
        return NAFLEX
    raise RequestError(
        f"--url {url!r} does not say a protocol: expected a path that ends in /v1/embeddings (OpenAI's), /embed "
        "(naflex-serve) or /v2/models/NAME (Triton), or --protocol"
    )


def from_url(
    pack: Pack, url: str, model: str = "", protocol: str = "", inputs: Mapping[str, str] | None = None
) -> Answers:
    """Return what an endpoint answers; a case that it refuses is a problem.

    Args:
        pack: whose cases to ask.
        url: of the endpoint: http://localhost:8000/v1/embeddings, .../embed or .../v2/models/NAME.
        model: that an OpenAI request names.
        protocol: of `PROTOCOLS`; by default what the URL's path says.
        inputs: of KServe, the model's name of each of the pack's inputs, where it has others.

    Raises:
        RequestError: the URL is not one of HTTP, says no protocol, or a model of KServe cannot be asked about.
    """
    protocol = protocol or protocol_of(url)
    if protocol == KSERVE:
        return _from_kserve(pack, url, inputs or {})
    if protocol == NAFLEX:
        return _from_naflex(pack, url)
    return _from_openai(pack, url, model)


def _from_openai(pack: Pack, url: str, model: str) -> Answers:
    def ask(photos: list[bytes]) -> Array:
        given = [f"data:image/jpeg;base64,{base64.b64encode(photo).decode()}" for photo in photos]
        return vectors_in(_sent(url, _json({"model": model, "input": given})))

    found = of_cases(pack, pack.photo_cases, _each_photo(pack, ask), url)
    return found.with_asked(asked.of_photos(ask, pack)) if found.features else found


def _from_naflex(pack: Pack, url: str) -> Answers:
    def ask(photos: list[bytes]) -> Array:
        given = [base64.b64encode(photo).decode() for photo in photos]
        return vectors_in(_sent(url, _json({"images": given})))

    def of_case(case: str) -> Array:
        patches, *_ = pack.inputs(case).values()
        grids = pack.manifest["cases"][case]["grids"]
        rows = [{"patches": one[: h * w].tolist(), "grid": [h, w]} for one, (h, w) in zip(patches, grids, strict=True)]
        return np.concatenate([vectors_in(_sent(url, _json({"inputs": [row]}))) for row in rows])

    photos = _each_photo(pack, ask)
    found = of_cases(pack, pack.cases, lambda case: (photos if case in pack.photo_cases else of_case)(case), url)
    return found.with_asked(asked.of_photos(ask, pack)) if found.features else found


def _from_kserve(pack: Pack, url: str, names: Mapping[str, str]) -> Answers:
    """Send whole batches with their padding, and photos as they are where the model takes them."""
    base = url.rstrip("/").removesuffix("/infer")
    try:
        about = json.loads(_sent(base))
        kinds = {one["name"]: one["datatype"] for one in about["inputs"]}
        outputs = [one["name"] for one in about.get("outputs", [])]
    except (ValueError, KeyError, TypeError) as error:
        raise RequestError(
            f"--url {url!r}: its model cannot be asked about ({error}): expected .../v2/models/NAME"
        ) from error
    of_model = {name: names.get(name, name) for name in pack.manifest["inputs"]}
    takes_patches = all(name in kinds for name in of_model.values())
    takes_photos = kinds.get(PHOTO) == "BYTES"
    if not takes_patches and not takes_photos:
        raise RequestError(
            f"--url {url!r} has the inputs {', '.join(kinds)}, and the pack has {', '.join(of_model)}: give --input "
            f"NAME=NAME for each, or serve a model that takes photos as {PHOTO}"
        )
    output = "features" if "features" in outputs or not outputs else outputs[0]

    def run(inputs: Mapping[str, Array]) -> Array:
        tensors = []
        for name, array in inputs.items():
            kind = kinds[of_model[name]]
            value = array.astype(TYPES.get(kind, np.float32))
            tensors.append(
                {"name": of_model[name], "shape": list(value.shape), "datatype": kind, "data": value.ravel().tolist()}
            )
        return _output(_sent(f"{base}/infer", _json({"inputs": tensors, "outputs": [{"name": output}]})), output)

    def ask(photos: list[bytes]) -> Array:
        data = b"".join(len(photo).to_bytes(4, "little") + photo for photo in photos)
        tensor = {
            "name": PHOTO,
            "shape": [len(photos), 1],
            "datatype": "BYTES",
            "parameters": {"binary_data_size": len(data)},
        }
        head, _ = _json({"inputs": [tensor], "outputs": [{"name": output}]})
        headers = {"Content-Type": "application/octet-stream", "Inference-Header-Content-Length": str(len(head))}
        return _output(_sent(f"{base}/infer", (head + data, headers)), output)

    photos = _each_photo(pack, ask)

    def answer(case: str) -> Array:
        return photos(case) if takes_photos and case in pack.photo_cases else run(pack.inputs(case))

    cases = pack.cases if takes_patches else pack.photo_cases
    found = of_cases(pack, cases, answer, url)
    questions = (asked.of_photos(ask, pack) if takes_photos else ()) + (
        asked.of_arrays(run, pack) if takes_patches else ()
    )
    return found.with_asked(questions) if found.features else found


def _each_photo(pack: Pack, ask: Callable[[list[bytes]], Array]) -> Callable[[str], Array]:
    """Return what answers a case of photos by a request for each."""
    return lambda case: np.concatenate([ask([photo.read_bytes()]) for photo in pack.photos(case)])


def _output(text: str, name: str) -> Array:
    """Return an output of KServe's reply, [images, features]."""
    outputs = {one["name"]: one for one in json.loads(text)["outputs"]}
    if name not in outputs:
        raise ValueError(f"the reply has the outputs {', '.join(outputs)}: expected {name!r}")
    return np.asarray(outputs[name]["data"], dtype=np.float64).reshape(outputs[name]["shape"])


MOST_PARTS = 1024
"""Of a reply, each of at most a MiB: no batch of vectors has more."""

Body = tuple[bytes, dict[str, str]]


def _json(content: object) -> Body:
    return json.dumps(content).encode(), {"Content-Type": "application/json"}


def _sent(url: str, body: Body | None = None) -> str:
    """Return the reply to a request, a GET where there is no body.

    Raises:
        NoAnswerError: there is no reply, or none that ends.
        ValueError: it failed; the message has the status and what the server says.
    """
    content, headers = body or (None, {})
    end, parts = time.monotonic() + SECONDS, list[bytes]()
    try:
        with urllib.request.urlopen(urllib.request.Request(url, content, headers), timeout=SECONDS) as reply:
            while part := reply.read1(2**20):
                parts.append(part)
                if time.monotonic() > end or len(parts) > MOST_PARTS:
                    raise NoAnswerError(f"the reply had no end after {sum(map(len, parts))} bytes")
    except urllib.error.HTTPError as error:
        with error:  # it holds the connection
            said = error.read(1000).decode(errors="replace").strip()
        raise ValueError(f"status {error.code}: {said[:300]}") from error
    except OSError as error:
        raise NoAnswerError(f"no reply: {error}") from error
    except http.client.HTTPException as error:
        raise ValueError(f"no reply of HTTP: {type(error).__name__} {error}") from error
    return b"".join(parts).decode()
