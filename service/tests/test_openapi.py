# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: nas.assistant contributors
"""The description of the API, against the API."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator
from starlette.routing import Route
from starlette.testclient import TestClient

from nas_assistant.fields import CHAT, COMPLETION, EMBEDDING, RERANK
from nas_assistant.gateway import create_app
from nas_assistant.keys import KeyRing
from nas_assistant.openapi import describe
from nas_assistant.settings import Settings

from .conftest import SECRET, api_key, minimal_config, settled
from .fake_engine import FakeEngine

CHAT_PATH = "/v1/chat/completions"


@pytest.fixture
def client(write_config: Callable[[str], Path]) -> Iterator[TestClient]:
    settings = settled(Settings.load(write_config(minimal_config()), {}))
    app = create_app(settings, FakeEngine(b"{}"), KeyRing([api_key()]))
    with TestClient(app, headers={"Authorization": f"Bearer {SECRET}"}) as client:
        yield client


def test_each_route_is_described(client: TestClient) -> None:
    described = client.get("/openapi.json").json()
    assert described == describe()
    app: Any = client.app
    routes = {
        route.path
        for route in app.routes
        if isinstance(route, Route) and not route.path.startswith(("/assets/", "/admin", "/api"))
    }
    assert described["paths"].keys() - {"/admin/status"} == routes - {"/"}


def test_all_references_lead_somewhere() -> None:
    text = str(describe())
    names = set(re.findall(r"#/components/schemas/(\w+)", text))
    assert names == describe()["components"]["schemas"].keys()


@pytest.mark.parametrize(
    ("path", "fields"),
    [
        (CHAT_PATH, CHAT),
        ("/v1/completions", COMPLETION),
        ("/v1/embeddings", EMBEDDING),
        ("/v1/rerank", RERANK),
    ],
)
def test_fields_are_those_that_are_taken(path: str, fields: dict[str, Any]) -> None:
    body = describe()["paths"][path]["post"]["requestBody"]["content"]["application/json"]
    assert fields.keys() <= body["schema"]["properties"].keys()


# Of each kind of schema, a value at each border and one beyond.
EXAMPLES = [
    ("temperature", [0, 2, 0.5], [-0.1, 2.1, "1", True]),
    ("max_tokens", [1, 1 << 20], [0, (1 << 20) + 1, 1.5, True]),
    ("n", [1], [2, True]),
    ("stream_options", [{}, {"include_usage": True}], [True, {"include_usage": 1}]),
    ("stop", ["a", ["a", "b"], []], ["", [""], ["a"] * 5, 1]),
    ("logit_bias", [{}, {"5": -100}], [{"x": 1}, {"5": 101}, []]),
    ("tool_choice", ["auto", "none"], ["all", 1]),
    ("logprobs", [True, False], [1, "yes"]),
]


@pytest.mark.parametrize(("name", "good", "bad"), EXAMPLES, ids=lambda value: str(value)[:20])
def test_schema_and_check_agree(name: str, good: list[Any], bad: list[Any]) -> None:
    field = CHAT[name]
    fits = Draft202012Validator(field.schema).is_valid
    for value in good:
        assert field.check(value) is None, value
        assert fits(value), value
    for value in bad:
        assert field.check(value) is not None, value
        assert not fits(value), value


def test_all_schemas_are_schemas() -> None:
    description = describe()
    operations = [each["post"] for each in description["paths"].values() if "post" in each]
    for operation in operations:
        body = operation["requestBody"]["content"]["application/json"]["schema"]
        Draft202012Validator.check_schema(body)
    for schema in description["components"]["schemas"].values():
        Draft202012Validator.check_schema(schema)
