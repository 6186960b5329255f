# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: nas.assistant contributors
"""Schemas that an engine can serve, and those that would stall it."""

from __future__ import annotations

from typing import Any

import pytest

from nas_assistant.errors import ApiError
from nas_assistant.structured import check_response_format, check_schemas, check_tools

STRING = {"type": "string"}


def tree(depth: int) -> dict[str, Any]:
    """A schema of ``depth`` small parts that can be read in 2 ** depth ways."""
    parts: dict[str, Any] = {"p0": {"const": "a"}}
    for level in range(1, depth + 1):
        below = {"$ref": f"#/$defs/p{level - 1}"}
        parts[f"p{level}"] = {"anyOf": [below, below]}
    return {"$ref": f"#/$defs/p{depth}", "$defs": parts}


FINE: list[dict[str, Any]] = [
    {},
    STRING,
    {"type": "object", "properties": {"pattern": STRING, "$ref": STRING}, "required": ["pattern"]},
    {"type": "array", "items": {"anyOf": [STRING, {"type": "null"}]}, "maxItems": 5000},
    {"enum": [str(number) for number in range(900)]},
    {"$ref": "#/$defs/a", "$defs": {"a": {"properties": {"next": {"$ref": "#/$defs/a"}}}}},
    tree(8),
]
STALLING: list[tuple[dict[str, Any], str]] = [
    ({"type": "string", "pattern": "^(a?){1,900}a{900}$"}, "pattern"),
    ({"properties": {"x": {"items": {"pattern": "a"}}}}, "pattern"),
    (tree(30), "alternatives"),
    ({"properties": {"x": {"items": {"$ref": "#/$defs/p30"}}}, **tree(30)}, "alternatives"),
    ({"anyOf": [STRING] * 501}, "alternatives"),
    ({"allOf": [{"anyOf": [STRING] * 30}, {"oneOf": [STRING] * 30}]}, "alternatives"),
    ({"properties": {str(number): STRING for number in range(2000)}}, "more than 2000 schemas"),
    ({"$ref": "#"}, "refers to '#'"),
    ({"$ref": "#/$defs/none"}, "not in its schema"),
    ({"$ref": "https://example.com/schema"}, "not in its schema"),
    (tree(900), "alternatives"),
]


@pytest.mark.parametrize("schema", FINE)
def test_fine(schema: dict[str, Any]) -> None:
    check_schemas([schema], "tools")
    check_response_format({"type": "json_schema", "json_schema": {"schema": schema}})
    check_tools([{"type": "function", "function": {"name": "f", "parameters": schema}}])


@pytest.mark.parametrize(("schema", "said"), STALLING)
def test_stalling(schema: dict[str, Any], said: str) -> None:
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


@pytest.mark.parametrize("keyword", ["not", "uniqueItems", "patternProperties"])
def test_what_the_engine_does_not_keep_to_is_not_strict(keyword: str) -> None:
    schema = {"type": "array", "items": {keyword: {}}}
    wish = {"type": "json_schema", "json_schema": {"schema": schema}}
    check_response_format(wish)
    wish["json_schema"]["strict"] = True  # type: ignore[index]
    with pytest.raises(ApiError, match=f"is strict and has {keyword}"):
        check_response_format(wish)
    check_tools([{"type": "function", "function": {"name": "f", "parameters": schema}}])
