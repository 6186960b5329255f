# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: nas.assistant contributors
"""Tools, with a real model that calls them and one that knows none; the official client asks."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

from .conftest import BASE_MODEL, CHAT_MODEL, SECRET
from .schema_cases import FINE
from .service_process import Service
from .tool_model import with_template


@pytest.fixture(scope="module")
def service(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """One whose model "default" knows tools; "large" is the same model as it came."""
    folder = tmp_path_factory.mktemp("models")
    with_template(models / CHAT_MODEL, folder / CHAT_MODEL)
    shutil.copy(models / CHAT_MODEL, folder / BASE_MODEL)
    service = Service(tmp_path_factory.mktemp("service"), folder)
    service.start()
    yield service
    assert service.stop() == 0


@pytest.fixture
def client(service: Service) -> Iterator[openai.OpenAI]:
    url = f"{service.url}/v1"
    with openai.OpenAI(base_url=url, api_key=SECRET, max_retries=0, timeout=120) as client:
        yield client


def function(name: str, **properties: dict[str, Any]) -> dict[str, Any]:
    schema = {"type": "object", "properties": properties, "required": list(properties)}
    return {"type": "function", "function": {"name": name, "parameters": schema}}


UNITS = ["celsius", "fahrenheit"]
WEATHER = function(
    "get_weather", city={"type": "string", "maxLength": 20}, unit={"type": "string", "enum": UNITS}
)
CLOCK = function("set_clock", hour={"type": "integer", "minimum": 0, "maximum": 23})


def conversation() -> list[dict[str, Any]]:
    """With calls in it, without which a model this small does not know what to do."""
    messages: list[dict[str, Any]] = []
    for city, weather in {"London": "12", "Rome": "23"}.items():
        arguments = json.dumps({"city": city, "unit": "celsius"})
        call = {"id": city, "type": "function",
                "function": {"name": "get_weather", "arguments": arguments}}  # fmt: skip
        messages += [
            {"role": "user", "content": f"Weather in {city}?"},
            {"role": "assistant", "content": None, "tool_calls": [call]},
            {"role": "tool", "tool_call_id": city, "content": weather},
        ]
    return [*messages, {"role": "user", "content": "Weather in Paris?"}]


def asked(**more: Any) -> dict[str, Any]:
    tools = [WEATHER, CLOCK]
    common = {"model": "default", "messages": conversation(), "temperature": 0, "max_tokens": 60}
    return {"tools": tools, **common, **more}


@pytest.mark.parametrize("choice", ["auto", "required"])
def test_a_model_calls_a_tool(client: openai.OpenAI, choice: str) -> None:
    (answer,) = client.chat.completions.create(**asked(tool_choice=choice)).choices
    assert answer.finish_reason == "tool_calls"
    (call,) = answer.message.tool_calls
    assert call.id
    assert call.function.name == "get_weather"
    arguments = json.loads(call.function.arguments)
    assert arguments.keys() == {"city", "unit"}
    assert arguments["city"] == "Paris"
    assert arguments["unit"] in UNITS


def test_a_tool_is_called_in_pieces_of_a_stream(client: openai.OpenAI) -> None:
    pieces = [
        call
        for chunk in client.chat.completions.create(**asked(stream=True))
        for choice in chunk.choices
        for call in choice.delta.tool_calls or []
    ]
    assert pieces[0].function.name == "get_weather"
    text = "".join(piece.function.arguments or "" for piece in pieces)
    assert json.loads(text)["city"] == "Paris"


def test_the_tool_that_is_named_is_called(client: openai.OpenAI) -> None:
    """And no other, which this model would rather call."""
    choice = {"type": "function", "function": {"name": "set_clock"}}
    (answer,) = client.chat.completions.create(**asked(tool_choice=choice)).choices
    (call,) = answer.message.tool_calls
    assert call.function.name == "set_clock"
    assert 0 <= json.loads(call.function.arguments)["hour"] <= 23


def test_a_model_that_knows_no_tools(client: openai.OpenAI) -> None:
    for choice in ("required", {"type": "function", "function": {"name": "set_clock"}}):
        with pytest.raises(openai.BadRequestError, match="knows none") as error:
            client.chat.completions.create(**asked(model="large", tool_choice=choice))
        assert (error.value.code, error.value.param) == ("tools_not_supported", "tool_choice")
    hello = [{"role": "user", "content": "What is the capital of France?"}]
    (answer,) = client.chat.completions.create(**asked(model="large", messages=hello)).choices
    assert answer.message.content
    assert not answer.message.tool_calls


@pytest.mark.parametrize("schema", [schema for schema in FINE if len(json.dumps(schema)) < 1000])
def test_fine_schemas_are_fine_for_tools(client: openai.OpenAI, schema: dict[str, Any]) -> None:
    """Where the model is shown them, too, which long ones have no room for."""
    tool = {"type": "function", "function": {"name": "get_weather", "parameters": schema}}
    fields = asked(tools=[tool, CLOCK], tool_choice="required", max_tokens=24)
    assert client.chat.completions.create(**fields).choices
