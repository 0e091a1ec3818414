"""The paths of the server and what they say.

POST /v1/completions     `completions`
GET  /v1/models[/ID]     the one model, its context length, the engine behind it
GET  /health             200 while the engine answers, 503 from its last failure on
GET  /metrics            Prometheus' text format
GET  /version            paceline's version and the engine's name
"""

from __future__ import annotations

import time
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

import paceline
from paceline.serve.completions import Completions, Served, check_key
from paceline.serve.dispatch import Dispatcher
from paceline.serve.metrics import Metrics
from paceline.serve.protocol import ApiError

__all__ = ["make_app"]


class _Pages:
    """The paths that only tell."""

    def __init__(self, served: Served, dispatcher: Dispatcher, metrics: Metrics) -> None:
        self._served = served
        self._dispatcher = dispatcher
        self._metrics = metrics
        self._created = int(time.time())

    async def models(self, request: Request) -> Response:
        check_key(self._served, request.scope)
        return JSONResponse({"object": "list", "data": [self._model()]})

    async def model(self, request: Request) -> Response:
        check_key(self._served, request.scope)
        name = request.path_params["name"]
        if name != self._served.model:
            raise ApiError(
                404,
                f"There is no model '{name}'; this server has '{self._served.model}'.",
                code="model_not_found",
            )
        return JSONResponse(self._model())

    async def health(self, request: Request) -> Response:
        del request
        failure = self._dispatcher.failure
        if failure is not None:
            return JSONResponse({"status": "failing", "error": failure.message}, status_code=503)
        return JSONResponse({"status": "ok"})

    async def metrics(self, request: Request) -> Response:
        del request
        text = self._metrics.text(
            in_flight=self._dispatcher.num_in_flight,
            queued=self._dispatcher.num_queued,
            state=self._dispatcher.engine_state(),
        )
        return PlainTextResponse(text, media_type="text/plain; version=0.0.4")

    async def version(self, request: Request) -> Response:
        del request
        return JSONResponse({"version": paceline.__version__, "engine": self._served.engine})

    def _model(self) -> dict[str, Any]:
        return {
            "id": self._served.model,
            "object": "model",
            "created": self._created,
            "owned_by": "paceline",
            "max_model_len": self._served.max_model_len,
            "engine": self._served.engine,
            "simulated": self._served.is_simulated,
        }


def make_app(served: Served, dispatcher: Dispatcher, metrics: Metrics) -> Starlette:
    """The ASGI application over a started engine."""
    pages = _Pages(served, dispatcher, metrics)
    completions = Completions(served, dispatcher, metrics)
    return Starlette(
        routes=[
            Route("/v1/completions", completions, methods=["POST"]),
            Route("/v1/models", pages.models),
            Route("/v1/models/{name:path}", pages.model),
            Route("/health", pages.health),
            Route("/metrics", pages.metrics),
            Route("/version", pages.version),
        ],
        exception_handlers={HTTPException: _http_error, ApiError: _api_error},
    )


async def _http_error(request: Request, error: Exception) -> Response:
    """A path or a method that is not served."""
    assert isinstance(error, HTTPException)
    message = f"{request.method} {request.url.path}: {error.detail}."
    if error.status_code == 404:
        message += " This server has POST /v1/completions, and GET /v1/models, /health, /metrics."
    return _as_response(ApiError(error.status_code, message), error.headers)


async def _api_error(request: Request, error: Exception) -> Response:
    del request
    assert isinstance(error, ApiError)
    return _as_response(error, None)


def _as_response(error: ApiError, headers: Any) -> Response:
    return JSONResponse(error.as_json(), status_code=error.status, headers=headers)
