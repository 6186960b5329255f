# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: nas.assistant contributors
"""The HTTP API and its pages: a Starlette application in front of an engine."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from nas_assistant.engine import (
    CLIENT_GONE,
    Engine,
    EngineAnswer,
    EngineBusy,
    EngineUnavailable,
    Kind,
    Model,
    QuotaExceeded,
)
from nas_assistant.errors import ApiError, bad_request, from_engine, unavailable
from nas_assistant.generation import Generation, parse_chat, parse_completion, parse_embedding
from nas_assistant.keys import ApiKey, KeyRing
from nas_assistant.meter import Meter
from nas_assistant.metrics import CONTENT_TYPE
from nas_assistant.middleware import KEY, ApiKeyGuard, RequestLog, error_response
from nas_assistant.openapi import describe
from nas_assistant.pages import page_routes
from nas_assistant.settings import Settings

MAX_BODY = 4 << 20
_BODY_SECONDS = 60
_STREAM_HEADERS = {
    "content-type": "text/event-stream; charset=utf-8",
    "cache-control": "no-cache",
    # nginx would gather the tokens otherwise.
    "x-accel-buffering": "no",
}


def create_app(settings: Settings, engine: Engine, ring: KeyRing) -> Starlette:
    """The whole API over ``engine``, for the keys in ``ring``; and the pages that talk to it."""

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        await engine.start()
        yield
        await engine.close()

    async def healthz(_: Request) -> Response:
        return JSONResponse({"status": "ok"})

    async def readyz(_: Request) -> Response:
        if not engine.state.ready:
            return error_response(unavailable(engine.state.reason))
        return JSONResponse({"status": "ready", "models": sorted(engine.state.models)})

    async def models(request: Request) -> Response:
        key: ApiKey = request.scope[KEY]
        allowed = [each for each in engine.state.models.values() if key.may_use(each.name)]
        return JSONResponse({"object": "list", "data": [_describe(each) for each in allowed]})

    async def model(request: Request) -> Response:
        name, key = request.path_params["id"], request.scope[KEY]
        return JSONResponse(_describe(_find(settings, engine, name, key)))

    description = JSONResponse(describe())

    async def openapi(_: Request) -> Response:
        return description

    async def report(what: str, kind: str) -> Response:
        try:
            return Response(await engine.report(what), media_type=kind)
        except EngineUnavailable as error:
            return error_response(unavailable(str(error)))

    async def metrics(_: Request) -> Response:
        return await report("metrics", CONTENT_TYPE)

    async def status(_: Request) -> Response:
        return await report("status", "application/json")

    chat = _Generate("/v1/chat/completions", parse_chat, {Kind.CHAT}, settings, engine)
    completion = _Generate(
        "/v1/completions", parse_completion, {Kind.CHAT, Kind.TEXT}, settings, engine
    )
    embedding = _Generate("/v1/embeddings", parse_embedding, {Kind.EMBEDDING}, settings, engine)
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
            *page_routes(),
        ],
        middleware=[
            Middleware(RequestLog, access_log=settings.access_log),
            Middleware(ApiKeyGuard, ring=ring),
        ],
        exception_handlers={ApiError: _api_error, HTTPException: _http_error},
        lifespan=lifespan,
    )
    # A redirect could not know the scheme that the client used, and would send it to plain HTTP.
    app.router.redirect_slashes = False
    return app


class _Generate:
    """One of the endpoints that a model answers, streamed or whole; those of some kinds can."""

    def __init__(
        self,
        path: str,
        parse: Callable[[bytes], Generation],
        kinds: set[Kind],
        settings: Settings,
        engine: Engine,
    ) -> None:
        self.path = path
        self._parse = parse
        self._kinds = kinds
        self._settings = settings
        self._engine = engine

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        generation = self._parse(await _read_body(Request(scope, receive)))
        name = generation.model or self._default()
        model = _find(self._settings, self._engine, name, scope[KEY])
        if model.kind not in self._kinds:
            raise _other_kind(model, self.path)
        most = self._settings.models[model.name].longest_body * generation.texts
        if len(generation.body) > most:
            # The engine would find out too, after taking 80 times as much memory.
            raise bad_request(
                f"The request has {len(generation.body)} bytes; at most {most} are taken for a "
                f"context of {self._settings.models[model.name].context} tokens.",
                None,
                "context_length_exceeded",
            )
        answering = asyncio.ensure_future(
            self._answer(generation, model.name, scope, receive, send)
        )
        leaving = asyncio.ensure_future(_client_left(receive))
        try:
            await asyncio.wait((answering, leaving), return_when=asyncio.FIRST_COMPLETED)
            if answering.done():
                await answering
        finally:
            # A client that left, or a worker that stops: the engine must not go on for nobody.
            for task in (answering, leaving):
                task.cancel()
            await asyncio.gather(answering, leaving, return_exceptions=True)

    def _default(self) -> str:
        """The model that answers when a request names none: the chosen one; for vectors, the first
        that makes them.
        """
        embedders = (
            model.name
            for model in self._engine.state.models.values()
            if model.kind is Kind.EMBEDDING and Kind.EMBEDDING in self._kinds
        )
        return next(embedders, self._settings.variant)

    async def _answer(
        self, generation: Generation, model: str, scope: Scope, receive: Receive, send: Send
    ) -> None:
        meter = Meter(len(generation.body))
        try:
            async with self._engine.generate(
                model, self.path, generation.body, scope[KEY].name
            ) as answer:
                if answer.status != 200:
                    raise from_engine(answer.status, await answer.read())
                answer.outcome = meter.outcome(CLIENT_GONE)
                if generation.stream:
                    await _stream(answer, meter, generation.wants_usage, send)
                    return
                body = await answer.read()
                meter.feed(body)
                answer.outcome = meter.outcome(200)
        except QuotaExceeded as error:
            raise ApiError(
                429,
                "rate_limit_exceeded",
                str(error),
                headers={"Retry-After": str(error.retry_after)},
            ) from error
        except EngineBusy as error:
            raise ApiError(
                429,
                "queue_full",
                "Too many requests are waiting already. Try again later.",
                headers={"Retry-After": str(error.retry_after)},
            ) from error
        except EngineUnavailable as error:
            raise unavailable(str(error)) from error
        await Response(body, media_type="application/json")(scope, receive, send)


async def _stream(answer: EngineAnswer, meter: Meter, wants_usage: bool, send: Send) -> None:
    """Pass the engine's events on as they are; only errors are rewritten, and figures left out that
    nobody asked for.
    """
    headers = [(name.encode(), value.encode()) for name, value in _STREAM_HEADERS.items()]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    held, status = b"", 200
    try:
        async for chunk in answer.chunks():
            held += chunk
            # Whole events only, so that an error can never be split in two. Usually a chunk is one
            # event.
            end = held.rfind(b"\n\n") + 2
            if end > 1:
                events, held = held[:end], held[end:]
                meter.feed(events)
                answer.outcome = meter.outcome(CLIENT_GONE)
                events = _rewrite(events if wants_usage else _without_usage(events))
                await send({"type": "http.response.body", "body": events, "more_body": True})
    except EngineUnavailable as error:
        held, status = b"data: " + unavailable(str(error)).body() + b"\n\n", 503
    answer.outcome = meter.outcome(status)
    await send({"type": "http.response.body", "body": held, "more_body": False})


def _without_usage(events: bytes) -> bytes:
    # As below; a chat's event with figures has no text, and an event with text no figures.
    if b'"choices":[]' not in events:
        return events
    return b"\n\n".join(event for event in events.split(b"\n\n") if b'"choices":[]' not in event)


def _rewrite(events: bytes) -> bytes:
    # Inside a generated text the quotes would be escaped: these bytes are an error object and
    # nothing else.
    if b'{"error"' not in events:
        return events
    rewritten = []
    for event in events.split(b"\n\n"):
        name, _, data = event.partition(b":")
        if name in (b"data", b"error") and data.lstrip().startswith(b'{"error"'):
            event = b"data: " + from_engine(500, data).body()
        rewritten.append(event)
    return b"\n\n".join(rewritten)


async def _read_body(request: Request) -> bytes:
    too_large = ApiError(413, "request_too_large", f"The body is larger than {MAX_BODY >> 20} MiB.")
    length = request.headers.get("content-length", "0")
    if not length.isdecimal() or int(length) > MAX_BODY:
        raise too_large
    body = bytearray()
    try:
        async with asyncio.timeout(_BODY_SECONDS):
            async for chunk in request.stream():
                body += chunk
                if len(body) > MAX_BODY:
                    raise too_large
    except TimeoutError as error:
        raise ApiError(
            408, "request_timeout", f"The body did not arrive within {_BODY_SECONDS} s."
        ) from error
    except ClientDisconnect as error:
        raise ApiError(
            400, "client_closed_request", "The client left before the body was complete."
        ) from error
    return bytes(body)


async def _client_left(receive: Receive) -> None:
    with suppress(OSError):
        while (await receive())["type"] != "http.disconnect":
            pass


def _find(settings: Settings, engine: Engine, name: str, key: ApiKey) -> Model:
    state = engine.state
    if not key.may_use(name):
        raise ApiError(
            403,
            "model_not_allowed",
            f"The API key '{key.name}' is for {', '.join(key.models)} alone.",
            param="model",
        )
    model = state.models.get(name)
    if model is not None:
        return model
    if name not in settings.models:
        raise ApiError(404, "model_not_found", f"The model '{name}' does not exist.", param="model")
    raise unavailable(state.unusable.get(name, state.reason))


def _other_kind(model: Model, path: str) -> ApiError:
    """What to say to who asks a model for what it is not for."""
    if model.kind is Kind.EMBEDDING:
        code = "model_not_text"
        message = "turns texts into vectors: ask it at /v1/embeddings"
    elif path == "/v1/embeddings":
        code = "model_not_embedding"
        message = "writes text; vectors come from an embedding model, which the configuration names"
    else:
        code = "model_not_chat"
        message = (
            "has no chat template, so it cannot chat: use /v1/completions, another model, or set "
            "chat_template for it in the configuration"
        )
    return bad_request(f"The model '{model.name}' {message}.", "model", code)


def _describe(model: Model) -> dict[str, str | int]:
    return {
        "id": model.name,
        "object": "model",
        "created": model.created,
        "owned_by": "nas.assistant",
        "kind": model.kind,
    }


async def _api_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    return error_response(error)


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
    return error_response(ApiError(error.status_code, code, message, headers=error.headers))
