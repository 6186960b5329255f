# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: nas.assistant contributors
"""The HTTP API and its pages: a Starlette application in front of an engine."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from nas_assistant.bodies import Bodies
from nas_assistant.endpoint import Endpoint, find, may_ask
from nas_assistant.engine import Engine, EngineUnavailable, Kind, Model
from nas_assistant.errors import ApiError, unavailable
from nas_assistant.generation import parse_chat, parse_completion, parse_embedding, parse_rerank
from nas_assistant.keys import ApiKey, KeyRing
from nas_assistant.lingering import Lingering
from nas_assistant.metrics import CONTENT_TYPE
from nas_assistant.middleware import KEY, ApiKeyGuard, RequestLog, error_response
from nas_assistant.openapi import describe
from nas_assistant.pages import page_routes
from nas_assistant.settings import Settings


def create_app(settings: Settings, engine: Engine, ring: KeyRing) -> Starlette:
    """The whole API over ``engine``, for the keys in ``ring``; and the pages that talk to it."""

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        await engine.start()
        yield
        await engine.close()

    async def healthz(_: Request) -> Response:
        return JSONResponse({"status": "ok"})

    async def readyz(request: Request) -> Response:
        state = engine.state
        if not _at_home(request):
            # Neither paths and names of models nor names of clouds.
            if not state.ready:
                return error_response(unavailable("at home it says why"), request.scope)
            return JSONResponse({"status": "degraded" if state.degraded else "ready"})
        if not state.ready:
            return error_response(unavailable(state.reason), request.scope)
        told: dict[str, object] = {"status": "ready", "models": sorted(state.models)}
        if state.degraded:
            told |= {"status": "degraded", "reason": state.degraded, "loading": state.loading}
        return JSONResponse(told)

    async def models(request: Request) -> Response:
        key: ApiKey = request.scope[KEY]
        allowed = [each for each in engine.state.models.values() if may_ask(each, key)]
        return JSONResponse({"object": "list", "data": [_describe(each) for each in allowed]})

    async def model(request: Request) -> Response:
        name, key = request.path_params["id"], request.scope[KEY]
        return JSONResponse(_describe(find(settings, engine, name, key)))

    description = describe()
    described = JSONResponse(description)

    async def openapi(_: Request) -> Response:
        return described

    async def report(request: Request, what: str, kind: str) -> Response:
        try:
            return Response(await engine.report(what), media_type=kind)
        except EngineUnavailable as error:
            return error_response(unavailable(str(error)), request.scope)

    async def metrics(request: Request) -> Response:
        return await report(request, "metrics", CONTENT_TYPE)

    async def status(request: Request) -> Response:
        return await report(request, "status", "application/json")

    common = (settings, engine, Bodies())
    chat = Endpoint("/v1/chat/completions", parse_chat, {Kind.CHAT}, *common)
    completion = Endpoint("/v1/completions", parse_completion, {Kind.CHAT, Kind.TEXT}, *common)
    embedding = Endpoint("/v1/embeddings", parse_embedding, {Kind.EMBEDDING}, *common)
    rerank = Endpoint("/v1/rerank", parse_rerank, {Kind.RERANK}, *common)
    app = Starlette(
        routes=[
            Route("/healthz", healthz),
            Route("/readyz", readyz),
            Route("/openapi.json", openapi),
            Route("/metrics", metrics),
            Route("/admin/status", status),
            Route("/v1/models", models),
            Route("/v1/models/{id}", model),
            Route(chat.path, chat, methods=["POST"]),
            Route(completion.path, completion, methods=["POST"]),
            Route(embedding.path, embedding, methods=["POST"]),
            Route(rerank.path, rerank, methods=["POST"]),
            *page_routes(description),
        ],
        middleware=[
            Middleware(Lingering),
            Middleware(RequestLog, access_log=settings.access_log, note=engine.note),
            Middleware(ApiKeyGuard, ring=ring),
        ],
        exception_handlers={ApiError: _api_error, HTTPException: _http_error},
        lifespan=lifespan,
    )
    # A redirect could not know the scheme that the client used, and would send it to plain HTTP.
    app.router.redirect_slashes = False
    return app


def _at_home(request: Request) -> bool:
    """Whether somebody asks who may hear more: by no proxy, or by one that says so. Of what comes
    without one nothing is known, and it comes from the machine itself.
    """
    headers = request.headers
    return "x-forwarded-for" not in headers or headers.get("x-nas-at-home") == "1"


def _describe(model: Model) -> dict[str, str | int]:
    return {
        "id": model.name,
        "object": "model",
        "created": model.created,
        "owned_by": "nas.assistant",
        "kind": model.kind,
        "served_by": model.served_by,
    }


async def _api_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    return error_response(error, request.scope)


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    if error.status_code == 404:
        code, message = "not_found", f"There is nothing at {request.url.path}."
    elif error.status_code == 405:
        code, message = (
            "method_not_allowed",
            f"{request.method} is not allowed at {request.url.path}.",
        )
    else:
        code, message = "http_error", error.detail
    failure = ApiError(error.status_code, code, message, headers=error.headers)
    return error_response(failure, request.scope)
