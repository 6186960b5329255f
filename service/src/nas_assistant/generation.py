# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: nas.assistant contributors
"""Reads a request for text: checks what would confuse the engine, and lets through only what is
meant for it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeGuard

from nas_assistant.errors import ApiError, bad_request
from nas_assistant.fields import (
    CHAT,
    COMMON,
    COMPLETION,
    COMPLETION_NEUTRAL,
    EMBEDDING,
    ENGINE_ONLY,
    MOST_TEXTS,
    NO_LIMIT,
    RERANK,
    RERANK_NEUTRAL,
    Field,
)
from nas_assistant.structured import check_choice_among
from nas_assistant.template import TEMPLATE, for_template

_MAX_DEPTH = 32
ROLES = ("system", "developer", "user", "assistant", "tool", "function")


@dataclass(frozen=True)
class Generation:
    """A checked request: ``model`` as named by the client, ``body`` for the engine, which is all
    that is kept of it while it waits.

    ``wants_usage``: the client asked for figures at the end of its stream. The engine is asked for
    them always, for the books. ``longest``: bytes of what must fit into the context together; not
    all of the body where that has many texts, each of which may fill it. ``limit``: what the client
    calls ``max_tokens``. ``schema_in``: the field that has JSON schemas, where it is one alone.
    ``calls``: the tool that an answer must call, empty for any of them.
    """

    model: str | None
    stream: bool
    body: bytes
    wants_usage: bool
    longest: int
    limit: str = "max_tokens"
    schema_in: str | None = None
    calls: str | None = None

    def local_body(self) -> bytes:
        """The body for llama.cpp. It reads over the choice of one tool, so that is all it gets."""
        if not self.calls:
            return self.body
        fields = json.loads(self.body)
        tools = [each for each in fields["tools"] if each["function"]["name"] == self.calls]
        return _encode({**fields, "tools": tools, "tool_choice": "required"})

    def cloud_body(self, model: str) -> bytes:
        """The body for an upstream, which knows the model as ``model``."""
        fields = json.loads(self.body)
        for name in (*ENGINE_ONLY, *TEMPLATE):
            fields.pop(name, None)
        if "max_tokens" in fields:
            # As the client calls it: of OpenAI's models, some refuse the one, others the other.
            fields[self.limit] = fields.pop("max_tokens")
        return _encode({"model": model, **fields})


def parse_chat(raw: bytes) -> Generation:
    """Read the body of a chat request. Raises ApiError (400)."""
    fields = _decode(raw)
    limit = "max_tokens"
    if fields.get("max_completion_tokens") is not None:
        limit = "max_completion_tokens"
        _check(fields, limit, COMMON["max_tokens"])
        fields["max_tokens"] = fields[limit]
    messages = fields.get("messages")
    if not isinstance(messages, list) or not messages:
        raise bad_request("'messages' must be a list with at least one message.", "messages")
    for name in TEMPLATE:
        fields[name] = for_template(fields.get(name))
    told = [_message(item, at) for at, item in enumerate(messages)]
    generation = _generation(fields, {**CHAT, **TEMPLATE}, {"messages": told})
    check_choice_among(fields.get("tools"), fields.get("tool_choice"))
    choice = fields.get("tool_choice")
    calls = choice["function"]["name"] if isinstance(choice, dict) else ""
    free = choice in (None, "auto", "none")
    return replace(generation, limit=limit, calls=None if free else calls)


def parse_completion(raw: bytes) -> Generation:
    """Read the body of a completion request. Raises ApiError (400)."""
    fields = _decode(raw)
    prompt = fields.get("prompt")
    if isinstance(prompt, list) and len(prompt) == 1:
        prompt = prompt[0]
    if not isinstance(prompt, str):
        # Several prompts would take several slots for one grant.
        raise bad_request("'prompt' must be a string, or a list with one string.", "prompt")
    for name, neutral in COMPLETION_NEUTRAL.items():
        if fields.get(name) is not None:
            _check(fields, name, neutral)
    return _generation(fields, COMPLETION, {"prompt": prompt})


def parse_embedding(raw: bytes) -> Generation:
    """Read the body of a request for vectors. Raises ApiError (400)."""
    fields = _decode(raw)
    wanted = fields.get("input")
    texts = [wanted] if isinstance(wanted, str) else wanted
    if isinstance(texts, list) and texts and all(isinstance(text, int | list) for text in texts):
        raise bad_request(
            "'input' must be text: numbers of another model's tokens mean nothing to this one "
            "(LangChain: check_embedding_ctx_length=False).",
            "input",
        )
    if not _are_texts(texts):
        raise bad_request(
            f"'input' must be a text, or a list of 1 to {MOST_TEXTS} texts, none empty.", "input"
        )
    generation = _generation(fields, EMBEDDING, {"input": texts})
    return replace(generation, longest=_longest(texts))


def parse_rerank(raw: bytes) -> Generation:
    """Read the body of a request for a ranking. Raises ApiError (400)."""
    fields = _decode(raw)
    query, documents = fields.get("query"), fields.get("documents")
    if not isinstance(query, str) or not query:
        raise bad_request("'query' must be a text, not an empty one.", "query")
    if isinstance(documents, list):
        # As Cohere's clients may send them.
        documents = [each.get("text") if isinstance(each, dict) else each for each in documents]
    if not _are_texts(documents):
        raise bad_request(
            f"'documents' must be a list of 1 to {MOST_TEXTS} texts, none empty.", "documents"
        )
    for name, neutral in RERANK_NEUTRAL.items():
        if fields.get(name) is not None:
            _check(fields, name, neutral)
    generation = _generation(fields, RERANK, {"query": query, "documents": documents})
    # The engine reads the question with each of them.
    return replace(generation, longest=len(query.encode()) + _longest(documents))


def _longest(texts: list[str]) -> int:
    return max(len(text.encode()) for text in texts)


def _are_texts(value: Any) -> TypeGuard[list[str]]:
    return (
        isinstance(value, list)
        and 1 <= len(value) <= MOST_TEXTS
        and all(isinstance(text, str) and text for text in value)
    )


def _generation(
    fields: dict[str, Any],
    allowed: Mapping[str, Field],
    payload: dict[str, Any],
) -> Generation:
    model = fields.get("model")
    if model is not None and not isinstance(model, str):
        raise bad_request("'model' must be a string.", "model")
    for name, field in allowed.items():
        # OpenAI's clients send null for what is not set.
        if fields.get(name) is not None:
            _check(fields, name, field)
            payload[name] = fields[name]
    if payload.get("max_tokens") == NO_LIMIT:
        del payload["max_tokens"]
    shaped = [name for name in ("response_format", "tools") if name in payload]
    stream = payload.get("stream", False)
    wants_usage = payload.pop("stream_options", {}).get("include_usage", False)
    if stream:
        payload["stream_options"] = {"include_usage": True}
    try:
        body = _encode(payload)
    except UnicodeEncodeError as error:
        raise bad_request(
            "A string in the body holds half of a surrogate pair.", None, "invalid_json"
        ) from error
    schema_in = shaped[0] if len(shaped) == 1 else None
    return Generation(model or None, stream, body, wants_usage, len(body), schema_in=schema_in)


def _encode(fields: Mapping[str, Any]) -> bytes:
    return json.dumps(fields, ensure_ascii=False, separators=(",", ":")).encode()


def _message(message: Any, at: int) -> dict[str, Any]:
    """The message with the fields that the engine knows; raises ApiError (400) for odd ones."""
    where = f"messages[{at}]"
    if not isinstance(message, dict) or message.get("role") not in ROLES:
        raise bad_request(
            f"'{where}' must be an object whose role is one of {', '.join(ROLES)}.", where
        )
    kept = {"role": message["role"], "content": message.get("content")}
    content = kept["content"]
    if isinstance(content, list):
        for part in content:
            if (
                not isinstance(part, dict)
                or part.get("type") != "text"
                or not isinstance(part.get("text"), str)
            ):
                raise bad_request(
                    f"'{where}.content' may hold only text parts: this model reads text.", where
                )
    elif not isinstance(content, str) and not (content is None and message["role"] == "assistant"):
        raise bad_request(f"'{where}.content' must be a string or a list of text parts.", where)
    for name in ("name", "tool_call_id", "reasoning_content"):
        if message.get(name) is not None:
            if not isinstance(message[name], str):
                raise bad_request(f"'{where}.{name}' must be a string.", where)
            kept[name] = message[name]
    if message.get("tool_calls") is not None:
        kept["tool_calls"] = _tool_calls(message["tool_calls"], where)
    # The newer name of the same role, which the templates of open models do not know.
    return {**kept, "role": "system"} if kept["role"] == "developer" else kept


def _tool_calls(calls: Any, where: str) -> list[Any]:
    """What the model called earlier, as the client sends it back."""
    for call in calls if isinstance(calls, list) else [{}]:
        function = call.get("function") if isinstance(call, dict) else None
        if (
            not isinstance(function, dict)
            or not isinstance(function.get("name"), str)
            or not isinstance(function.get("arguments"), str)
            or not isinstance(call.get("id") or "", str)
        ):
            raise bad_request(
                f"'{where}.tool_calls' must be a list of objects, whose function has a name and "
                "arguments, both strings.",
                where,
            )
    return list(calls)


def _check(fields: Mapping[str, Any], name: str, field: Field) -> None:
    complaint = field.check(fields[name])
    if complaint:
        raise bad_request(f"'{name}' {complaint}.", name)


def _decode(raw: bytes) -> dict[str, Any]:
    try:
        value = json.loads(
            raw.decode("utf-8"), parse_constant=_no_constant, parse_float=_finite_number
        )
    except UnicodeDecodeError as error:
        raise _not_json(f"not UTF-8 at byte {error.start}") from error
    except (ValueError, RecursionError) as error:
        raise _not_json(str(error)) from error
    if not isinstance(value, dict):
        raise _not_json("not an object")
    if _deeper_than(value, _MAX_DEPTH):
        raise _not_json(f"nested deeper than {_MAX_DEPTH} levels")
    return value


def _not_json(why: str) -> ApiError:
    return bad_request(
        f"The body is not a JSON object that can be used: {why}.", None, "invalid_json"
    )


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _finite_number(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        # It would go to the engine as a word that is not JSON.
        raise ValueError(f"the number {text[:20]} is too large")
    return value


def _deeper_than(value: Any, limit: int) -> bool:
    """Whether nesting exceeds ``limit``, found without recursion."""
    level = [value]
    for _ in range(limit):
        level = [
            child
            for item in level
            for child in (item.values() if isinstance(item, dict) else item)
            if isinstance(child, dict | list)
        ]
        if not level:
            return False
    return True
