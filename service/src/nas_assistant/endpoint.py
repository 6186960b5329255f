# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: nas.assistant contributors
"""One of the endpoints that a model answers: who answers a request, whole or as a stream, and who
does when that one cannot.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from nas_assistant.bodies import Bodies, Longest, Share, read_body
from nas_assistant.engine import (
    CLIENT_GONE,
    Call,
    Engine,
    EngineAnswer,
    EngineBusy,
    EngineUnavailable,
    Kind,
    Model,
    QuotaExceeded,
)
from nas_assistant.errors import ApiError, bad_request, unavailable
from nas_assistant.generation import Generation
from nas_assistant.keys import ApiKey
from nas_assistant.meter import Meter
from nas_assistant.middleware import HAD_SLOT, KEY, REQUEST_ID, SERVED_BY, credentials
from nas_assistant.settings import (
    LONGEST_TEXTS,
    LONGEST_TO_CLOUD,
    MOST_CONTEXT,
    Settings,
    longest_body,
)
from nas_assistant.streams import rewrite, say_who, without_usage
from nas_assistant.transcript import Transcript

_LONGEST_EVENT = 4 << 20
_DONE = b"data: [DONE]\n\n"
# What the proxy of a member of a pool puts on a request that came from another member, and the
# status after which that one asks another: no other answer of ours has it.
_POOL = b"x-nas-pool"
ASK_ANOTHER = 502
# Where models that write no text answer.
_ASKED_AT = {Kind.EMBEDDING: "/v1/embeddings", Kind.RERANK: "/v1/rerank"}
_STREAM_HEADERS = {
    "content-type": "text/event-stream; charset=utf-8",
    "cache-control": "no-cache",
    # nginx would gather the tokens otherwise.
    "x-accel-buffering": "no",
}


class _Elsewhere(Exception):
    """One model cannot answer now; another one may. ``reason`` is a word for the books;
    ``counted``: the request counts for its key's limits already.
    """

    def __init__(self, reason: str, error: ApiError, *, counted: bool = True) -> None:
        super().__init__(error.message)
        self.reason = reason
        self.error = error
        self.counted = counted


@dataclass
class _Exchange:
    """A request, and whether its answer has begun: then no other model can give one.
    ``transcript``: what the log is to have of it; none unless that was switched on.
    """

    generation: Generation
    key: ApiKey
    scope: Scope
    receive: Receive
    send: Send
    transcript: Transcript | None = None
    begun: bool = False


class Endpoint:
    """Answers at ``path``; models of ``kinds`` can."""

    def __init__(
        self,
        path: str,
        parse: Callable[[bytes], Generation],
        kinds: set[Kind],
        settings: Settings,
        engine: Engine,
        bodies: Bodies,
    ) -> None:
        self.path = path
        self._parse = parse
        self._kinds = kinds
        self._settings = settings
        self._engine = engine
        self._bodies = bodies

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI entry."""
        with self._bodies.share() as share:
            # Nothing else may keep the body: it may wait for long.
            read = self._read(Request(scope, receive), share)
            await self._serve(_Exchange(await read, scope[KEY], scope, receive, send))

    async def _read(self, request: Request, share: Share) -> Generation:
        generation = self._parse(await read_body(request, self._longest(), share))
        share.hold(len(generation.body))  # which is all that waits
        return generation

    def _longest(self) -> Longest:
        """What is read of a request: no model takes more."""
        settings, state = self._settings, self._engine.state
        context = max((settings.models[each].context for each in state.models
                       if each in settings.models), default=MOST_CONTEXT)  # fmt: skip
        most = longest_body(max(context, MOST_CONTEXT))
        if self._kinds & _ASKED_AT.keys() and most < LONGEST_TEXTS:
            return Longest(LONGEST_TEXTS, _too_many_texts())
        if settings.cloud_models and most < LONGEST_TO_CLOUD:
            return Longest(LONGEST_TO_CLOUD, _too_long_for_cloud("more"))
        return Longest(most, _too_long("more", longest_body(context), context))

    async def _serve(self, exchange: _Exchange) -> None:
        scope = exchange.scope
        if self._settings.log_text:
            secret = credentials(scope)[1]
            exchange.transcript = Transcript(exchange.generation.body, secret)
        answering = asyncio.ensure_future(self._answer(exchange))
        leaving = asyncio.ensure_future(_client_left(exchange.receive))
        try:
            await asyncio.wait((answering, leaving), return_when=asyncio.FIRST_COMPLETED)
            if answering.done():
                await answering
        finally:
            # A client that left, or a worker that stops: the engine must not go on for nobody.
            for task in (answering, leaving):
                task.cancel()
            await asyncio.gather(answering, leaving, return_exceptions=True)
            if exchange.transcript:
                exchange.transcript.log(scope[REQUEST_ID], exchange.key.name)

    async def _answer(self, exchange: _Exchange) -> None:
        name = exchange.generation.model or self._default()
        fallback = self._fallback(name, exchange.key)
        try:
            await self._ask(exchange, name, may_wait=fallback is None)
        except _Elsewhere as first:
            here = name in self._settings.models and first.reason != "context"
            if here and _asked_by_pool(exchange.scope):
                # Another NAS may have room, and comes before any cloud.
                first.error.status = ASK_ANOTHER
                raise first.error from first
            if fallback is None:
                raise first.error from first
            try:
                await self._ask(exchange, fallback, instead=first)
            except _Elsewhere as second:
                # What the client asked for is what it should hear of.
                first.error.message += f" {second.error.message}"
                first.error.headers |= _who(second.error)
                raise first.error from second

    def _default(self) -> str:
        """The model that answers when a request names none: the chosen one, which writes; for what
        needs another kind, the first of it, whether or not it can be asked now: an upstream has no
        leave to read what one of this machine is there for.
        """
        settings, state = self._settings, self._engine.state
        if Kind.TEXT in self._kinds or Kind.CHAT in self._kinds:
            return settings.variant
        kinds = {**state.kinds, **{name: each.kind for name, each in state.models.items()}}
        here = [name for name in settings.models if kinds.get(name) in self._kinds]
        there = [name for name, each in settings.cloud_models.items() if each.kind in self._kinds]
        if there and not here:
            # One whose file cannot be read may be of that kind.
            here = [name for name in settings.models if name not in kinds]
        return next(iter([*here, *there]), settings.variant)

    def _fallback(self, name: str, key: ApiKey) -> str | None:
        """The cloud model that may answer in the place of another one, with this key."""
        model = self._settings.models.get(name)
        fallback = self._settings.cloud_models.get(model.fallback) if model else None
        if fallback is None or key.local_only or not key.may_use(fallback.name):
            return None
        return fallback.name if fallback.kind in self._kinds else None

    async def _ask(
        self,
        exchange: _Exchange,
        name: str,
        *,
        may_wait: bool = True,
        instead: _Elsewhere | None = None,
    ) -> None:
        """Have a model answer. ``may_wait``: as long as it takes; ``instead``: why another one
        cannot. Raises ApiError, and _Elsewhere while nothing was sent.
        """
        try:
            model = find(self._settings, self._engine, name, exchange.key)
        except ApiError as error:
            if error.status != 503:
                raise
            raise _Elsewhere("unavailable", error, counted=False) from error
        if model.kind not in self._kinds:
            raise _other_kind(model, self.path)
        if exchange.generation.calls is not None and not model.tools:
            raise _no_tools(model)
        call = Call(
            model=name,
            path=self.path,
            body=self._body(exchange, model),
            key=exchange.key.name,
            stream=exchange.generation.stream,
            fallback=instead.reason if instead else "",
            again=instead is not None and instead.counted,
            patience=None if may_wait else self._settings.fallback_after,
        )
        try:
            await self._exchange(exchange, model, call)
        except QuotaExceeded as error:
            raise ApiError(
                429,
                "rate_limit_exceeded",
                str(error),
                headers={"Retry-After": str(error.retry_after)},
            ) from error
        except EngineBusy as error:
            busy = ApiError(
                429,
                "queue_full",
                "Too many requests are waiting already. Try again later.",
                headers={"Retry-After": str(error.retry_after)},
            )
            raise _Elsewhere("busy", busy) from error
        except EngineUnavailable as error:
            exchange.scope[HAD_SLOT] = exchange.scope.get(HAD_SLOT, False) or error.had_slot
            failure = unavailable(str(error))
            if error.sent:
                failure.headers[SERVED_BY] = model.served_by
            raise _Elsewhere("unavailable", failure, counted=error.counted) from error
        except ApiError as error:
            if error.code != "context_length_exceeded" or exchange.begun:
                raise
            raise _Elsewhere("context", error) from error

    def _body(self, exchange: _Exchange, model: Model) -> bytes:
        """What the model is sent. Raises _Elsewhere where that is too long for it."""
        generation = exchange.generation
        if model.upstream:
            body = generation.cloud_body(self._settings.cloud_models[model.name].model)
            if len(body) > LONGEST_TO_CLOUD:
                raise _Elsewhere("context", _too_long_for_cloud(str(len(body))), counted=False)
            # No other model is asked after it.
            exchange.generation = replace(generation, body=b"")
            return body
        settings = self._settings.models[model.name]
        if generation.longest > settings.longest_body:
            # The engine would find out too, after taking 80 times as much memory.
            length = str(generation.longest)
            error = _too_long(length, settings.longest_body, settings.context)
            raise _Elsewhere("context", error, counted=False)
        if model.kind in _ASKED_AT and len(generation.body) > max(
            LONGEST_TEXTS, settings.longest_body
        ):
            raise _too_many_texts()
        return generation.local_body()

    async def _exchange(self, exchange: _Exchange, model: Model, call: Call) -> None:
        meter = Meter(len(call.body))
        if exchange.transcript:
            exchange.transcript.begin(model.name, model.served_by)
        async with self._engine.generate(call) as answer:
            exchange.scope[HAD_SLOT] = True
            if answer.status != 200:
                error = answer.explain(await answer.read())
                answer.outcome = replace(answer.outcome, failure=error.code)
                if error.code == "invalid_json_schema":
                    error.param = exchange.generation.schema_in
                error.headers[SERVED_BY] = model.served_by
                raise error
            answer.outcome = meter.outcome(CLIENT_GONE)
            if call.stream:
                exchange.begun = True
                await _stream(answer, meter, exchange, model.served_by)
                return
            body = await answer.read()
            meter.feed(body)
            if exchange.transcript:
                exchange.transcript.feed(body)
            answer.outcome = meter.outcome(200)
        response = Response(
            say_who(body, model.served_by), 200, {SERVED_BY: model.served_by}, "application/json"
        )
        await response(exchange.scope, exchange.receive, exchange.send)


def _who(error: ApiError) -> dict[str, str]:
    """The header that says who gave an error, where a model did."""
    return {name: value for name, value in error.headers.items() if name == SERVED_BY}


def _too_long(length: str, most: int, context: int) -> ApiError:
    return bad_request(
        f"The request has {length} bytes; at most {most} are taken for a context of {context} "
        "tokens.",
        None,
        "context_length_exceeded",
    )


def _too_many_texts() -> ApiError:
    return ApiError(
        413,
        "request_too_large",
        f"The texts have more than {LONGEST_TEXTS} bytes together; send fewer at once.",
    )


def _too_long_for_cloud(length: str) -> ApiError:
    return ApiError(
        413,
        "request_too_large",
        f"The request has {length} bytes; at most {LONGEST_TO_CLOUD} are sent to a cloud.",
    )


async def _stream(answer: EngineAnswer, meter: Meter, exchange: _Exchange, served_by: str) -> None:
    """Pass the engine's events on as they are; only errors are rewritten, and figures left out that
    nobody asked for.
    """
    names = {**_STREAM_HEADERS, SERVED_BY: served_by}
    headers = [(name.encode(), value.encode()) for name, value in names.items()]
    await exchange.send({"type": "http.response.start", "status": 200, "headers": headers})
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
                if exchange.transcript:
                    exchange.transcript.feed(events)
                # Before figures are left out: some upstreams send an error among such.
                events, failed = rewrite(events, answer.explain)
                status = failed or status
                # Who leaves after that has had all of it.
                answer.outcome = meter.outcome(status if events.endswith(_DONE) else CLIENT_GONE)
                if exchange.generation.wants_usage:
                    events = say_who(events, served_by)
                else:
                    events = without_usage(events)
                await exchange.send(
                    {"type": "http.response.body", "body": events, "more_body": True}
                )
            if len(held) > _LONGEST_EVENT:
                raise EngineUnavailable("it writes an event that does not end")
    except EngineUnavailable as error:
        held, status = b"data: " + unavailable(str(error)).body() + b"\n\n", 503
    answer.outcome = meter.outcome(status)
    await exchange.send({"type": "http.response.body", "body": held, "more_body": False})


async def _client_left(receive: Receive) -> None:
    with suppress(OSError):
        while (await receive())["type"] != "http.disconnect":
            pass


def may_ask(model: Model, key: ApiKey) -> bool:
    """Whether a key is good for a model."""
    return key.may_use(model.name) and not (key.local_only and model.upstream)


def _asked_by_pool(scope: Scope) -> bool:
    return any(name == _POOL for name, _ in scope["headers"])


def find(settings: Settings, engine: Engine, name: str, key: ApiKey) -> Model:
    """The model of a name, for a key. Raises ApiError."""
    state = engine.state
    if not key.may_use(name):
        raise _not_allowed(f"The API key '{key.name}' is for {', '.join(key.models)} alone.")
    model = state.models.get(name)
    if name in settings.cloud_models and key.local_only:
        raise _not_allowed(f"What the API key '{key.name}' asks stays on this machine.")
    if model is not None:
        return model
    if name in settings.models or name in settings.cloud_models:
        raise unavailable(state.unusable.get(name, state.reason))
    why = settings.off.get(name)
    message = (
        f"The model '{name}' is not offered: {why}."
        if why
        else (f"The model '{name}' does not exist.")
    )
    raise ApiError(404, "model_not_found", message, param="model")


def _not_allowed(message: str) -> ApiError:
    return ApiError(403, "model_not_allowed", message, param="model")


def _no_tools(model: Model) -> ApiError:
    return bad_request(
        f"The model '{model.name}' cannot be made to call a tool: its chat template knows none. "
        "Use another model, or the tool_choice auto, with which it answers without.",
        "tool_choice",
        "tools_not_supported",
    )


def _other_kind(model: Model, path: str) -> ApiError:
    """What to say to who asks a model for what it is not for."""
    if path == "/v1/embeddings":
        code = "model_not_embedding"
        message = "makes no vectors: these come from an embedding model"
    elif path == "/v1/rerank":
        code = "model_not_rerank"
        message = "does not rank: that takes a reranking model"
    elif model.kind is Kind.TEXT:
        code = "model_not_chat"
        message = (
            "has no chat template, so it cannot chat: use /v1/completions, another model, or set "
            "chat_template for it in the configuration"
        )
    else:
        code = "model_not_text"
        message = f"writes no text: ask it at {_ASKED_AT[model.kind]}"
    return bad_request(f"The model '{model.name}' {message}.", "model", code)
