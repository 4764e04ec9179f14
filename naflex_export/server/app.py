"""The server's addresses, by FastAPI."""

from __future__ import annotations

import base64
import contextlib
import io
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import numpy as np
import orjson
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from naflex_export.server.asked import body_of, drained, images_of, images_of_input, parsed
from naflex_export.server.engine import Engine
from naflex_export.server.settings import Refused
from naflex_export.version import __version__

NPY = "application/x-npy"

OPENED_BY = {
    "summary": "Vectors of photos or of patches",
    "description": "Photos as multipart files, as the body itself or in base64; or patches with their grid.",
    "parameters": [
        {
            "name": "tokens",
            "in": "query",
            "schema": {"type": "integer"},
            "description": "The most tokens of a photo; the largest bucket's by default.",
        }
    ],
}


class Addresses:
    """What each address of the server answers.

    Args:
        make_engine: makes the engine, in the event loop.
        about: what the artifact is, for `/`.
    """

    def __init__(self, make_engine: Callable[[], Engine], about: dict[str, Any]) -> None:
        self.about = about
        self._make_engine = make_engine

    @contextlib.asynccontextmanager
    async def running(self, app: FastAPI) -> AsyncIterator[None]:
        """Have an engine for as long as the application runs."""
        self.engine = app.state.engine = self._make_engine()
        self.engine.start()
        yield
        await self.engine.close()

    async def embed(self, request: Request) -> Response:
        """Answer `/embed`."""
        body, kind = await self._body(request), request.headers.get("content-type", "")
        images = await images_of(body, kind, self.engine.settings.most_bytes)
        found = await self.engine.vectors_of(images, self._budget(request))
        if NPY in request.headers.get("accept", ""):
            stream = io.BytesIO()
            np.save(stream, np.stack([vector for vector, _ in found]))
            return Response(stream.getvalue(), media_type=NPY)
        return _json({"vectors": [vector for vector, _ in found], "grids": [list(grid) for _, (_, grid) in found]})

    async def embeddings(self, request: Request) -> Response:
        """Answer `/v1/embeddings`."""
        given = parsed(await self._body(request))
        encoding = given.get("encoding_format", "float")
        if encoding not in ("float", "base64"):
            raise Refused(400, f"encoding_format {encoding!r} is not known: expected float or base64")
        found = await self.engine.vectors_of(images_of_input(given), self._budget(request))
        data = [
            {
                "object": "embedding",
                "index": index,
                "embedding": vector
                if encoding == "float"
                else base64.b64encode(vector.astype("<f4").tobytes()).decode(),
            }
            for index, (vector, _) in enumerate(found)
        ]
        tokens = sum(grid.tokens for _, (_, grid) in found)
        usage = {"prompt_tokens": tokens, "total_tokens": tokens}
        return _json({"object": "list", "data": data, "model": self.about["model"], "usage": usage})

    async def models(self, request: Request) -> Response:
        """Answer `/v1/models`."""
        served = {"id": self.about["model"], "object": "model", "owned_by": "naflex_export"}
        return _json({"object": "list", "data": [served]})

    async def root(self, request: Request) -> Response:
        """Answer `/`."""
        return _json(self.about)

    async def health(self, request: Request) -> Response:
        """Answer `/health`: the process is alive."""
        return _json({"status": "alive"})

    async def ready(self, request: Request) -> Response:
        """Answer `/ready`: a request would be taken."""
        return _json({"status": "ready"}) if self.engine.is_ready else _fault(503, self.engine.full)

    async def metrics(self, request: Request) -> Response:
        """Answer `/metrics`."""
        return Response(self.engine.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    async def _body(self, request: Request) -> bytes:
        most = self.engine.settings.most_bytes
        if not self.engine.is_ready:
            await drained(request.stream(), most)
            raise Refused(503, self.engine.full)
        return await body_of(request.headers, request.stream(), most)

    def _budget(self, request: Request) -> int | None:
        """Return the most tokens that a request wants for its photos."""
        given = request.query_params.get("tokens")
        most = self.engine.served.manifest.buckets[-1].tokens
        if given is None or (given.isdecimal() and 1 <= int(given) <= most):
            return None if given is None else int(given)
        raise Refused(400, f"tokens={given[:20]!r}: expected an integer from 1 to {most}, the largest bucket's")


def make_app(addresses: Addresses) -> FastAPI:
    """Return the application."""
    app = FastAPI(title="naflex-serve", version=__version__, lifespan=addresses.running)
    app.add_api_route("/embed", addresses.embed, methods=["POST"], openapi_extra={**OPENED_BY, "requestBody": _BODY})
    app.add_api_route(
        "/v1/embeddings", addresses.embeddings, methods=["POST"], summary="The same, for OpenAI's clients"
    )
    app.add_api_route("/v1/models", addresses.models, methods=["GET"])
    for name in ("root", "health", "ready", "metrics"):
        app.add_api_route("/" if name == "root" else f"/{name}", getattr(addresses, name), methods=["GET"])
    app.add_exception_handler(Refused, _refused)
    app.add_exception_handler(ClientDisconnect, _gone)
    app.add_exception_handler(HTTPException, _http)
    app.add_exception_handler(Exception, _unexpected)
    app.add_middleware(_Measured)
    return app


_BODY = {
    "content": {
        "image/*": {},
        "application/octet-stream": {},
        "multipart/form-data": {"schema": {"type": "object", "additionalProperties": {"format": "binary"}}},
        "application/json": {
            "schema": {
                "type": "object",
                "properties": {
                    "images": {"type": "array", "items": {"type": "string", "format": "base64"}},
                    "patches": {"type": "array", "items": {"type": "array", "items": {"type": "number"}}},
                    "grid": {"type": "array", "items": {"type": "integer"}, "minItems": 2, "maxItems": 2},
                },
            }
        },
        "application/x-npz": {},
    }
}


class _Measured:
    """Counts and times each request, without what a middleware of Starlette's own costs it."""

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(
        self, scope: dict[str, Any], receive: Any, send: Callable[[dict[str, Any]], Awaitable[None]]
    ) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        began, status = time.perf_counter(), 500

        async def noted(message: dict[str, Any]) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self.app(scope, receive, noted)
        finally:
            engine = scope["app"].state.engine
            route = scope.get("route")
            path = "other" if route is None else route.path
            engine.metrics.requests.labels(path, status).inc()
            engine.metrics.seconds.labels(path).observe(time.perf_counter() - began)


def _json(content: object) -> Response:
    return Response(orjson.dumps(content, option=orjson.OPT_SERIALIZE_NUMPY), media_type="application/json")


def _fault(status: int, message: str) -> Response:
    kind = "server_error" if status >= 500 else "invalid_request_error"
    headers = {"Retry-After": "1"} if status == 503 else None
    return JSONResponse({"error": {"message": message, "type": kind, "code": status}}, status, headers)


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, Refused)
    return _fault(error.status, error.message)


async def _gone(request: Request, error: Exception) -> Response:
    return _fault(499, "the client went before its request was whole")  # for the metrics: nobody reads it


async def _http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return _fault(error.status_code, f"{request.method} {request.url.path}: {error.detail}")


async def _unexpected(request: Request, error: Exception) -> Response:
    return _fault(500, f"unexpected {type(error).__name__}; the server's log has more")
