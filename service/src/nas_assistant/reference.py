# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: nas.assistant contributors
"""The description of the API as a page: plain HTML, made once, which needs no script."""

from __future__ import annotations

from collections.abc import Iterator
from html import escape
from typing import Any

from nas_assistant.openapi import Json

_HEAD = """<!doctype html>
<html lang="en">
<head>
  <meta charset="utf-8">
  <meta name="viewport" content="width=device-width, initial-scale=1, viewport-fit=cover">
  <title>{title}</title>
  <link rel="icon" href="/assets/icon.svg" type="image/svg+xml">
  <link rel="stylesheet" href="/assets/base.css">
  <link rel="stylesheet" href="/assets/reference.css">
</head>
<body>
<header>
  <h1>{title}</h1>
  <a href="/">To the chat</a>
</header>
<main>
<p>{summary}. Its clients take this NAS's address with <code>/v1</code> as the base URL. Each
request has the header <code>Authorization: Bearer KEY</code>; bodies are JSON. The same as data:
<a href="/openapi.json">OpenAPI {openapi}</a>.</p>
"""


def reference(description: Json) -> str:
    """The page about an OpenAPI description."""
    return "\n".join(_page(description))


def _page(description: Json) -> Iterator[str]:
    info = description["info"]
    operations = [
        (path, method, methods[method])
        for path, methods in description["paths"].items()
        for method in ("get", "post")
        if method in methods
    ]
    yield _HEAD.format(
        title=escape(f"API of {info['title']} {info['version']}"),
        summary=escape(info["summary"]),
        openapi=description["openapi"],
    )
    yield "<ul>"
    for path, _, operation in operations:
        link = f'<a href="#{_anchor(path)}">{_code(path)}</a>'
        yield f"<li>{link} {escape(operation['summary'])}</li>"
    yield "</ul>"
    for path, method, operation in operations:
        yield from _operation(path, method, operation)
    yield "<h2>What answers hold</h2>"
    for name, schema in description["components"]["schemas"].items():
        yield from _schema(name, schema)
    yield "</main>\n</body>\n</html>\n"


def _operation(path: str, method: str, operation: Json) -> Iterator[str]:
    yield f'<section id="{_anchor(path)}">'
    yield f"<h2>{_code(f'{method.upper()} {path}')}</h2>"
    key = "" if operation["security"] else " Needs no key."
    yield f"<p>{escape(operation['summary'])}.{key}</p>"
    if "requestBody" in operation:
        content = operation["requestBody"]["content"]
        yield from _fields(content["application/json"]["schema"])
    rows = [
        (status, escape(response["description"]) + _shapes(response["content"]))
        for status, response in operation["responses"].items()
    ]
    yield from _table(("Status", "Answer"), rows)
    yield "</section>"


def _shapes(content: Json) -> str:
    """What an answer is, of each media type; JSON goes without saying."""
    shapes = []
    for media, each in content.items():
        named = "" if media == "application/json" else f"{_code(media)}: "
        shapes.append(named + _said(each["schema"]))
    return ": " + "; or ".join(shapes)


def _schema(name: str, schema: Json) -> Iterator[str]:
    yield f'<section id="{escape(name)}">'
    yield f"<h3>{escape(name)}</h3>"
    yield from _fields(schema)
    yield "</section>"


def _fields(schema: Json) -> Iterator[str]:
    required = schema.get("required", [])
    rows = [
        (_code(name) + (" (required)" if name in required else ""), _said(each))
        for name, each in schema["properties"].items()
    ]
    yield from _table(("Field", "Holds"), rows)


def _table(heads: tuple[str, str], rows: list[tuple[str, str]]) -> Iterator[str]:
    yield "<table>"
    yield f"<thead><tr>{''.join(f'<th scope=col>{head}</th>' for head in heads)}</tr></thead>"
    yield "<tbody>"
    for name, text in rows:
        yield f"<tr><th scope=row>{name}</th><td>{text}</td></tr>"
    yield "</tbody></table>"


def _said(schema: Json) -> str:
    """A schema in words, as HTML."""
    if "$ref" in schema:
        name = escape(schema["$ref"].rsplit("/", 1)[1])
        return f'<a href="#{name}">{name}</a>'
    if "anyOf" in schema:
        return " or ".join(_said(each) for each in schema["anyOf"])
    if "const" in schema:
        return _value(schema["const"])
    if "enum" in schema:
        return " or ".join(_value(each) for each in schema["enum"])
    if "type" not in schema:
        return escape(schema["description"])
    kinds = schema["type"] if isinstance(schema["type"], list) else [schema["type"]]
    return " or ".join(_of_kind(kind, schema) for kind in kinds)


def _of_kind(kind: str, schema: Json) -> str:
    if kind == "array":
        most = f" (at most {schema['maxItems']})" if "maxItems" in schema else ""
        return f"list of {_said(schema['items'])}{most}"
    if kind == "object" and "properties" in schema:
        inner = "; ".join(
            f"{_code(name)}: {_said(each)}" for name, each in schema["properties"].items()
        )
        return f"{{ {inner} }}"
    if kind == "string" and schema.get("minLength"):
        return "text, not empty"
    return _KINDS[kind] + _range(schema)


_KINDS = {
    "boolean": "true or false",
    "integer": "whole number",
    "null": "null",
    "number": "number",
    "object": "object",
    "string": "text",
}


def _range(schema: Json) -> str:
    low, high = schema.get("minimum"), schema.get("maximum")
    if low is None:
        return ""
    return f", at least {low}" if high is None else f" from {low} to {high}"


def _value(value: Any) -> str:
    return _code(str(value).lower() if isinstance(value, bool) else str(value) or '""')


def _code(text: str) -> str:
    return f"<code>{escape(text)}</code>"


def _anchor(path: str) -> str:
    return escape(path.strip("/").replace("/", "-").translate({ord(each): None for each in "{}"}))
