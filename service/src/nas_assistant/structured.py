# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: nas.assistant contributors
"""Tools and JSON schemas in a request: what the engine cannot do, or would not survive, is
refused.
"""

from __future__ import annotations

from typing import Any

from nas_assistant.errors import bad_request
from nas_assistant.schemas import Schema, check_schemas, parts_of
from nas_assistant.strictness import not_kept

# OpenAI's, too.
MOST_TOOLS = 128
LONGEST_TOOL_NAME = 64


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
        ignored = next(filter(None, map(not_kept, parts_of(schema))), "") if strict else ""
        if ignored:
            raise bad_request(
                f"'response_format' is strict and has {ignored}, which the engine does not keep to "
                "here. Leave it out, or strict.",
                "response_format",
                "invalid_json_schema",
            )


def check_tools(value: Any) -> None:
    """Raise ApiError (400) unless these are tools that the engine can offer to the model."""
    if not isinstance(value, list):
        raise bad_request("'tools' must be a list.", "tools")
    if len(value) > MOST_TOOLS:
        raise bad_request(f"'tools' has more than {MOST_TOOLS} tools.", "tools")
    schemas: list[Schema] = []
    for at, tool in enumerate(value):
        function = tool.get("function") if isinstance(tool, dict) else None
        if (
            not isinstance(function, dict)
            or tool.get("type") != "function"
            or not isinstance(function.get("name"), str)
            or not 1 <= len(function["name"]) <= LONGEST_TOOL_NAME
            or not isinstance(function.get("description") or "", str)
        ):
            raise bad_request(
                f"'tools[{at}]' must be an object of the type function, whose function has a name "
                f"of 1 to {LONGEST_TOOL_NAME} characters.",
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
