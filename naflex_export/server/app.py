"""The server's addresses, by FastAPI."""

from __future__ import annotations

import base64
import contextlib
import io
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import numpy as np
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException

from naflex_export.server.asked import body_of, drained, images_of, images_of_input, parsed
from naflex_export.server.engine import Engine
from naflex_export.server.settings import Refused
from naflex_export.version import __version__

NPY = "application/x-npy"

OPENED_BY = {
    "summary": "Vectors of photos or of patches",
    "description": "Photos as multipart files, as the body itself or in base64; or patches with their grid.",
}


def make_app(make_engine: Callable[[], Engine], about: dict[str, Any]) -> FastAPI:
    """Return the application; an engine is made when it starts, in its event loop, and closed when it stops.

    Args:
        make_engine: makes it.
        about: what the artifact is, for `/`.
    """
    engine: Engine

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        nonlocal engine
        engine = make_engine()
        engine.start()
        app.state.engine = engine
        yield
        await engine.close()

    async def asked_for(request: Request) -> bytes:
        most = engine.settings.most_bytes
        if not engine.is_ready:
            await drained(request.stream(), most)
            raise Refused(503, engine.full)
        return await body_of(request.headers, request.stream(), most)

    async def embed(request: Request) -> Response:
        body, kind = await asked_for(request), request.headers.get("content-type", "")
        images = await images_of(body, kind, engine.settings.most_bytes)
        found = await engine.vectors_of(images)
        if NPY in request.headers.get("accept", ""):
            stream = io.BytesIO()
            np.save(stream, np.stack([vector for vector, _ in found]))
            return Response(stream.getvalue(), media_type=NPY)
        vectors = [vector.tolist() for vector, _ in found]
        return _json({"vectors": vectors, "grids": [list(grid) for _, (_, grid) in found]})

    async def embeddings(request: Request) -> Response:
        given = parsed(await asked_for(request))
        encoding = given.get("encoding_format", "float")
        if encoding not in ("float", "base64"):
            raise Refused(400, f"encoding_format {encoding!r} is not known: expected float or base64")
        found = await engine.vectors_of(images_of_input(given))
        data = [
            {
                "object": "embedding",
                "index": index,
                "embedding": vector.tolist()
                if encoding == "float"
                else base64.b64encode(vector.astype("<f4").tobytes()).decode(),
            }
            for index, (vector, _) in enumerate(found)
        ]
        tokens = sum(grid.tokens for _, (_, grid) in found)
        usage = {"prompt_tokens": tokens, "total_tokens": tokens}
        return _json({"object": "list", "data": data, "model": about["model"], "usage": usage})

    async def models(request: Request) -> Response:
        return _json(
            {"object": "list", "data": [{"id": about["model"], "object": "model", "owned_by": "naflex_export"}]}
        )

    async def root(request: Request) -> Response:
        return _json(about)

    async def health(request: Request) -> Response:
        return _json({"status": "alive"})

    async def ready(request: Request) -> Response:
        if engine.is_ready:
            return _json({"status": "ready"})
        return _fault(503, engine.full)

    async def metrics(request: Request) -> Response:
        return Response(engine.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    app = FastAPI(title="naflex-serve", version=__version__, lifespan=lifespan)
    app.add_api_route("/embed", embed, methods=["POST"], openapi_extra={**OPENED_BY, "requestBody": _BODY})
    app.add_api_route("/v1/embeddings", embeddings, methods=["POST"], summary="The same, as OpenAI's clients ask")
    for path, handler in {
        "/": root,
        "/health": health,
        "/ready": ready,
        "/metrics": metrics,
        "/v1/models": models,
    }.items():
        app.add_api_route(path, handler, methods=["GET"])
    app.add_exception_handler(Refused, _refused)
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
    return Response(json.dumps(content), media_type="application/json")


def _fault(status: int, message: str) -> Response:
    kind = "server_error" if status >= 500 else "invalid_request_error"
    headers = {"Retry-After": "1"} if status == 503 else None
    return JSONResponse({"error": {"message": message, "type": kind, "code": status}}, status, headers)


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, Refused)
    return _fault(error.status, error.message)


async def _http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return _fault(error.status_code, f"{request.method} {request.url.path}: {error.detail}")


async def _unexpected(request: Request, error: Exception) -> Response:
    return _fault(500, f"unexpected {type(error).__name__}; the server's log has more")
