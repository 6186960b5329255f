# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: nas.assistant contributors
"""The client of upstreams, against servers that do what a test tells them."""

from __future__ import annotations

import asyncio
import json
import ssl
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from aiohttp import web

from nas_assistant import cloud
from nas_assistant.cloud import Cloud
from nas_assistant.control import Backend
from nas_assistant.engine import EngineUnavailable, Kind, Model
from nas_assistant.errors import ApiError
from nas_assistant.settings import Upstream
from nas_assistant.streams import rewrite

from .conftest import call_of

MODEL = Model("smart", Kind.CHAT, 1, "example")
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@asynccontextmanager
async def server(handler: Handler, context: ssl.SSLContext | None = None) -> AsyncIterator[str]:
    app = web.Application()
    app.router.add_post("/api/{rest:.*}", handler)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=context)
    await site.start()
    host, port = runner.addresses[0][:2]
    yield f"{'https' if context else 'http'}://{host}:{port}/api"
    await runner.cleanup()


def answers(*statuses: int, **headers: str) -> tuple[Handler, list[web.Request]]:
    """A handler that gives these one after the other; and the requests that it had."""
    seen: list[web.Request] = []

    async def handler(request: web.Request) -> web.StreamResponse:
        await request.read()
        seen.append(request)
        status = statuses[min(len(seen), len(statuses)) - 1]
        names = {name.replace("_", "-"): value for name, value in headers.items()}
        return web.json_response({"error": {"message": "no"}}, status=status, headers=names)

    return handler, seen


async def ask(url: str, *, stream: bool = False, certificates: str = "", **more: int) -> bytes:
    """The body of a good answer. Raises EngineUnavailable, or the ApiError of another one."""
    options = {"timeout": 5, "retries": 2, "parallel": 1} | more
    asker = Cloud({"example": Upstream("example", url, **options)})
    backend = Backend(MODEL, "", "sk-secret", certificates)
    try:
        async with asker.ask(backend, call_of("smart", stream=stream)) as answer:
            if answer.status != 200:
                raise answer.explain(await answer.read())
            if stream:
                return b"|".join([chunk async for chunk in answer.chunks()])
            return await answer.read()
    finally:
        await asker.close()


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nas_assistant.cloud.random.uniform", lambda low, high: 0.01)


def run(coroutine: Awaitable[bytes]) -> bytes:
    async def bounded() -> bytes:
        async with asyncio.timeout(15):
            return await coroutine

    return asyncio.run(bounded())


@pytest.mark.parametrize(
    ("statuses", "times"), [((200,), 1), ((500, 200), 2), ((503, 429, 200), 3)]
)
def test_what_passes_is_tried_again(statuses: tuple[int, ...], times: int) -> None:
    async def check() -> bytes:
        handler, seen = answers(*statuses)
        async with server(handler) as url:
            body = await ask(url)
        assert len(seen) == times
        assert seen[0].path == "/api/chat/completions"
        assert seen[0].headers["Authorization"] == "Bearer sk-secret"
        return body

    assert b"error" in run(check())


@pytest.mark.parametrize(
    ("status", "headers", "times", "told", "code", "message"),
    [
        (503, {}, 3, 503, "upstream_error", "The cloud 'example' says: no"),
        (429, {}, 3, 429, "upstream_busy", "says: no"),
        # It asks for more patience than a client has.
        (429, {"Retry_After": "600"}, 1, 429, "upstream_busy", "says: no"),
        (400, {}, 1, 400, "invalid_value", "says: no"),
        (401, {}, 1, 503, "upstream_error", "does not let this service in"),
        (404, {}, 1, 503, "upstream_error", "says: no"),
        (307, {"Location": "http://127.0.0.1:1/"}, 1, 503, "upstream_error", "another address"),
    ],
)
def test_what_an_upstream_refuses(
    status: int, headers: dict[str, str], times: int, told: int, code: str, message: str
) -> None:
    async def check() -> bytes:
        handler, seen = answers(status, **headers)
        async with server(handler) as url:
            with pytest.raises(ApiError) as caught:
                await ask(url)
        assert len(seen) == times
        assert (caught.value.status, caught.value.code) == (told, code)
        assert message in caught.value.message
        if headers.get("Retry_After"):
            assert caught.value.headers["Retry-After"] == "600"
        return b""

    run(check())


def test_the_key_is_not_passed_on() -> None:
    async def handler(_: web.Request) -> web.StreamResponse:
        error = {"message": "bad key sk-secret", "code": "Weird \n Code"}
        return web.json_response({"error": error}, status=400)

    async def check() -> bytes:
        async with server(handler) as url:
            with pytest.raises(ApiError) as caught:
                await ask(url)
        assert caught.value.message.endswith("bad key ***")
        assert caught.value.code == "invalid_value"
        return b""

    run(check())


def failure(handler: Handler, *, stream: bool = False, timeout: int = 5) -> str:
    async def check() -> bytes:
        async with server(handler) as url:
            with pytest.raises(EngineUnavailable) as caught:
                await ask(url, stream=stream, timeout=timeout)
        assert caught.value.sent
        return str(caught.value).encode()

    return run(check()).decode()


def test_an_upstream_that_hangs_is_asked_once() -> None:
    seen = []

    async def handler(request: web.Request) -> web.StreamResponse:
        seen.append(request)
        await asyncio.sleep(30)
        return web.Response()

    assert failure(handler, timeout=1) == "the cloud 'example' said nothing for 1 s"
    assert len(seen) == 1


def test_a_stream_that_stops_half_way() -> None:
    async def handler(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        await response.write(b"data: 1\n\n")
        assert request.transport is not None
        request.transport.abort()
        return response

    assert "the cloud 'example'" in failure(handler, stream=True)


@pytest.mark.parametrize(("stream", "kind"), [(False, "text/html"), (True, "application/json")])
def test_another_kind_of_answer(stream: bool, kind: str) -> None:
    async def handler(_: web.Request) -> web.StreamResponse:
        return web.Response(text="hello", content_type=kind)

    assert f"answers with {kind} instead of" in failure(handler, stream=stream)


def test_an_answer_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cloud, "_LONGEST_ANSWER", 1 << 20)

    async def handler(_: web.Request) -> web.StreamResponse:
        return web.Response(body=b"x" * (3 << 20), content_type="application/json")

    assert failure(handler) == "the cloud 'example' answers with more than 1 MiB"


def test_nobody_is_there() -> None:
    async def check() -> bytes:
        with pytest.raises(EngineUnavailable, match="'example' cannot be reached") as caught:
            await ask("http://127.0.0.1:9/api")
        assert not caught.value.sent
        return b""

    run(check())


def test_certificates_that_cannot_be_read_just_now(monkeypatch: pytest.MonkeyPatch) -> None:
    """As when all descriptors are taken: that passes, and is no crash."""

    def fail(**_: object) -> None:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr("nas_assistant.cloud.ssl.create_default_context", fail)
    with pytest.raises(EngineUnavailable, match="Too many open files"):
        run(ask("http://127.0.0.1:9/api"))


def test_line_ends_are_the_engine_s() -> None:
    async def handler(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        for part in (b"data: 1\r\n\r", b"\ndata: 2\r\n", b"\r\n"):
            await response.write(part)
            await asyncio.sleep(0.05)
        return response

    async def check() -> bytes:
        async with server(handler) as url:
            return await ask(url, stream=True)

    assert run(check()).replace(b"|", b"") == b"data: 1\n\ndata: 2\n\n"


def test_certificates_are_checked(tmp_path: Path) -> None:
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"),
            *(
                "-nodes",
                "-days",
                "2",
                "-subj",
                "/CN=test",
                "-addext",
                "subjectAltName=IP:127.0.0.1",
            ),
            *("-keyout", str(key), "-out", str(certificate)),
        ],
        check=True,
        capture_output=True,
    )
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate, key)

    async def check() -> bytes:
        handler, seen = answers(200)
        async with server(handler, context) as url:
            with pytest.raises(EngineUnavailable, match="a certificate that is not good"):
                await ask(url)
            assert not seen
            return await ask(url, certificates=certificate.read_text("ascii"))

    assert b"error" in run(check())


@pytest.mark.parametrize(
    ("error", "status", "said"),
    [
        ({"message": "overloaded", "code": 529}, 503, "says: overloaded"),
        ({"message": "slow down", "type": "rate_limit_error"}, 429, "says: slow down"),
        ({"message": "Incorrect API key: sk-secret", "code": "invalid_api_key"}, 503, "not let"),
        ({"message": "sk-secret is odd"}, 503, "says: *** is odd"),
        ({"message": "no", "code": 400}, 400, "says: no"),
        ("it broke", 503, "says: it failed"),
    ],
)
def test_an_error_inside_a_stream_is_the_upstreams(error: object, status: int, said: str) -> None:
    async def handler(request: web.Request) -> web.StreamResponse:
        return web.Response(body=b"", content_type="text/event-stream")

    async def check() -> bytes:
        async with server(handler) as url:
            asker = Cloud({"example": Upstream("example", url, timeout=5, retries=0, parallel=1)})
            try:
                call = call_of("smart", stream=True)
                async with asker.ask(Backend(MODEL, "", "sk-secret"), call) as answer:
                    body = json.dumps({"error": error}).encode()
                    events, found = rewrite(b"data: " + body + b"\n\n", answer.explain)
            finally:
                await asker.close()
        assert found == status
        return events

    events = run(check())
    assert said.encode() in events
    assert b"The cloud 'example'" in events
    assert b"sk-secret" not in events
