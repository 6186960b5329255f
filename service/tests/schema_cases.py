# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: nas.assistant contributors
"""Schemas that an engine can serve, and those that would stall, fill or end it."""

from __future__ import annotations

import json
from typing import Any

Schema = dict[str, Any]

STRING: Schema = {"type": "string"}


def tree(depth: int) -> Schema:
    """A schema of ``depth`` small parts that can be read in 2 ** depth ways."""
    parts: Schema = {"p0": {"const": "a"}}
    for level in range(1, depth + 1):
        below = {"$ref": f"#/$defs/p{level - 1}"}
        parts[f"p{level}"] = {"anyOf": [below, below]}
    return {"$ref": f"#/$defs/p{depth}", "$defs": parts}


def record(names: int, value: Schema = STRING, required: bool = True) -> Schema:
    properties = {f"property number {number:04}": value for number in range(names)}
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties) if required else [],
    }


def long_texts(names: int) -> Schema:
    return record(names, {"type": "string", "maxLength": 1900})


def values(count: int) -> Schema:
    """Words that differ at their end alone."""
    return {"enum": [f"item number {number:06}" for number in range(count)]}


def nested(depth: int, inner: Schema) -> Schema:
    for _ in range(depth):
        inner = {"type": "object", "properties": {"é" * 90: inner}, "required": ["é" * 90]}
    return inner


def doubled(depth: int) -> Schema:
    """Each part has the one below twice, as allOf writes it out."""
    parts = {"p0": record(1)}
    for level in range(1, depth + 1):
        below = {"allOf": [{"$ref": f"#/$defs/p{level - 1}"}]}
        parts[f"p{level}"] = record(2, below)
    return {"$ref": f"#/$defs/p{depth}", "$defs": parts}


def _sum(*operators: Schema) -> Schema:
    """A term that begins with a term."""
    term = {"$ref": "#/$defs/term"}
    terms = [
        {"type": "object", "properties": {**each, "left": term}, "required": [*each, "left"]}
        for each in operators
    ]
    return {"$ref": "#/$defs/term", "$defs": {"term": {"anyOf": [*terms, {"type": "number"}]}}}


_SELF = {"$ref": "#/$defs/a"}
_OF_TEXTS = {"type": "array", "items": STRING}
_LISTS = [{"type": "array", "items": _SELF, "minItems": fewest} for fewest in (1, 2)]

_FINE: list[Schema] = [
    {},
    STRING,
    {"type": "object", "properties": {"pattern": STRING, "$ref": STRING}, "required": ["pattern"]},
    {"type": "array", "items": {"anyOf": [STRING, {"type": "null"}]}, "maxItems": 5000},
    {"type": "array", "items": record(2), "minItems": 2, "maxItems": 1000},
    values(500),
    {"anyOf": [record(1, {"const": number}) for number in range(100)]},
    {"anyOf": [record(1, {"const": f"{number}"}) for number in range(100)]},
    record(200, required=False),
    record(1000),
    long_texts(10),
    nested(12, record(200, required=False)),
    nested(12, record(1000)),
    {"$ref": "#/$defs/a", "$defs": {"a": {"properties": {"next": {"$ref": "#/$defs/a"}}}}},
    {"$ref": "#/$defs/a", "$defs": {"a": {"anyOf": [STRING, _LISTS[0], {"properties": {}}]}}},
    {
        "$ref": "#/$defs/a",
        "$defs": {"a": {"anyOf": [_LISTS[0], {"type": "array", "items": STRING}]}},
    },
    _sum({"operator": {"const": "+"}}, {"operator": {"const": "-"}}),
    _sum({"plus": STRING}, {"minus": STRING}),
    tree(8),
    doubled(4),
    {"type": ["integer", "null"], "minimum": -(2**53 - 1), "maximum": 2**53 - 1},
    {"type": "integer", "exclusiveMinimum": 0, "maximum": 10**18},
    {"type": "integer", "minimum": -(10**18)},
    {"type": "integer", "minimum": 10**15 - 1},
    {"type": "integer", "minimum": 5, "maximum": 5},
    {"type": "integer", "exclusiveMinimum": 4.5, "exclusiveMaximum": 5.5},
]
# With what is to be said of them.
_HARMFUL: list[tuple[Schema, str]] = [
    # These two take all memory there is: the engine counts max - min without a sign.
    ({"type": "string", "minLength": 5, "maxLength": 2}, "minLength that is more than"),
    ({"type": "array", "items": STRING, "minItems": 5, "maxItems": 2}, "minItems that is more"),
    ({"anyOf": [{"items": {"minItems": 1, "maxItems": 0}}]}, "minItems that is more than"),
    # So do these, whose digits it cannot count.
    ({"type": "integer", "minimum": 5 * 10**15}, "none on the other side"),
    ({"type": "integer", "exclusiveMinimum": 5 * 10**17}, "none on the other side"),
    ({"type": "integer", "maximum": -(2**53 - 1)}, "none on the other side"),
    ({"type": "integer", "minimum": 0, "maximum": 2**64 - 1}, "maximum that is no number"),
    ({"type": "integer", "minimum": -(2**63)}, "minimum that is no number"),
    # No text fits: an error once the answer has begun.
    ({"type": "integer", "minimum": 5, "maximum": 2}, "minimum that is more than its maximum"),
    ({"type": "integer", "exclusiveMinimum": 4, "exclusiveMaximum": 5}, "minimum that is more"),
    ({"type": "integer", "minimum": 4.1, "maximum": 4.9}, "minimum that is more than its"),
    ({"type": "number", "exclusiveMinimum": 4, "maximum": 4}, "minimum that is more than its"),
    # 280 bytes for each repetition, in each slot.
    (long_texts(11), "more than 20000 repetitions"),
    # The engine writes allOf out, and ends where that has no end.
    ({"allOf": [_SELF], "$defs": {"a": _SELF}}, "allOf whose reference comes back"),
    ({"$ref": "#/$defs/a", "$defs": {"a": record(1, {"allOf": [_SELF]})}}, "no allOf that comes"),
    ({"$ref": "#/$defs/a", "$defs": {"a": {"allOf": [{"anyOf": [record(1, {"allOf": [_SELF]})]}]}}},
     "no allOf that comes"),
    (doubled(30), "more than 20000 repetitions"),
    ({"type": ["object", "string"], "allOf": [record(1)]}, "allOf beside a list of types"),
    ({"type": ["string", "string"]}, "list of types"),
    ({"type": [["string"]]}, "list of types"),
    # Its regular expressions take stack for each of these characters.
    (record(0) | {"properties": {"_" * 40_000: STRING}}, "name of more than 200 bytes"),
    ({"$ref": "#/$defs/" + "_" * 300, "$defs": {"_" * 300: STRING}}, "refers to '#/$defs/__"),
    # Each bracket doubles the ways to read what comes after it.
    ({"$ref": "#/$defs/a", "$defs": {"a": {"anyOf": _LISTS}}}, "begin alike and come back"),
    (_sum({}, {}), "begin alike and come back"),
    (_sum({"operator": STRING}, {"operator": {"const": "-"}}), "begin alike and come back"),
    ({"anyOf": [{"anyOf": _LISTS}, _LISTS[0]], "$defs": {"a": {"anyOf": [{"$ref": "#/$defs/b"},
      {"$ref": "#/$defs/b"}]}, "b": {"type": "array", "items": _SELF}}}, "begin alike and come"),
    ({"$ref": "#/$defs/a", "$defs": {"a": {"anyOf": [_LISTS[0], {"type": "array"}]}}}, "begin"),
    ({"$ref": "#/$defs/a", "$defs": {"a": {"anyOf": [_LISTS[0], {"type": "array", "prefixItems":
      [{"$ref": "#/$defs/b"}]}]}, "b": {"items": {"$ref": "#/$defs/b"}}}}, "begin alike and come"),
    # Every way to read a text is followed at each token.
    (values(501), "alternatives"),
    ({"anyOf": [record(1, {"const": number}) for number in range(101)]}, "alternatives"),
    (record(201, required=False), "more than 200 optional properties"),
    ({"type": "string", "pattern": "^(a?){1,900}a{900}$"}, "pattern"),
    ({"properties": {"x": {"items": {"pattern": "a"}}}}, "pattern"),
    ({"$ref": "#/x/a", "x": {"a": {"type": "string", "pattern": "^(a?){1,9}a$"}}}, "pattern"),
    (tree(30), "alternatives"),
    ({"properties": {"x": {"items": {"$ref": "#/$defs/p30"}}}, **tree(30)}, "alternatives"),
    ({"anyOf": [STRING] * 501}, "alternatives"),
    ({"allOf": [{"anyOf": [STRING] * 30}, {"oneOf": [STRING] * 30}]}, "alternatives"),
    (tree(600), "too deeply"),
    (record(2000), "more than 2000 schemas"),
    ({"$ref": "#"}, "refers to '#'"),
    ({"$ref": "#/$defs/none"}, "not in its schema"),
    # Of which the engine would take the first.
    ({"$ref": "#/a/", "a": {"": STRING, "type": "string", "pattern": "a"}}, "not in its schema"),
    ({"$ref": "a", "a": STRING}, "not in its schema"),
    ({"$ref": "https://example.com/schema"}, "not in its schema"),
    ({"type": "object", "properties": {}, "required": ["a"], "additionalProperties": False},
     "requires 'a', which its properties lack"),
]  # fmt: skip


def _as_sent(schema: Schema) -> Schema:
    """Without parts that are one object at several places."""
    found: Schema = json.loads(json.dumps(schema))
    return found


FINE = [_as_sent(schema) for schema in _FINE]
HARMFUL = [(_as_sent(schema), said) for schema, said in _HARMFUL]
