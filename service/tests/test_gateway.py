# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: nas.assistant contributors
"""The API in one process, in front of a scripted engine."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from nas_assistant.engine import (
    EngineBusy,
    EngineState,
    EngineUnavailable,
    Failure,
    Kind,
    Model,
    QuotaExceeded,
)
from nas_assistant.gateway import create_app
from nas_assistant.keys import KeyRing, Role
from nas_assistant.logs import JsonFormatter
from nas_assistant.settings import MAX_BODY, Settings

from .conftest import SECRET, api_key, minimal_config, settled
from .fake_engine import DIED, FakeEngine

AUTH = {"Authorization": f"Bearer {SECRET}"}
RING = KeyRing(
    [
        api_key(),
        api_key("child", "sk-child", role=Role.USER, models=("large",)),
        api_key("guest", "sk-guest", role=Role.USER, expires="2020-02-29"),
    ]
)
CHAT = "/v1/chat/completions"
HELLO: dict[str, Any] = {"messages": [{"role": "user", "content": "hello"}]}
LARGE = f"[model:large]\nfile = large.gguf\nsha256 = {'1' * 64}\n"
CLOCK = {"type": "function", "function": {"name": "clock"}}
WEATHER = {"type": "function", "function": {"name": "weather"}}


def named(name: str) -> dict[str, Any]:
    """A tool_choice that asks for one function."""
    return {"type": "function", "function": {"name": name}}


@pytest.fixture
def settings(write_config: Callable[[str], Path]) -> Settings:
    return settled(Settings.load(write_config(minimal_config() + LARGE), {}))


@pytest.fixture
def engine() -> FakeEngine:
    return FakeEngine(b'{"choices":[]}')


@pytest.fixture
def client(settings: Settings, engine: FakeEngine) -> Iterator[TestClient]:
    with TestClient(create_app(settings, engine, RING), headers=AUTH) as client:
        yield client


def check_error(response: Any, status: int, code: str) -> dict[str, Any]:
    """The one error shape: these four fields, no more and no less."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    body: dict[str, dict[str, Any]] = response.json()
    assert list(body) == ["error"]
    assert list(body["error"]) == ["message", "type", "param", "code"]
    assert body["error"]["code"] == code
    assert isinstance(body["error"]["message"], str)
    kinds = {429: "rate_limit_error"}
    default = "invalid_request_error" if status < 500 else "server_error"
    assert body["error"]["type"] == kinds.get(status, default)
    return body["error"]


def test_health_needs_no_key(client: TestClient, engine: FakeEngine) -> None:
    client.headers.pop("Authorization")
    assert client.get("/healthz").json() == {"status": "ok"}
    assert client.get("/readyz").json() == {"status": "ready", "models": ["default"]}
    models, why = engine.state.models, "tiny.gguf does not exist"
    engine.state = EngineState(True, "", models, degraded=why, loading=True)
    told = {"status": "degraded", "models": ["default"], "reason": why, "loading": True}
    response = client.get("/readyz")
    assert (response.status_code, response.json()) == (200, told)
    engine.state = EngineState(ready=False, reason="warming up")
    assert "warming up" in check_error(client.get("/readyz"), 503, "not_ready")["message"]
    assert client.get("/healthz").status_code == 200


def test_outside_of_home_it_says_whether_and_not_why(
    client: TestClient, engine: FakeEngine
) -> None:
    outside = {"X-Forwarded-For": "203.0.113.7"}
    assert client.get("/readyz", headers=outside).json() == {"status": "ready"}
    home = outside | {"X-Nas-At-Home": "1"}
    assert client.get("/readyz", headers=home).json()["models"] == ["default"]
    engine.state = replace(engine.state, degraded="/models/secret.gguf is damaged")
    assert client.get("/readyz", headers=outside).json() == {"status": "degraded"}
    engine.state = EngineState(False, "/models/secret.gguf is damaged")
    for headers, told in ((outside, False), (home, True), ({}, True)):
        error = check_error(client.get("/readyz", headers=headers), 503, "not_ready")
        assert ("secret.gguf" in error["message"]) is told


@pytest.mark.parametrize(
    "header", ["", "Bearer wrong", "Basic abc", "Bearer", f"Bearer {SECRET}x", "Bearer \xe9"]
)
@pytest.mark.parametrize("path", ["/v1/models", "/v1/nothing", "/v1", CHAT])
def test_everything_under_v1_needs_a_key(client: TestClient, path: str, header: str) -> None:
    client.headers.pop("Authorization")
    headers = [(b"authorization", header.encode("latin-1"))] if header else []
    response = client.get(path, headers=headers)
    check_error(response, 401, "invalid_api_key")
    assert response.headers["www-authenticate"] == "Bearer"


def as_(secret: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {secret}"}


def test_a_key_that_is_over(client: TestClient) -> None:
    error = check_error(client.get("/v1/models", headers=as_("sk-guest")), 401, "invalid_api_key")
    assert "'guest' was valid until 2020-02-29" in error["message"]


def test_a_key_for_some_models(client: TestClient, engine: FakeEngine) -> None:
    child = as_("sk-child")
    assert client.get("/v1/models", headers=child).json()["data"] == []
    for response in (
        client.get("/v1/models/default", headers=child),
        client.post(CHAT, json=HELLO, headers=child),
    ):
        error = check_error(response, 403, "model_not_allowed")
        assert error["message"] == "The API key 'child' is for large alone."
    assert not engine.requests


@pytest.mark.parametrize(("path", "answer"), [("/metrics", "metrics"), ("/admin/status", "status")])
def test_reports_are_for_admins(
    client: TestClient, engine: FakeEngine, path: str, answer: str
) -> None:
    assert client.get(path).text == f'"{answer}"'
    check_error(client.get(path, headers=as_("sk-child")), 403, "admin_only")
    check_error(client.get(path, headers=as_("wrong")), 401, "invalid_api_key")
    engine.refusal = EngineUnavailable("the supervisor is gone")
    check_error(client.get(path), 503, "not_ready")
    client.headers.pop("Authorization")
    check_error(client.get(path), 401, "invalid_api_key")
    # Whether it exists or not.
    check_error(client.get("/admin/nothing"), 401, "invalid_api_key")


def test_models(client: TestClient) -> None:
    model = {"id": "default", "object": "model", "created": 1, "owned_by": "nas.assistant"}
    model |= {"kind": "chat", "served_by": "local"}
    assert client.get("/v1/models").json() == {"object": "list", "data": [model]}
    assert client.get("/v1/models/default").json() == model
    check_error(client.get("/v1/models/none"), 404, "model_not_found")
    error = check_error(client.get("/v1/models/large"), 503, "not_ready")
    assert "large.gguf is damaged" in error["message"]


def test_unknown_paths_and_methods(client: TestClient) -> None:
    check_error(client.get("/nothing"), 404, "not_found")
    check_error(client.get("/v1/nothing"), 404, "not_found")
    response = client.delete("/v1/models")
    check_error(response, 405, "method_not_allowed")
    assert response.headers["allow"]
    check_error(client.get(CHAT), 405, "method_not_allowed")


def test_chat_forwards_only_what_is_allowed(client: TestClient, engine: FakeEngine) -> None:
    request = HELLO | {
        "model": "default",
        "temperature": 0,
        "max_completion_tokens": 5,
        "top_k": 3,
        "user": "me",
        "stop": None,
        "id_slot": 1,
        "lora": [],
        "cache_prompt": False,
        "n_predict": -1,
    }
    assert client.post(CHAT, json=request).json() == {"choices": []}
    sent = HELLO | {"temperature": 0, "max_tokens": 5, "top_k": 3}
    assert engine.requests == [("default", CHAT, sent, "owner")]
    assert engine.active == 0


def test_a_model_whose_name_is_no_text(client: TestClient) -> None:
    body = json.dumps(HELLO | {"model": "\ud800"})
    error = check_error(client.post(CHAT, content=body), 404, "model_not_found")
    assert error["message"] == "The model '?' does not exist."


def test_completion(client: TestClient, engine: FakeEngine) -> None:
    assert client.post("/v1/completions", json={"prompt": ["Once"], "echo": False}).is_success
    assert engine.requests == [("default", "/v1/completions", {"prompt": "Once"}, "owner")]


def test_no_limit_is_none(client: TestClient, engine: FakeEngine) -> None:
    """As LangChain and llama-server's clients say it."""
    for limit in ("max_tokens", "max_completion_tokens"):
        assert client.post(CHAT, json=HELLO | {limit: -1, "n": 1, "top_k": -1}).is_success
    body = {"prompt": "Once", "max_tokens": -1, "response_format": {"type": "text"}}
    assert client.post("/v1/completions", json=body).is_success
    assert not [sent for _, _, sent, _ in engine.requests if "max_tokens" in sent]


def test_a_tool_that_must_be_called_needs_a_model_that_knows_tools(
    client: TestClient, engine: FakeEngine
) -> None:
    plain = Model("default", Kind.CHAT, 1, tools=False)
    body = HELLO | {"tools": [WEATHER]}
    for choice in ("required", named("weather")):
        assert client.post(CHAT, json=body | {"tool_choice": choice}).is_success
    # The engine takes a name for no choice.
    assert client.post(CHAT, json=HELLO | {"tools": [CLOCK, WEATHER], "tool_choice": choice})
    assert [sent["tool_choice"] for _, _, sent, _ in engine.requests] == ["required"] * 3
    assert [sent["tools"] for _, _, sent, _ in engine.requests] == [[WEATHER]] * 3
    engine.state = EngineState(True, "", {"default": plain})
    for choice in ("required", named("weather")):
        answer = client.post(CHAT, json=body | {"tool_choice": choice})
        assert check_error(answer, 400, "tools_not_supported")["param"] == "tool_choice"
    for free in ("auto", "none", None):
        assert client.post(CHAT, json=body | {"tool_choice": free}).is_success
    assert len(engine.requests) == 6


OTHERS = {
    "vectors": Model("vectors", Kind.EMBEDDING, 1),
    "ranker": Model("ranker", Kind.RERANK, 1),
    "writer": Model("writer", Kind.TEXT, 1),
}
VECTORS = "/v1/embeddings"
RANKING = "/v1/rerank"


@pytest.fixture
def all_kinds(write_config: Callable[[str], Path]) -> Iterator[tuple[TestClient, FakeEngine]]:
    """A service with a model of each kind."""
    engine = FakeEngine(b'{"data":[],"usage":{"prompt_tokens":5,"total_tokens":5}}')
    engine.state = EngineState(True, "", {**engine.state.models, **OTHERS})
    text = minimal_config() + "".join(LARGE.replace("large", name) for name in OTHERS)
    settings = settled(Settings.load(write_config(text), {}))
    with TestClient(create_app(settings, engine, RING), headers=AUTH) as client:
        yield client, engine


def test_embeddings(all_kinds: tuple[TestClient, FakeEngine]) -> None:
    client, engine = all_kinds
    request = {"input": "a cat", "encoding_format": "base64", "user": "me"}
    # Without a name, the model that can.
    assert client.post(VECTORS, json=request).is_success
    sent = {"input": ["a cat"], "encoding_format": "base64"}
    assert engine.requests == [("vectors", VECTORS, sent, "owner")]
    assert (engine.outcomes[0].prompt_tokens, engine.outcomes[0].completion_tokens) == (5, 0)
    # Each of many texts may be long.
    texts = ["x" * 50_000] * 20
    assert client.post(VECTORS, json={"model": "vectors", "input": texts}).is_success
    check_error(
        client.post(VECTORS, json={"input": ["x" * 200_000]}), 400, "context_length_exceeded"
    )


def test_rerank(all_kinds: tuple[TestClient, FakeEngine]) -> None:
    client, engine = all_kinds
    request = {"query": "a cat?", "documents": ["yes", {"text": "no"}], "top_n": 1}
    more = {"return_documents": False, "rank_fields": ["text"]}
    assert client.post(RANKING, json=request | more).is_success
    sent = {"query": "a cat?", "documents": ["yes", "no"], "top_n": 1}
    assert engine.requests == [("ranker", RANKING, sent, "owner")]
    assert engine.outcomes[0].prompt_tokens == 5


@pytest.mark.parametrize(
    ("model", "path", "body", "code", "remedy"),
    [
        ("vectors", CHAT, HELLO, "model_not_text", "/v1/embeddings"),
        ("ranker", CHAT, HELLO, "model_not_text", "/v1/rerank"),
        ("writer", CHAT, HELLO, "model_not_chat", "/v1/completions"),
        ("vectors", "/v1/completions", {"prompt": "x"}, "model_not_text", "/v1/embeddings"),
        ("default", VECTORS, {"input": "x"}, "model_not_embedding", "an embedding model"),
        ("ranker", VECTORS, {"input": "x"}, "model_not_embedding", "an embedding model"),
        ("default", RANKING, {"query": "x", "documents": ["y"]}, "model_not_rerank", "a rerank"),
        ("vectors", RANKING, {"query": "x", "documents": ["y"]}, "model_not_rerank", "a rerank"),
    ],
)
def test_models_are_asked_for_what_they_are_for(
    all_kinds: tuple[TestClient, FakeEngine],
    model: str,
    path: str,
    body: dict[str, Any],
    code: str,
    remedy: str,
) -> None:
    client, engine = all_kinds
    error = check_error(client.post(path, json=body | {"model": model}), 400, code)
    assert remedy in error["message"]
    assert not engine.requests


def test_without_a_model_for_it_there_is_none(client: TestClient) -> None:
    check_error(client.post(VECTORS, json={"input": "x"}), 400, "model_not_embedding")
    body = {"query": "x", "documents": ["y"]}
    check_error(client.post(RANKING, json=body), 400, "model_not_rerank")


@pytest.mark.parametrize(
    ("request_", "param"),
    [
        ({}, "input"),
        ({"input": ""}, "input"),
        ({"input": []}, "input"),
        ({"input": ["a", ""]}, "input"),
        ({"input": [1, 2]}, "input"),
        ({"input": [[1], [2]]}, "input"),
        ({"input": ["a", 1]}, "input"),
        ({"input": ["a"] * 257}, "input"),
        ({"input": "a", "encoding_format": "hex"}, "encoding_format"),
        ({"input": "a", "dimensions": 64}, "dimensions"),
    ],
)
def test_bad_embedding_requests(
    all_kinds: tuple[TestClient, FakeEngine], request_: dict[str, Any], param: str
) -> None:
    client, engine = all_kinds
    error = check_error(client.post(VECTORS, json=request_), 400, "invalid_value")
    assert error["param"] == param
    assert not engine.requests


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"query": None}, "query"),
        ({"query": ""}, "query"),
        ({"query": ["x"]}, "query"),
        ({"documents": "y"}, "documents"),
        ({"documents": []}, "documents"),
        ({"documents": ["y", {"title": "z"}]}, "documents"),
        ({"documents": ["y"] * 257}, "documents"),
        ({"top_n": 0}, "top_n"),
        ({"return_documents": True}, "return_documents"),
    ],
)
def test_bad_rerank_requests(
    all_kinds: tuple[TestClient, FakeEngine], change: dict[str, Any], param: str
) -> None:
    client, engine = all_kinds
    body = {"query": "x", "documents": ["y"]} | change
    error = check_error(client.post(RANKING, json=body), 400, "invalid_value")
    assert error["param"] == param
    assert not engine.requests


def test_developer_is_the_newer_name_of_system(client: TestClient, engine: FakeEngine) -> None:
    client.post(CHAT, json={"messages": [{"role": "developer", "content": "be brief"}]})
    assert engine.requests[0][2]["messages"] == [{"role": "system", "content": "be brief"}]


@pytest.mark.parametrize(
    ("request_", "param"),
    [
        ({}, "messages"),
        ({"messages": []}, "messages"),
        ({"messages": "hello"}, "messages"),
        ({"messages": ["hello"]}, "messages[0]"),
        ({"messages": [{"role": "root", "content": "x"}]}, "messages[0]"),
        ({"messages": [{"role": ["user"], "content": "x"}]}, "messages[0]"),
        ({"messages": [{"role": "user"}]}, "messages[0]"),
        ({"messages": [{"role": "user", "content": 1}]}, "messages[0]"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages[0]"),
        (HELLO | {"model": 1}, "model"),
        (HELLO | {"stream": "yes"}, "stream"),
        (HELLO | {"stream_options": True}, "stream_options"),
        (HELLO | {"max_tokens": 0}, "max_tokens"),
        (HELLO | {"max_tokens": 1.5}, "max_tokens"),
        (HELLO | {"max_tokens": True}, "max_tokens"),
        (HELLO | {"max_completion_tokens": "5"}, "max_completion_tokens"),
        (HELLO | {"n": 2}, "n"),
        (HELLO | {"n": True}, "n"),
        (HELLO | {"temperature": 3}, "temperature"),
        (HELLO | {"temperature": "hot"}, "temperature"),
        (HELLO | {"stop": ["a", ""]}, "stop"),
        (HELLO | {"stop": ["a"] * 5}, "stop"),
        (HELLO | {"seed": 1 << 40}, "seed"),
        (HELLO | {"logit_bias": {"x": 1}}, "logit_bias"),
        (HELLO | {"logit_bias": []}, "logit_bias"),
        (HELLO | {"tools": {}}, "tools"),
        (HELLO | {"tools": [{}]}, "tools"),
        (HELLO | {"tools": [1]}, "tools"),
        (HELLO | {"tools": [{"type": "function", "function": {"name": {}}}]}, "tools"),
        (HELLO | {"response_format": "json"}, "response_format"),
        (HELLO | {"response_format": {}}, "response_format"),
        (HELLO | {"response_format": {"type": "json_schema"}}, "response_format"),
        ({"messages": [{"role": "user", "content": "x", "name": {}}]}, "messages[0]"),
        ({"messages": [{"role": "assistant", "tool_calls": "x"}]}, "messages[0]"),
        ({"messages": [{"role": "assistant", "tool_calls": [1]}]}, "messages[0]"),
        (
            {"messages": [{"role": "assistant", "tool_calls": [{"function": {"name": 5}}]}]},
            "messages[0]",
        ),
        (
            {"messages": [{"role": "assistant", "content": "x", "reasoning_content": 5}]},
            "messages[0]",
        ),
        (HELLO | {"top_logprobs": 21}, "top_logprobs"),
        (HELLO | {"repeat_penalty": 0}, "repeat_penalty"),
        (HELLO | {"max_tokens": -2}, "max_tokens"),
        (HELLO | {"grammar": 'root ::= "x"'}, "grammar"),
        (HELLO | {"json_schema": {"type": "string"}}, "json_schema"),
        (HELLO | {"guided_json": {"type": "string"}}, "guided_json"),
        (HELLO | {"structured_outputs": {"choice": ["a"]}}, "structured_outputs"),
        (HELLO | {"functions": [{"name": "clock"}]}, "functions"),
        (HELLO | {"function_call": {"name": "clock"}}, "function_call"),
        (HELLO | {"tool_choice": "banana"}, "tool_choice"),
        (HELLO | {"tool_choice": "required"}, "tool_choice"),
        (HELLO | {"tool_choice": {"type": "function"}}, "tool_choice"),
        (HELLO | {"tools": [WEATHER], "tool_choice": named("clock")}, "tool_choice"),
    ],
)
def test_bad_chat_requests(
    client: TestClient, engine: FakeEngine, request_: dict[str, Any], param: str
) -> None:
    error = check_error(client.post(CHAT, json=request_), 400, "invalid_value")
    assert error["param"] == param
    assert not engine.requests


@pytest.mark.parametrize(
    ("request_", "param"),
    [
        ({}, "prompt"),
        ({"prompt": ["a", "b"]}, "prompt"),
        ({"prompt": [1, 2]}, "prompt"),
        ({"prompt": "a", "echo": True}, "echo"),
        ({"prompt": "a", "best_of": 2}, "best_of"),
        ({"prompt": "a", "suffix": "b"}, "suffix"),
        ({"prompt": "a", "logprobs": 2}, "logprobs"),
        ({"prompt": "a", "response_format": {"type": "json_object"}}, "response_format"),
        ({"prompt": "a", "response_format": {"type": "nonsense"}}, "response_format"),
        ({"prompt": "a", "json_schema": {"type": "string"}}, "json_schema"),
        ({"prompt": "a", "guided_choice": ["a"]}, "guided_choice"),
    ],
)
def test_bad_completion_requests(client: TestClient, request_: dict[str, Any], param: str) -> None:
    response = client.post("/v1/completions", json=request_)
    assert check_error(response, 400, "invalid_value")["param"] == param


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b'"x"',
        b"\xff\xfe",
        b'{"messages": NaN}',
        b'{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b'{"a": ' + b"[" * 40 + b"]" * 40 + b"}",
        b'{"a": ' + b"9" * 5000 + b"}",
        b'{"messages": [{"role": "user", "content": "\\ud800"}]}',
    ],
)
def test_bodies_that_are_no_json_object(client: TestClient, body: bytes) -> None:
    check_error(client.post(CHAT, content=body), 400, "invalid_json")


def test_text_that_cannot_fit_never_reaches_the_engine(
    client: TestClient, settings: Settings, engine: FakeEngine
) -> None:
    most = settings.models["default"].longest_body
    for path, body in (
        (CHAT, {"messages": [{"role": "user", "content": "x " * most}]}),
        ("/v1/completions", {"prompt": "x" * most}),
    ):
        check_error(client.post(path, json=body), 400, "context_length_exceeded")
    assert not engine.requests
    assert client.post("/v1/completions", json={"prompt": "x" * (most - 100)}).is_success


def test_tool_calls_are_sent_back(client: TestClient, engine: FakeEngine) -> None:
    call = {"id": "1", "type": "function", "function": {"name": "now", "arguments": "{}"}}
    messages = [
        *HELLO["messages"],
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "content": "noon", "tool_call_id": "1"},
    ]
    assert client.post(CHAT, json={"messages": messages}).is_success
    assert engine.requests[0][2]["messages"] == messages


def test_large_bodies(client: TestClient) -> None:
    too_large = b" " * (MAX_BODY + 1)
    check_error(client.post(CHAT, content=too_large), 413, "request_too_large")
    # Without a length, as chunks.
    check_error(client.post(CHAT, content=iter([too_large])), 413, "request_too_large")


def test_chat_without_a_template(client: TestClient, engine: FakeEngine) -> None:
    engine.state = EngineState(True, "", {"default": Model("default", Kind.TEXT, 1)})
    error = check_error(client.post(CHAT, json=HELLO), 400, "model_not_chat")
    assert "chat_template" in error["message"]
    assert client.post("/v1/completions", json={"prompt": "Once"}).is_success


def test_unready_and_busy(client: TestClient, engine: FakeEngine) -> None:
    engine.refusal = EngineBusy(7)
    response = client.post(CHAT, json=HELLO)
    check_error(response, 429, "queue_full")
    # There may be room on another NAS, where one of a pool is asked by another.
    pooled = client.post(CHAT, json=HELLO, headers={"X-Nas-Pool": "1"})
    check_error(pooled, 502, "queue_full")
    assert response.headers["retry-after"] == "7"
    engine.refusal = QuotaExceeded("The key 'owner' may have 1 request at once.", 3)
    response = client.post(CHAT, json=HELLO)
    assert "at once" in check_error(response, 429, "rate_limit_exceeded")["message"]
    assert response.headers["retry-after"] == "3"
    engine.refusal = EngineUnavailable("the engine ended")
    response = client.post(CHAT, json=HELLO)
    assert "the engine ended" in check_error(response, 503, "not_ready")["message"]
    assert response.headers["retry-after"]
    engine.state = EngineState(False, "loading")
    check_error(client.post(CHAT, json=HELLO), 503, "not_ready")
    assert client.get("/v1/models").json()["data"] == []


ENGINE_400 = b'{"error":{"code":400,"message":"no","type":"invalid_request_error"}}'
ENGINE_CONTEXT = (
    b'{"error":{"code":400,"message":"request (99 tokens) exceeds the available context size",'
    b'"type":"exceed_context_size_error","n_prompt_tokens":99,"n_ctx":9}}'
)


ENGINE_BATCH = (
    b'{"error":{"code":500,"message":"input (902 tokens) is too large to process. increase the '
    b'physical batch size (current batch size: 512)","type":"server_error"}}'
)
ENGINE_GRAMMAR = (
    b'{"error":{"code":400,"message":"Failed to initialize samplers: failed to parse grammar",'
    b'"type":"invalid_request_error"}}'
)
ENGINE_NO_TEXT = (
    b'{"error":{"code":500,"message":"Unexpected empty grammar stack after accepting piece: x",'
    b'"type":"server_error"}}'
)
ENGINE_SCHEMA = (
    b'{"error":{"code":400,"message":"Unable to generate parser for this template. Automatic parser'
    b' generation failed: JSON schema error at #: type 5","type":"invalid_request_error"}}'
)


@pytest.mark.parametrize(
    ("status", "body", "expected", "code"),
    [
        (400, ENGINE_400, 400, "invalid_value"),
        (400, ENGINE_CONTEXT, 400, "context_length_exceeded"),
        (400, ENGINE_SCHEMA, 400, "invalid_json_schema"),
        (400, ENGINE_GRAMMAR, 400, "invalid_json_schema"),
        (500, ENGINE_NO_TEXT, 400, "invalid_json_schema"),
        (500, ENGINE_BATCH, 400, "context_length_exceeded"),
        (500, b'{"error":{"code":500,"message":"x","type":"server_error"}}', 500, "engine_error"),
        (503, b'{"error":{"code":503,"message":"Loading model"}}', 503, "not_ready"),
        (401, b'{"error":{"code":401,"message":"key"}}', 500, "engine_error"),
        (500, b"<html>", 500, "engine_error"),
        (500, b'{"error":"x"}', 500, "engine_error"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_engine_errors_are_rewritten(
    settings: Settings, status: int, body: bytes, expected: int, code: str, stream: bool
) -> None:
    engine = FakeEngine(body, status=status)
    with TestClient(create_app(settings, engine, RING), headers=AUTH) as client:
        check_error(client.post(CHAT, json=HELLO | {"stream": stream}), expected, code)
    assert engine.active == 0


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"tools": [WEATHER]}, "tools"),
        ({"tools": [WEATHER], "response_format": {"type": "json_object"}}, None),
    ],
)
def test_whose_schema_cannot_be_used(
    settings: Settings, fields: dict[str, Any], param: str | None
) -> None:
    engine = FakeEngine(ENGINE_SCHEMA, status=400)
    with TestClient(create_app(settings, engine, RING), headers=AUTH) as client:
        error = check_error(client.post(CHAT, json=HELLO | fields), 400, "invalid_json_schema")
    assert error["param"] == param


EVENT = b'data: {"choices":[{"delta":{"content":"a {\\"error\\": 1}"}}]}\n\n'
DONE = b"data: [DONE]\n\n"


@pytest.mark.parametrize(
    "parts", [(EVENT, EVENT, DONE), (EVENT[:9], EVENT[9:] + EVENT[:5], EVENT[5:] + DONE)]
)
def test_stream_is_passed_on_as_it_is(settings: Settings, parts: tuple[bytes, ...]) -> None:
    with TestClient(create_app(settings, FakeEngine(*parts), RING), headers=AUTH) as client:
        response = client.post(CHAT, json=HELLO | {"stream": True})
    assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert response.headers["x-accel-buffering"] == "no"
    assert response.content == EVENT + EVENT + DONE


FIGURES = (
    b'data: {"choices":[],"usage":{"completion_tokens":2,"prompt_tokens":9,"total_tokens":11},'
    b'"timings":{"cache_n":4,"predicted_ms":500.0}}\n\n'
)


@pytest.mark.parametrize(
    ("options", "passed"),
    [
        ({}, b""),
        ({"stream_options": {}}, b""),
        ({"stream_options": None}, b""),
        (
            {"stream_options": {"include_usage": True}},
            FIGURES.replace(b'"usage":{', b'"usage":{"served_by":"local",'),
        ),
    ],
)
def test_figures_are_for_those_who_ask(
    settings: Settings, options: dict[str, Any], passed: bytes
) -> None:
    engine = FakeEngine(EVENT, EVENT + FIGURES[:20], FIGURES[20:] + DONE)
    with TestClient(create_app(settings, engine, RING), headers=AUTH) as client:
        response = client.post(CHAT, json=HELLO | {"stream": True} | options)
    assert response.content == EVENT + EVENT + passed + DONE
    # For the books they always are.
    assert engine.requests[0][2]["stream_options"] == {"include_usage": True}
    (outcome,) = engine.outcomes
    assert (outcome.status, outcome.prompt_tokens, outcome.completion_tokens) == (200, 9, 2)
    assert (outcome.cached_tokens, outcome.writing_seconds) == (4, 0.5)
    assert outcome.first_seconds is not None


ENGINE_500 = b'{"error":{"code":500,"message":"no","type":"server_error"}}'


@pytest.mark.parametrize("cut", [0, 3, 20])
@pytest.mark.parametrize(
    ("error", "status"),
    [
        (b"data: " + ENGINE_400, 400),
        (b"error: " + ENGINE_400, 400),
        (b"data: " + ENGINE_500, 500),
        (b"data: " + ENGINE_500.replace(b'{"error"', b'{ "error"'), 500),
        (b'data: {"choices":[],' + ENGINE_500[1:], 500),
        (b"event: error\ndata: " + ENGINE_500, 500),
        (b"event:error\ndata: it broke", 500),
    ],
)
def test_errors_inside_a_stream(settings: Settings, error: bytes, status: int, cut: int) -> None:
    error += b"\n\n"
    engine = FakeEngine(EVENT, error[:cut], error[cut:])
    with TestClient(create_app(settings, engine, RING), headers=AUTH) as client:
        content = client.post(CHAT, json=HELLO | {"stream": True}).content
    # It is no success in the books, and none to what watches over upstreams.
    assert [outcome.status for outcome in engine.outcomes] == [status]
    assert content.startswith(EVENT)
    shape = json.loads(content.removeprefix(EVENT).removeprefix(b"data: "))
    assert list(shape["error"]) == ["message", "type", "param", "code"]
    assert isinstance(shape["error"]["code"], str)


@pytest.mark.parametrize(
    "event",
    [
        b'data: {"choices":[{"delta":{"content":"a"}}],"error":null}\n\n',
        b'data: {"error"\n\n',
        b": error\n\n",
        b'data: {"choices":[{"delta":{"content":"x","error":1}}]}\n\n',
    ],
)
def test_what_is_no_error_inside_a_stream(settings: Settings, event: bytes) -> None:
    engine = FakeEngine(event, DONE)
    with TestClient(create_app(settings, engine, RING), headers=AUTH) as client:
        assert client.post(CHAT, json=HELLO | {"stream": True}).content == event + DONE
    assert [outcome.status for outcome in engine.outcomes] == [200]


def test_engine_that_dies_while_it_answers(settings: Settings) -> None:
    engine = FakeEngine(EVENT, DIED)
    with TestClient(create_app(settings, engine, RING), headers=AUTH) as client:
        content = client.post(CHAT, json=HELLO | {"stream": True}).content
        assert b'"code": "not_ready"' in content.removeprefix(EVENT)
        assert not content.endswith(DONE)
        check_error(client.post(CHAT, json=HELLO), 503, "not_ready")
    assert engine.outcomes[0].status == 503


async def _leave_early(settings: Settings, stream: bool) -> tuple[FakeEngine, list[str]]:
    engine = FakeEngine(EVENT, None)
    app = create_app(settings, engine, RING)
    body = json.dumps(HELLO | {"stream": stream}).encode()
    messages = [{"type": "http.request", "body": body, "more_body": False}]
    sent: list[str] = []

    async def receive() -> dict[str, Any]:
        if messages:
            return messages.pop()
        await asyncio.sleep(0.05)
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        sent.append(message["type"])

    scope = {
        "type": "http",
        "method": "POST",
        "path": CHAT,
        "root_path": "",
        "query_string": b"",
        "headers": [(b"authorization", f"Bearer {SECRET}".encode())],
    }
    async with asyncio.timeout(5):
        await app(scope, receive, send)
    return engine, sent


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_frees_its_slot(settings: Settings, stream: bool) -> None:
    engine, _ = asyncio.run(_leave_early(settings, stream))
    assert len(engine.requests) == 1
    assert engine.active == 0
    (outcome,) = engine.outcomes
    assert outcome.status == 499
    assert outcome.completion_tokens == (1 if stream else 0)
    assert outcome.prompt_tokens > 0


@pytest.mark.parametrize(
    ("given", "kept"),
    [("abc-1.2:3_4", True), ("", False), ("a b", False), ("x" * 65, False), ("a\tb", False)],
)
def test_request_id(client: TestClient, given: str, kept: bool) -> None:
    answer = client.get("/healthz", headers={"X-Request-ID": given}).headers["x-request-id"]
    assert (answer == given) is kept
    assert len(answer) >= 11


def test_log_line(client: TestClient, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        client.post(CHAT, json=HELLO)
    (record,) = (r for r in caplog.records if getattr(r, "event", "") == "request")
    line = json.loads(JsonFormatter().format(record))
    assert {"time", "level", "event", "method", "path", "status"} <= line.keys()
    assert {"ms", "bytes", "request_id", "key"} <= line.keys()
    assert (line["status"], line["key"], line["bytes"]) == (200, "owner", 14)
    assert "hello" not in json.dumps(line)
    assert SECRET not in caplog.text


def test_a_crash_is_a_clean_500(settings: Settings, caplog: pytest.LogCaptureFixture) -> None:
    engine = FakeEngine(ZeroDivisionError("boom"))
    with TestClient(create_app(settings, engine, RING), headers=AUTH) as client:
        error = check_error(client.post(CHAT, json=HELLO), 500, "internal_error")
    assert "boom" not in error["message"]
    assert any(record.exc_info for record in caplog.records)


def test_the_books_hear_of_errors_that_had_no_slot(client: TestClient, engine: FakeEngine) -> None:
    """By their codes alone; of those that had one, the outcome says it."""
    client.get("/v1/models", headers={"Authorization": "Bearer wrong"})
    client.post(CHAT, json={})
    client.post(CHAT, json=HELLO | {"model": "none"})
    client.post("/v1/nothing", json={})
    client.get("/nothing")
    engine.refusal = EngineBusy(7)
    client.post(CHAT, json=HELLO)
    engine.refusal = EngineUnavailable("the engine ended")
    client.post(CHAT, json=HELLO)
    assert engine.failures == [
        Failure(401, "invalid_api_key"),
        Failure(400, "invalid_value"),
        Failure(404, "model_not_found"),
        Failure(404, "not_found"),
        Failure(429, "queue_full"),
        Failure(503, "not_ready"),
    ]
    engine.failures.clear()
    engine.refusal.had_slot = True
    client.post(CHAT, json=HELLO)
    engine.refusal = None
    engine.status, engine.parts = 500, (b"",)
    check_error(client.post(CHAT, json=HELLO), 500, "engine_error")
    assert engine.outcomes[-1].failure == "engine_error"
    assert not engine.failures


@pytest.mark.parametrize(
    ("given", "sent"),
    [
        ({"enable_thinking": False}, {"enable_thinking": False}),
        ({"enable_thinking": True, "tools": "{{ secrets }}"}, {"enable_thinking": True}),
        ({"other": 1}, None),
        ({}, None),
        (None, None),
    ],
)
def test_a_template_hears_whether_to_think(
    client: TestClient, engine: FakeEngine, given: Any, sent: Any
) -> None:
    assert client.post(CHAT, json=HELLO | {"chat_template_kwargs": given}).is_success
    assert engine.requests[0][2].get("chat_template_kwargs") == sent


@pytest.mark.parametrize("given", [{"enable_thinking": "no"}, {"enable_thinking": None}, [], "x"])
def test_what_a_template_does_not_hear(client: TestClient, given: Any) -> None:
    answer = client.post(CHAT, json=HELLO | {"chat_template_kwargs": given})
    error = check_error(answer, 400, "invalid_value")
    assert error["param"] == "chat_template_kwargs"
