# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: nas.assistant contributors
"""The description of the API (OpenAPI 3.1), made of the fields that requests are checked by."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nas_assistant import __version__
from nas_assistant.engine import Kind
from nas_assistant.fields import (
    CHAT,
    COMMON,
    COMPLETION,
    COMPLETION_NEUTRAL,
    EMBEDDING,
    MOST_TEXTS,
    RERANK,
    RERANK_NEUTRAL,
    Field,
)
from nas_assistant.generation import ROLES
from nas_assistant.template import TEMPLATE

Json = dict[str, Any]
_TEXT: Json = {"type": "string"}
_SOME_TEXT: Json = {"type": "string", "minLength": 1}
_WHOLE: Json = {"type": "integer", "minimum": 0}
_EVENTS = "Server-sent events: pieces of the answer as JSON in data, at the end [DONE]"
# Of each error, when it comes.
_ERRORS = {
    "400": "Something is wrong with the request; `code` and `param` say what",
    "401": "No key, a wrong one, or one that is over",
    "403": "The key is not for this",
    "404": "There is no such model",
    "408": "The body did not arrive in time",
    "413": "The body is too large",
    "429": "The queue is full, or a limit of the key is reached; Retry-After says when it is not",
    "500": "The engine or the service failed",
    "503": "Not ready; the message says why",
}
_OF_ANY_KEY = ("401",)
_OF_GENERATION = tuple(_ERRORS)


def describe() -> Json:
    """The whole description."""
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "nas.assistant",
            "version": __version__,
            "summary": "A private assistant with OpenAI's API",
            "license": {"name": "GPL-3.0-or-later", "identifier": "GPL-3.0-or-later"},
        },
        "paths": {
            "/healthz": _get("Whether the gateway runs", _object(status=_TEXT), key=False),
            "/readyz": _get(
                "Whether it can be asked",
                {
                    **_object(status={"type": "string", "enum": ["ready", "degraded"]},
                              models=_list(_TEXT), reason=_TEXT, loading={"type": "boolean"}),
                    # Outside of home nothing else is told.
                    "required": ["status"],
                },
                errors=("503",),
                key=False,
            ),
            "/openapi.json": _get("This description", {"type": "object"}, key=False),
            "/metrics": _get("Figures for Prometheus, for admins", _TEXT, media="text/plain",
                             errors=("401", "403", "503")),
            "/admin/status": _get("The state of the service, for admins", {"type": "object"},
                                  errors=("401", "403", "503")),
            "/v1/models": _get(
                "The models that this key may ask",
                _object(object={"const": "list"}, data=_list(_ref("Model"))),
                errors=_OF_ANY_KEY,
            ),
            "/v1/models/{id}": {
                "parameters": [{"name": "id", "in": "path", "required": True, "schema": _TEXT}],
                **_get("One model", _ref("Model"), errors=("401", "403", "404", "503")),
            },
            "/v1/chat/completions": _post(
                "The next message of a conversation, whole or as a stream", _chat(), "ChatAnswer"
            ),
            "/v1/completions": _post(
                "How a text goes on, whole or as a stream", _completion(), "TextAnswer"
            ),
            "/v1/embeddings": _post("Texts as vectors", _embedding(), "Vectors", stream=False),
            "/v1/rerank": _post(
                "Texts by what they say to a question, the best first", _rerank(), "Ranking",
                stream=False,
            ),
        },
        "components": {
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
            "schemas": _schemas(),
        },
    }  # fmt: skip


def _schemas() -> Json:
    usage = _object(prompt_tokens=_WHOLE, total_tokens=_WHOLE)
    answer: Json = {"id": _TEXT, "created": _WHOLE, "model": _TEXT, "usage": usage}
    message = _object(role={"const": "assistant"})
    message["properties"] |= {"content": _or_null(_TEXT), "tool_calls": _list({"type": "object"})}
    ended: Json = {"index": _WHOLE, "finish_reason": _or_null(_TEXT)}
    vector = {"anyOf": [_list({"type": "number"}), _TEXT]}
    return {
        "Error": _object(
            error=_object(message=_TEXT, type=_TEXT, param=_or_null(_TEXT), code=_TEXT)
        ),
        "Model": _object(
            id=_TEXT,
            object={"const": "model"},
            created=_WHOLE,
            owned_by=_TEXT,
            kind={"enum": list(Kind)},
            served_by=_TEXT,
        ),
        "ChatAnswer": _object(choices=_list(_object(message=message, **ended)), **answer),
        "TextAnswer": _object(choices=_list(_object(text=_TEXT, **ended)), **answer),
        "Vectors": _object(
            data=_list(_object(embedding=vector, index=_WHOLE)), model=_TEXT, usage=usage
        ),
        "Ranking": _object(
            results=_list(_object(index=_WHOLE, relevance_score={"type": "number"})),
            model=_TEXT,
            usage=usage,
        ),
    }


def _chat() -> Json:
    part = _object(type={"const": "text"}, text=_TEXT)
    content = {"anyOf": [{"type": ["string", "null"]}, _list(part)]}
    message = {"type": "object", "required": ["role"],
               "properties": {"role": {"enum": list(ROLES)}, "content": content}}  # fmt: skip
    own = {"messages": {"type": "array", "items": message, "minItems": 1}}
    return _request(own, {**CHAT, **TEMPLATE, "max_completion_tokens": COMMON["max_tokens"]})


def _completion() -> Json:
    prompt = {"anyOf": [_TEXT, {"type": "array", "items": _TEXT, "minItems": 1, "maxItems": 1}]}
    return _request({"prompt": prompt}, {**COMPLETION, **COMPLETION_NEUTRAL})


def _embedding() -> Json:
    return _request({"input": {"anyOf": [_SOME_TEXT, _texts(_SOME_TEXT)]}}, EMBEDDING)


def _rerank() -> Json:
    document = {"anyOf": [_SOME_TEXT, _object(text=_SOME_TEXT)]}
    return _request(
        {"query": _SOME_TEXT, "documents": _texts(document)}, {**RERANK, **RERANK_NEUTRAL}
    )


def _texts(items: Json) -> Json:
    return {"type": "array", "items": items, "minItems": 1, "maxItems": MOST_TEXTS}


def _request(required: Json, fields: Mapping[str, Field]) -> Json:
    optional = {name: _or_null(dict(field.schema)) for name, field in fields.items()}
    return {
        "type": "object",
        "required": list(required),
        "properties": {"model": _or_null(_TEXT), **required, **optional},
    }


def _get(
    summary: str,
    schema: Json,
    *,
    media: str = "application/json",
    errors: tuple[str, ...] = (),
    key: bool = True,
) -> Json:
    answer = {"description": "The answer", "content": {media: {"schema": schema}}}
    operation: Json = {"summary": summary, "responses": {"200": answer, **_errors(errors)}}
    operation["security"] = [{"key": []}] if key else []
    return {"get": operation}


def _post(summary: str, request: Json, answer: str, *, stream: bool = True) -> Json:
    content: Json = {"application/json": {"schema": _ref(answer)}}
    if stream:
        content["text/event-stream"] = {"schema": {"description": _EVENTS}}
    return {
        "post": {
            "summary": summary,
            "security": [{"key": []}],
            "requestBody": {
                "required": True,
                "content": {"application/json": {"schema": request}},
            },
            "responses": {
                "200": {"description": "The answer", "content": content},
                **_errors(_OF_GENERATION),
            },
        }
    }


def _errors(statuses: tuple[str, ...]) -> Json:
    content = {"application/json": {"schema": _ref("Error")}}
    return {each: {"description": _ERRORS[each], "content": content} for each in statuses}


def _object(**properties: Json) -> Json:
    return {"type": "object", "required": list(properties), "properties": properties}


def _list(items: Json) -> Json:
    return {"type": "array", "items": items}


def _or_null(schema: Json) -> Json:
    return {"anyOf": [schema, {"type": "null"}]}


def _ref(name: str) -> Json:
    return {"$ref": f"#/components/schemas/{name}"}
