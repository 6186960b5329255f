# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: nas.assistant contributors
"""Local first, and the cloud where it must: the gateway in front of scripted engines."""

from __future__ import annotations

import asyncio
import json
import tracemalloc
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient
from starlette.types import ASGIApp, Message

from nas_assistant.engine import (
    Call,
    EngineBusy,
    EngineState,
    EngineUnavailable,
    Kind,
    Model,
    QuotaExceeded,
)
from nas_assistant.gateway import create_app
from nas_assistant.keys import KeyRing, Role
from nas_assistant.settings import LONGEST_TO_CLOUD, Settings

from .conftest import HYBRID, SECRET, api_key, minimal_config, settled
from .fake_engine import FakeEngine

CHAT = "/v1/chat/completions"
HELLO: dict[str, Any] = {"messages": [{"role": "user", "content": "hello"}]}
TOO_LONG = json.dumps(
    {"error": {"code": 400, "message": "no", "type": "exceed_context_size_error"}}
).encode()
HERE = b'{"choices":[],"usage":{"total_tokens":3}}'
THERE = b'{"choices": [], "usage": {"total_tokens": 4}}'
KEYS = KeyRing(
    [
        api_key(),
        api_key("home", "sk-home", local_only=True),
        api_key("guest", "sk-guest", role=Role.USER, models=("default",)),
    ]
)


class TwoEngines(FakeEngine):
    """``here`` answers for this machine, ``there`` for the cloud."""

    def __init__(self, settings: Settings) -> None:
        super().__init__()
        self.here, self.there = FakeEngine(HERE), FakeEngine(THERE)
        models = {"default": Model("default", Kind.CHAT, 1)}
        for name, each in settings.cloud_models.items():
            models[name] = Model(name, each.kind, 1, each.upstream)
        self.state = EngineState(ready=True, reason="", models=models)

    @asynccontextmanager
    async def generate(self, call: Call) -> AsyncIterator[FakeEngine]:
        engine = self.there if self.state.models[call.model].upstream else self.here
        async with engine.generate(call) as answer:
            yield answer


@pytest.fixture
def settings(write_config: Callable[[str], Path]) -> Settings:
    text = minimal_config(mode="hybrid", fallback_after=7) + "fallback = smart\n" + HYBRID
    text += "[model:vectors]\nupstream = example\nkind = embedding\n"
    return settled(Settings.load(write_config(text), {}))


@pytest.fixture
def engines(settings: Settings) -> TwoEngines:
    return TwoEngines(settings)


@pytest.fixture
def client(settings: Settings, engines: TwoEngines) -> Iterator[TestClient]:
    headers = {"Authorization": f"Bearer {SECRET}"}
    with TestClient(create_app(settings, engines, KEYS), headers=headers) as client:
        yield client


async def ask(app: ASGIApp, body: bytes) -> None:
    """Ask for a chat as a server does, of which nothing is kept here."""
    parts = [body]

    async def receive() -> Message:
        if parts:
            return {"type": "http.request", "body": parts.pop(), "more_body": False}
        await asyncio.sleep(3600)
        return {"type": "http.disconnect"}

    async def send(_: Message) -> None:
        pass

    headers = [(b"authorization", f"Bearer {SECRET}".encode())]
    scope = {
        "type": "http",
        "method": "POST",
        "path": CHAT,
        "headers": headers,
        "query_string": b"",
    }
    del body
    await app(scope, receive, send)


def as_(secret: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {secret}"}


def test_local_first(client: TestClient, engines: TwoEngines) -> None:
    response = client.post(CHAT, json=HELLO)
    assert response.headers["x-served-by"] == "local"
    assert response.json()["usage"] == {"served_by": "local", "total_tokens": 3}
    assert not engines.there.calls
    # It waits for its turn, but not for ever.
    assert engines.here.calls[0].patience == 7


def test_a_named_model_of_the_cloud(client: TestClient, engines: TwoEngines) -> None:
    request = HELLO | {"model": "smart", "top_k": 5, "temperature": 0.5, "user": "x"}
    response = client.post(CHAT, json=request)
    assert response.headers["x-served-by"] == "cloud:example"
    assert response.json()["usage"] == {"served_by": "cloud:example", "total_tokens": 4}
    assert not engines.here.calls
    # By the upstream's name for it, and with nothing that is the engine's alone.
    sent = HELLO | {"model": "gpt-example", "temperature": 0.5}
    assert engines.there.requests == [("smart", CHAT, sent, "owner")]
    assert engines.there.calls[0].patience is None


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens"])
def test_a_limit_goes_out_by_the_name_that_it_came_with(
    client: TestClient, engines: TwoEngines, name: str
) -> None:
    for model in ("default", "smart"):
        client.post(CHAT, json=HELLO | {"model": model, name: 5})
    ((_, _, here, _),) = engines.here.requests
    ((_, _, there, _),) = engines.there.requests
    assert here == HELLO | {"max_tokens": 5}
    assert there == HELLO | {"model": "gpt-example", name: 5}


POOLED = {"X-Nas-Pool": "1"}


@pytest.mark.parametrize("problem", [EngineBusy(7), EngineUnavailable("the engine ended")])
def test_another_nas_comes_before_the_cloud(
    client: TestClient, engines: TwoEngines, problem: Exception
) -> None:
    engines.here.refusal = problem
    response = client.post(CHAT, json=HELLO, headers=POOLED)
    assert response.status_code == 502  # the proxy asks another one
    assert not engines.there.calls


def test_what_no_nas_has_room_for_goes_to_the_cloud_at_once(
    client: TestClient, engines: TwoEngines
) -> None:
    engines.here = FakeEngine(TOO_LONG, status=400)
    response = client.post(CHAT, json=HELLO, headers=POOLED)
    assert response.headers["x-served-by"] == "cloud:example"


def test_no_other_nas_has_another_cloud(client: TestClient, engines: TwoEngines) -> None:
    engines.there.refusal = EngineUnavailable("the cloud 'example' cannot be reached")
    response = client.post(CHAT, json=HELLO | {"model": "smart"}, headers=POOLED)
    assert response.status_code == 503


def test_models_say_where_they_are(client: TestClient) -> None:
    models = client.get("/v1/models").json()["data"]
    assert {each["id"]: each["served_by"] for each in models} == {
        "default": "local",
        "smart": "cloud:example",
        "vectors": "cloud:example",
    }


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("problem", "reason"),
    [
        (EngineBusy(7), "busy"),
        (EngineUnavailable("the engine ended"), "unavailable"),
        (TOO_LONG, "context"),
    ],
)
def test_the_cloud_where_it_must(
    client: TestClient,
    engines: TwoEngines,
    problem: Exception | bytes,
    reason: str,
    stream: bool,
) -> None:
    if isinstance(problem, bytes):
        engines.here = FakeEngine(problem, status=400)
    else:
        engines.here.refusal = problem
    if stream:
        engines.there = FakeEngine(b'data: {"choices":[{}]}\n\n', b"data: [DONE]\n\n")
    response = client.post(CHAT, json=HELLO | {"stream": stream})
    assert response.status_code == 200
    assert response.headers["x-served-by"] == "cloud:example"
    (call,) = engines.there.calls
    assert (call.model, call.fallback, call.stream) == ("smart", reason, stream)
    assert call.again, "it counted when the model here was asked"


def test_a_text_that_cannot_fit_goes_to_the_cloud(client: TestClient, engines: TwoEngines) -> None:
    long = {"messages": [{"role": "user", "content": "x " * 100_000}]}
    assert client.post(CHAT, json=long).headers["x-served-by"] == "cloud:example"
    assert not engines.here.calls
    assert (engines.there.calls[0].fallback, engines.there.calls[0].again) == ("context", False)


@pytest.mark.parametrize("model", ["default", "smart"])
def test_what_is_too_long_for_a_cloud(client: TestClient, engines: TwoEngines, model: str) -> None:
    content = "x" * LONGEST_TO_CLOUD
    request = {"model": model, "messages": [{"role": "user", "content": content}]}
    error = client.post(CHAT, json=request).json()["error"]
    assert f"at most {LONGEST_TO_CLOUD} are sent to a cloud" in error["message"]
    assert not engines.there.calls


def test_a_worker_holds_as_much_of_a_request_as_is_counted(
    settings: Settings, engines: TwoEngines
) -> None:
    """Of one for an upstream, while it waits: once, whatever a string of Python's may take."""
    engines.there = FakeEngine(None)
    content = "€" * (LONGEST_TO_CLOUD // 4)
    user = "€" * 10_000  # which goes nowhere
    body = json.dumps({**HELLO, "model": "smart", "user": user}, ensure_ascii=False)
    body = body.replace("hello", content)

    async def hold(number: int) -> int:
        app = create_app(settings, engines, KEYS)
        before = tracemalloc.get_traced_memory()[0]
        held = [asyncio.create_task(ask(app, body.encode())) for _ in range(number)]
        while engines.there.active < number:  # noqa: ASYNC110 - nothing tells
            await asyncio.sleep(0.01)
        engines.there.requests.clear()  # what this test keeps of them
        taken = tracemalloc.get_traced_memory()[0] - before
        for task in held:
            task.cancel()
        await asyncio.gather(*held, return_exceptions=True)
        return taken

    tracemalloc.start()
    try:
        assert asyncio.run(hold(8)) < 8 * LONGEST_TO_CLOUD
    finally:
        tracemalloc.stop()


def test_a_model_that_is_lost(client: TestClient, engines: TwoEngines) -> None:
    models = {"smart": engines.state.models["smart"]}
    engines.state = EngineState(False, "lost", models, {"default": "the engine ended"})
    assert client.post(CHAT, json=HELLO).headers["x-served-by"] == "cloud:example"
    assert (engines.there.calls[0].fallback, engines.there.calls[0].again) == ("unavailable", False)


def test_what_asks_for_something_wrong_stays(client: TestClient, engines: TwoEngines) -> None:
    error = {"error": {"code": 400, "message": "no", "type": "invalid_request_error"}}
    engines.here = FakeEngine(json.dumps(error).encode(), status=400)
    assert client.post(CHAT, json=HELLO).status_code == 400
    engines.here.refusal = QuotaExceeded("The key 'owner' may have 1 request at once.", 3)
    assert client.post(CHAT, json=HELLO).json()["error"]["code"] == "rate_limit_exceeded"
    assert not engines.there.calls


def test_an_answer_that_has_begun_is_not_begun_again(
    client: TestClient, engines: TwoEngines
) -> None:
    engines.here = FakeEngine(b"data: 1\n\n", EngineUnavailable("the engine ended"))
    response = client.post(CHAT, json=HELLO | {"stream": True})
    assert response.headers["x-served-by"] == "local"
    assert "not_ready" in response.text
    assert not engines.there.calls


def test_a_whole_answer_that_breaks_is_got_elsewhere(
    client: TestClient, engines: TwoEngines
) -> None:
    engines.here = FakeEngine(b"{", EngineUnavailable("the engine ended"))
    assert client.post(CHAT, json=HELLO).headers["x-served-by"] == "cloud:example"


@pytest.mark.parametrize("secret", ["sk-home", "sk-guest"])
def test_keys_that_stay_at_home(client: TestClient, engines: TwoEngines, secret: str) -> None:
    names = [each["id"] for each in client.get("/v1/models", headers=as_(secret)).json()["data"]]
    assert names == ["default"]
    for response in (
        client.post(CHAT, json=HELLO | {"model": "smart"}, headers=as_(secret)),
        client.get("/v1/models/smart", headers=as_(secret)),
        client.post("/v1/embeddings", json={"input": "x"}, headers=as_(secret)),
    ):
        assert response.status_code == 403
        assert response.json()["error"]["code"] == "model_not_allowed"
    engines.here.refusal = EngineBusy(7)
    response = client.post(CHAT, json=HELLO, headers=as_(secret))
    assert response.json()["error"]["code"] == "queue_full"
    # There is nowhere else: it waits for its turn as long as it takes.
    assert engines.here.calls[0].patience is None
    assert not engines.there.calls


def test_neither_can(client: TestClient, engines: TwoEngines) -> None:
    engines.here.refusal = EngineBusy(7)
    engines.there.refusal = EngineUnavailable("the cloud 'example' cannot be reached")
    response = client.post(CHAT, json=HELLO)
    assert (response.status_code, response.headers["retry-after"]) == (429, "7")
    error = response.json()["error"]
    assert error["code"] == "queue_full"
    assert "the cloud 'example' cannot be reached" in error["message"]


def test_vectors_from_the_cloud(client: TestClient, engines: TwoEngines) -> None:
    response = client.post("/v1/embeddings", json={"input": "x"})
    assert response.headers["x-served-by"] == "cloud:example"
    assert engines.there.requests[0][2] == {"model": "vectors", "input": ["x"]}
    # A model that chats is no fallback for one that does not.
    response = client.post("/v1/embeddings", json={"input": "x", "model": "default"})
    assert response.json()["error"]["code"] == "model_not_embedding"


LOCAL = Model("default", Kind.EMBEDDING, 1)
SMART = Model("vectors", Kind.EMBEDDING, 1, "example")


@pytest.mark.parametrize(
    ("state", "status"),
    [
        (EngineState(True, "", {"vectors": SMART, "default": LOCAL}), 200),
        # It is lost, and so is one whose kind nobody could read.
        (EngineState(True, "", {"vectors": SMART}, {}, {"default": Kind.EMBEDDING}), 503),
        (EngineState(True, "", {"vectors": SMART}, {"default": "it is damaged"}), 503),
    ],
)
def test_vectors_stay_where_there_is_a_model_for_them(
    client: TestClient, engines: TwoEngines, state: EngineState, status: int
) -> None:
    engines.state = state
    response = client.post("/v1/embeddings", json={"input": "x"})
    assert response.status_code == status
    assert not engines.there.calls


@pytest.mark.parametrize(
    ("engine", "status", "who"),
    [
        (FakeEngine(b"{}", status=500), 500, "cloud:example"),
        (FakeEngine(b"{", EngineUnavailable("it broke off", sent=True)), 503, "cloud:example"),
        (FakeEngine(EngineUnavailable("it cannot be reached")), 503, None),
    ],
)
@pytest.mark.parametrize("model", ["default", "smart"])
def test_errors_say_that_text_went_out(
    client: TestClient,
    engines: TwoEngines,
    engine: FakeEngine,
    status: int,
    who: str | None,
    model: str,
) -> None:
    engines.here.refusal = EngineUnavailable("the engine ended")
    engines.there = engine
    response = client.post(CHAT, json=HELLO | {"model": model})
    assert (response.status_code, response.headers.get("x-served-by")) == (status, who)


def test_an_event_that_does_not_end(client: TestClient, engines: TwoEngines) -> None:
    engines.there = FakeEngine(*[b"x" * (1 << 20)] * 8)
    response = client.post(CHAT, json=HELLO | {"model": "smart", "stream": True})
    assert "an event that does not end" in response.text
    assert len(response.content) < 1000


def test_models_that_the_mode_leaves_out(write_config: Callable[[str], Path]) -> None:
    settings = settled(Settings.load(write_config(minimal_config() + HYBRID), {}))
    headers = {"Authorization": f"Bearer {SECRET}"}
    with TestClient(create_app(settings, FakeEngine(HERE), KEYS), headers=headers) as client:
        response = client.post(CHAT, json=HELLO | {"model": "smart"})
    assert response.status_code == 404
    assert "mode = local sends nothing out" in response.json()["error"]["message"]
