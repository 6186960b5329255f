# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: nas.assistant contributors
"""Tools and JSON schemas in a request: what the engine's grammar would not survive is refused.

llama.cpp turns a schema into a grammar and, at every token, follows all ways in which the text so
far can be read. A few kilobytes of nested alternatives have a billion ways, and the engine then
answers nobody for as long as it takes; so alternatives are counted here before it sees them.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from nas_assistant.errors import bad_request

_MOST_PARTS = 2000  # schemas within one request
_MOST_WAYS = 500  # alternatives at one place
_CHILD = ("additionalProperties", "contains", "if", "then", "else", "items", "not")
_CHILDREN = ("allOf", "anyOf", "items", "oneOf", "prefixItems")
_NAMED = ("$defs", "definitions", "patternProperties", "properties")
_ALTERNATIVES = ("anyOf", "oneOf")
# What llama.cpp reads over: its grammar allows what these forbid.
_IGNORED = (
    *("contains", "dependentRequired", "dependentSchemas", "else", "if", "maxProperties"),
    *("minProperties", "multipleOf", "not", "patternProperties", "propertyNames", "then"),
    *("uniqueItems", "unevaluatedItems", "unevaluatedProperties"),
)


def check_response_format(value: Any) -> None:
    """Raise ApiError (400) unless the engine can answer in this format."""
    kind = value.get("type") if isinstance(value, dict) else None
    if kind not in ("text", "json_object", "json_schema"):
        raise bad_request(
            "'response_format' must be an object whose type is text, json_object or json_schema.",
            "response_format",
        )
    schema, strict = value.get("schema"), False
    if kind == "json_schema":
        wrapped = value.get("json_schema")
        wrapped = wrapped if isinstance(wrapped, dict) else {}
        schema, strict = wrapped.get("schema"), wrapped.get("strict") is True
        if not isinstance(schema, dict):
            raise bad_request(
                "'response_format.json_schema' must be an object with a schema.", "response_format"
            )
    if isinstance(schema, dict):
        check_schemas([schema], "response_format")
        for part in _parts(schema) if strict else ():
            ignored = [key for key in _IGNORED if key in part]
            if ignored:
                raise bad_request(
                    f"'response_format' is strict and has {ignored[0]}, which the engine does not "
                    "keep to. Leave it out, or strict.",
                    "response_format",
                )


def check_tools(value: Any) -> None:
    """Raise ApiError (400) unless these are tools that the engine can offer to the model."""
    if not isinstance(value, list):
        raise bad_request("'tools' must be a list.", "tools")
    schemas = []
    for at, tool in enumerate(value):
        function = tool.get("function") if isinstance(tool, dict) else None
        if (
            not isinstance(function, dict)
            or tool.get("type") != "function"
            or not isinstance(function.get("name"), str)
            or not isinstance(function.get("description") or "", str)
        ):
            raise bad_request(
                f"'tools[{at}]' must be an object of the type function, whose function has a name.",
                "tools",
            )
        schema = function.get("parameters")
        if not isinstance(schema, dict | None):
            raise bad_request(f"'tools[{at}].function.parameters' must be an object.", "tools")
        schemas += [] if schema is None else [schema]
    check_schemas(schemas, "tools")


def check_tool_choice(value: Any) -> str | None:
    """Return what is wrong with a tool_choice by itself, or nothing."""
    if isinstance(value, str):
        return None if value in ("auto", "none", "required") else "must be auto, none or required"
    function = value.get("function") if isinstance(value, dict) else None
    if isinstance(function, dict) and isinstance(function.get("name"), str):
        return None if value.get("type") == "function" else "must be of the type function"
    return "must be auto, none, required, or an object that names a function"


def check_choice_among(tools: Any, choice: Any) -> None:
    """Raise ApiError (400) for a choice that these tools do not offer; both were checked before."""
    if choice in (None, "auto", "none"):
        return
    names = [tool["function"]["name"] for tool in tools or ()]
    if not names:
        raise bad_request("'tool_choice' asks for a tool, and 'tools' has none.", "tool_choice")
    if isinstance(choice, dict) and choice["function"]["name"] not in names:
        raise bad_request(
            f"'tool_choice' names a function that 'tools' lacks; it has {', '.join(names)}.",
            "tool_choice",
        )


def check_schemas(schemas: list[dict[str, Any]], where: str) -> None:
    """Raise ApiError (400) for schemas whose grammar would stall the engine.

    :param where: the field of the request that they are in.
    """
    parts = 0
    for root in schemas:
        known: dict[int, int] = {}
        for part in _parts(root):
            parts += 1
            if parts > _MOST_PARTS:
                raise bad_request(f"'{where}' has more than {_MOST_PARTS} schemas.", where)
            if isinstance(part.get("pattern"), str):
                raise bad_request(
                    f"'{where}' has a pattern, which is not supported: use enum, format or "
                    "maxLength.",
                    where,
                )
            required = part.get("required", [])
            if not isinstance(required, list) or not all(isinstance(n, str) for n in required):
                raise bad_request(f"'{where}' has a 'required' that is no list of names.", where)
            reference = part.get("$ref")
            if isinstance(reference, str) and not isinstance(_resolve(reference, root), dict):
                raise bad_request(
                    f"'{where}' refers to {reference!r}, which is not in its schema.", where
                )
            try:
                ways = _ways(part, root, known)
            except RecursionError:
                ways = _MOST_WAYS + 1
            if ways > _MOST_WAYS:
                raise bad_request(
                    f"'{where}' has more than {_MOST_WAYS} alternatives at one place; use fewer.",
                    where,
                )


def _parts(schema: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The schema and every schema in it."""
    found = [schema]
    for part in found:
        yield part
        inner = [part.get(key) for key in _CHILD]
        for key in _CHILDREN:
            inner += part[key] if isinstance(part.get(key), list) else []
        for key in _NAMED:
            inner += part[key].values() if isinstance(part.get(key), dict) else []
        found += [item for item in inner if isinstance(item, dict)]


def _ways(part: Any, root: dict[str, Any], known: dict[int, int]) -> int:
    """In how many ways text that fits the schema can begin, as its alternatives are written."""
    if not isinstance(part, dict):
        return 1
    if id(part) not in known:
        known[id(part)] = 1  # for one that refers to itself, which the engine refuses
        ways = 0
        for key in _ALTERNATIVES:
            if isinstance(part.get(key), list):
                ways += sum(_ways(item, root, known) for item in part[key])
        if isinstance(part.get("allOf"), list):
            for item in part["allOf"]:
                ways = max(ways, 1) * _ways(item, root, known)
        if isinstance(part.get("$ref"), str):
            ways += _ways(_resolve(part["$ref"], root), root, known)
        # A number that is large enough, rather than one of a thousand digits.
        known[id(part)] = min(max(ways, 1), _MOST_WAYS + 1)
    return known[id(part)]


def _resolve(reference: str, root: dict[str, Any]) -> Any:
    """What ``#/a/b`` points to; None for anything that the engine will refuse."""
    found: Any = root
    for name in reference.removeprefix("#/").split("/"):
        found = found.get(name) if isinstance(found, dict) else None
    return found
