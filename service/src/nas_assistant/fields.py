# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: nas.assistant contributors
"""The fields of requests that go on to the engine: what each may hold, said once as a check and as
JSON schema, so that the description of the API cannot differ from what it takes.

The rest is dropped: llama.cpp has private switches (slots, adapters, cache) that a client must not
reach, and OpenAI has fields (user, metadata, store) that mean nothing here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from nas_assistant.structured import (
    LONGEST_TOOL_NAME,
    MOST_TOOLS,
    check_response_format,
    check_tool_choice,
    check_tools,
)

NO_LIMIT = -1
# In one request, to become vectors or to be ranked.
MOST_TEXTS = 256

Check = Callable[[Any], str | None]
Schema = Mapping[str, Any]


@dataclass(frozen=True)
class Field:
    """``check`` returns what is wrong with a value, or nothing."""

    check: Check
    schema: Schema


def integer(low: int, high: int) -> Field:
    """A whole number."""

    def check(value: Any) -> str | None:
        fine = isinstance(value, int) and not isinstance(value, bool) and low <= value <= high
        return None if fine else f"must be a whole number from {low} to {high}"

    return Field(check, {"type": "integer", "minimum": low, "maximum": high})


def number(low: float, high: float) -> Field:
    """A number."""

    def check(value: Any) -> str | None:
        fine = (
            isinstance(value, int | float) and not isinstance(value, bool) and low <= value <= high
        )
        return None if fine else f"must be a number from {low:g} to {high:g}"

    return Field(check, {"type": "number", "minimum": low, "maximum": high})


def only(allowed: Any) -> Field:
    """One value, which is what the engine does anyway."""

    # "is" tells true from 1, which "==" does not.
    def check(value: Any) -> str | None:
        fine = type(value) is type(allowed) and value == allowed
        return None if fine else f"supports only {allowed!r}"

    return Field(check, {"const": allowed})


def one_of(*choices: str) -> Field:
    """A word of some."""
    return Field(
        lambda value: None if value in choices else f"must be {' or '.join(choices)}",
        {"enum": list(choices)},
    )


def refused(reason: str) -> Field:
    """Nothing but null."""
    return Field(lambda _: reason, {"type": "null"})


def _stop(value: Any) -> str | None:
    stops = [value] if isinstance(value, str) else value
    fine = (
        isinstance(stops, list)
        and len(stops) <= 4
        and all(isinstance(stop, str) and stop for stop in stops)
    )
    return None if fine else "must be a string or a list of at most four strings, none empty"


def _stream_options(value: Any) -> str | None:
    fine = isinstance(value, dict) and isinstance(value.get("include_usage", False), bool)
    return None if fine else "must be an object whose include_usage is true or false"


def _logit_bias(value: Any) -> str | None:
    if isinstance(value, dict):
        check = number(-100, 100).check
        if all(
            key.isdecimal() and key.isascii() and check(bias) is None for key, bias in value.items()
        ):
            return None
    return "must be an object of token numbers and biases from -100 to 100"


def _function(**more: Schema) -> Schema:
    """An object that names a function, and says more of it."""
    name = {"type": "string", "minLength": 1, "maxLength": LONGEST_TOOL_NAME}
    function = {
        "type": "object",
        "required": ["name"],
        "properties": {"name": name, **more},
    }
    return {
        "type": "object",
        "required": ["type", "function"],
        "properties": {"type": {"const": "function"}, "function": function},
    }


def _limit(high: int) -> Field:
    """Of tokens; NO_LIMIT, as some clients say it, is none."""
    counted = integer(1, high)
    return Field(
        lambda value: None if value is not True and value == NO_LIMIT else counted.check(value),
        {"anyOf": [counted.schema, {"const": NO_LIMIT}]},
    )


def _text_format(value: Any) -> str | None:
    # The engine reads over it there, and what comes would have any form.
    fine = isinstance(value, dict) and value.get("type") == "text"
    return None if fine else "is supported by /v1/chat/completions only"


_TEXT: Schema = {"type": "string", "minLength": 1}
_SCHEMA: Schema = {
    "type": "object",
    "description": (
        "A JSON schema without pattern. What the engine's grammar would not survive, or no text "
        "fits, is refused: see the README for the limits"
    ),
}
_BOOLEAN = Field(
    lambda value: None if isinstance(value, bool) else "must be true or false", {"type": "boolean"}
)

# llama-server's, and vLLM's.
_OTHER_FORMATS = (
    *("grammar", "json_schema", "guided_choice", "guided_grammar", "guided_json", "guided_regex"),
    "structured_outputs",
)
COMMON: Mapping[str, Field] = {
    "stream": _BOOLEAN,
    "stream_options": Field(
        _stream_options,
        {"type": "object", "properties": {"include_usage": {"type": "boolean"}}},
    ),
    "max_tokens": _limit(1 << 20),
    "temperature": number(0, 2),
    "top_p": number(0, 1),
    "n": only(1),
    "stop": Field(_stop, {"anyOf": [_TEXT, {"type": "array", "items": _TEXT, "maxItems": 4}]}),
    "seed": integer(-(1 << 31), (1 << 32) - 1),
    "presence_penalty": number(-2, 2),
    "frequency_penalty": number(-2, 2),
    "logit_bias": Field(
        _logit_bias,
        {
            "type": "object",
            "propertyNames": {"pattern": "^[0-9]+$"},
            "additionalProperties": {"type": "number", "minimum": -100, "maximum": 100},
        },
    ),
    # Both 0 and -1 are all.
    "top_k": integer(-1, 1 << 20),
    "min_p": number(0, 1),
    "repeat_penalty": number(0.01, 10),
    # What narrows an answer elsewhere: who asks for it must not get any text instead.
    **dict.fromkeys(_OTHER_FORMATS, refused("is not supported: use response_format")),
    "functions": refused("is not supported: use tools"),
    "function_call": refused("is not supported: use tool_choice"),
}
# OpenAI has no such fields, and refuses a request with them.
ENGINE_ONLY = ("top_k", "min_p", "repeat_penalty")
CHAT: Mapping[str, Field] = {
    **COMMON,
    "logprobs": _BOOLEAN,
    "top_logprobs": integer(0, 20),
    "response_format": Field(
        check_response_format,
        {
            "type": "object",
            "required": ["type"],
            "properties": {
                "type": {"enum": ["text", "json_object", "json_schema"]},
                "json_schema": {
                    "type": "object",
                    "required": ["schema"],
                    "properties": {"schema": _SCHEMA, "strict": {"type": "boolean"}},
                },
            },
        },
    ),
    "tools": Field(
        check_tools,
        {
            "type": "array",
            "items": _function(description={"type": "string"}, parameters=_SCHEMA),
            "maxItems": MOST_TOOLS,
        },
    ),
    "tool_choice": Field(
        check_tool_choice,
        {
            "anyOf": [
                {"enum": ["auto", "none", "required"]},
                _function(),
            ]
        },
    ),
    "parallel_tool_calls": _BOOLEAN,
}
COMPLETION: Mapping[str, Field] = {
    **COMMON,
    # The engine would give them in the shape that they have in a chat.
    "logprobs": refused("is supported by /v1/chat/completions only"),
    "response_format": Field(
        _text_format, {"type": "object", "properties": {"type": {"const": "text"}}}
    ),
}
# Accepted while they ask for nothing.
COMPLETION_NEUTRAL: Mapping[str, Field] = {
    "echo": only(False),
    "best_of": only(1),
    "suffix": only(""),
}
EMBEDDING: Mapping[str, Field] = {
    "encoding_format": one_of("float", "base64"),
    "dimensions": refused("is not supported: vectors have the length that the model gives them"),
}
RERANK: Mapping[str, Field] = {"top_n": integer(1, MOST_TEXTS)}
# Accepted while they ask for nothing.
RERANK_NEUTRAL: Mapping[str, Field] = {"return_documents": only(False)}
