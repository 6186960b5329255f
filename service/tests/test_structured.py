# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: nas.assistant contributors
"""Schemas that an engine can serve, and those that would stall it."""

from __future__ import annotations

import contextlib
import time
from typing import Any

import pytest

from nas_assistant.errors import ApiError
from nas_assistant.schemas import check_schemas
from nas_assistant.structured import check_response_format, check_tools

from .schema_cases import FINE, HARMFUL, STRING, long_texts


@pytest.mark.parametrize("schema", FINE)
def test_fine(schema: dict[str, Any]) -> None:
    check_schemas([schema], "tools")
    check_response_format({"type": "json_schema", "json_schema": {"schema": schema}})
    check_tools([{"type": "function", "function": {"name": "f", "parameters": schema}}])


@pytest.mark.parametrize(("schema", "said"), HARMFUL)
def test_harmful(schema: dict[str, Any], said: str) -> None:
    with pytest.raises(ApiError, match="tools") as error:
        check_tools([{"type": "function", "function": {"name": "f", "parameters": schema}}])
    assert said in error.value.message
    with pytest.raises(ApiError, match="response_format"):
        check_response_format({"type": "json_object", "schema": schema})


def test_a_loop_of_references_ends() -> None:
    loop = {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}
    check_schemas([{"$ref": "#/$defs/a", "$defs": loop}], "tools")


@pytest.mark.parametrize("required", ["a", {"a": True}, [1], [["a"]]])
def test_required_is_a_list_of_names(required: Any) -> None:
    with pytest.raises(ApiError, match="'required' that is no list"):
        check_schemas([{"type": "object", "required": required}], "tools")


def test_repetitions_count_over_all_schemas_of_a_request() -> None:
    tool = {"type": "function", "function": {"name": "f", "parameters": long_texts(6)}}
    check_tools([tool])
    with pytest.raises(ApiError, match="more than 20000 repetitions"):
        check_tools([tool, tool])


def test_as_many_tools_as_openai_takes() -> None:
    check_tools([{"type": "function", "function": {"name": "f"}}] * 128)
    with pytest.raises(ApiError, match="more than 128 tools"):
        check_tools([{"type": "function", "function": {"name": "f"}}] * 129)


@pytest.mark.parametrize("schema", [schema for schema, _ in HARMFUL] + FINE)
def test_what_is_harmful_is_found_soon(schema: dict[str, Any]) -> None:
    """The gateway answers nobody meanwhile."""
    began = time.monotonic()
    with contextlib.suppress(ApiError):
        check_schemas([schema], "tools")
    assert time.monotonic() - began < 0.5


def strict(schema: dict[str, Any]) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"schema": schema, "strict": True}}


KEPT: list[dict[str, Any]] = [
    {"type": "integer", "minimum": 3, "exclusiveMaximum": 5, "description": "x", "default": 3},
    {"type": "string", "format": "date"},
    {"type": "string", "minLength": 3, "maxLength": 5},
    {"type": ["string", "null"], "maxLength": 5},
    {"type": "array", "items": STRING, "minItems": 3, "maxItems": 5},
    {"prefixItems": [STRING, {"type": "number"}]},
    {"enum": ["a", 1, None]},
    {"type": "nonsense"},
    {"type": "string", "enum": ["a"]},
    {"properties": {"a": {"$ref": "#/$defs/b"}}, "required": ["a"], "$defs": {"b": STRING}},
    {"type": "object", "additionalProperties": {"anyOf": [STRING, {"type": "null"}]}},
]
# Measured of the engine: with each of them it writes what does not fit.
NOT_KEPT: list[tuple[dict[str, Any], str]] = [
    ({"type": "number", "minimum": 3, "maximum": 5}, "maximum"),
    ({"minimum": 3}, "minimum"),
    ({"type": ["number", "null"], "exclusiveMinimum": 3}, "exclusiveMinimum"),
    ({"type": "integer", "minimum": 3, "exclusiveMinimum": 3}, "exclusiveMinimum"),
    ({"type": "integer", "multipleOf": 3}, "multipleOf"),
    ({"type": "string", "format": "email"}, "format"),
    ({"type": "string", "format": "date", "maxLength": 3}, "maxLength"),
    ({"maxLength": 3}, "maxLength"),
    ({"type": "string", "maxLength": 5000}, "maxLength"),
    ({"type": "array", "items": STRING, "maxItems": 5000}, "maxItems"),
    ({"prefixItems": [STRING], "minItems": 1}, "minItems"),
    ({"type": "array", "prefixItems": [STRING], "items": STRING}, "prefixItems"),
    ({"type": "object", "required": ["a"]}, "required"),
    ({"properties": {"a": STRING}, "required": ["a", "b"]}, "required"),
    ({"allOf": [STRING, {"type": "integer"}]}, "allOf"),
    ({"type": "object", "properties": {"a": STRING}, "allOf": [{"required": ["a"]}]}, "allOf"),
    (
        {
            "type": "object",
            "properties": {"a": STRING},
            "oneOf": [{"required": ["a"]}, {"required": ["b"]}],
            "additionalProperties": False,
        },
        "type",
    ),
    ({"oneOf": [{"required": ["a"]}]}, "required"),
    ({"$ref": "#/$defs/a", "$defs": {"a": STRING}, "maxLength": 3}, "maxLength"),
    ({"enum": ["a", "abcd"], "maxLength": 3}, "maxLength"),
    ({"const": 1, "type": "string"}, "type"),
]


@pytest.mark.parametrize("schema", KEPT)
def test_what_the_engine_keeps_to_is_strict(schema: dict[str, Any]) -> None:
    check_response_format(strict(schema))


@pytest.mark.parametrize(("schema", "keyword"), NOT_KEPT)
def test_what_the_engine_does_not_keep_to_is_not(schema: dict[str, Any], keyword: str) -> None:
    within = {"type": "object", "properties": {"x": schema}, "required": ["x"]}
    within["$defs"] = schema.get("$defs", {})
    check_response_format({"type": "json_schema", "json_schema": {"schema": within}})
    with pytest.raises(ApiError, match=f"is strict and has {keyword}, which") as error:
        check_response_format(strict(within))
    assert error.value.code == "invalid_json_schema"


@pytest.mark.parametrize("keyword", ["not", "uniqueItems", "patternProperties"])
def test_what_the_engine_does_not_keep_to_is_not_strict(keyword: str) -> None:
    schema = {"type": "array", "items": {keyword: {}}}
    wish = {"type": "json_schema", "json_schema": {"schema": schema}}
    check_response_format(wish)
    wish["json_schema"]["strict"] = True  # type: ignore[index]
    with pytest.raises(ApiError, match=f"is strict and has {keyword}"):
        check_response_format(wish)
    check_tools([{"type": "function", "function": {"name": "f", "parameters": schema}}])
