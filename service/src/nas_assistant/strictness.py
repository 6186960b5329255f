# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: nas.assistant contributors
"""What of a JSON schema the engine keeps to, for those who want all of it or nothing.

llama.cpp reads one thing of a schema and goes by that: beside anyOf, for example, it sees no
properties. See parse_schema in its common/json-schema.cpp.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from nas_assistant.schemas import NO_MAXIMUM, Schema

_OF_ANY = (
    *("$dynamicRef", "$ref", "allOf", "anyOf", "const", "else", "enum", "if", "not", "oneOf"),
    *("then", "type"),
)
# Keywords that narrow what a value may be, by the type of value that they are about.
_ABOUT: Mapping[str, tuple[str, ...]] = {
    "array": (
        *("additionalItems", "contains", "items", "maxContains", "maxItems", "minContains"),
        *("minItems", "prefixItems", "unevaluatedItems", "uniqueItems"),
    ),
    "number": ("exclusiveMaximum", "exclusiveMinimum", "maximum", "minimum", "multipleOf"),
    "object": (
        *("additionalProperties", "dependencies", "dependentRequired", "dependentSchemas"),
        *("maxProperties", "minProperties", "patternProperties", "properties", "propertyNames"),
        *("required", "unevaluatedProperties"),
    ),
    "string": ("format", "maxLength", "minLength", "pattern"),
}
_TYPES = ("array", "boolean", "integer", "null", "number", "object", "string")
# The formats that it knows; of others it writes any text.
_FORMATS = ("date", "date-time", "time", "uuid", *(f"uuid{version}" for version in range(1, 6)))


def not_kept(part: Schema) -> str:
    """The first keyword of a part of a schema that the engine reads over; empty where there is
    none. The part is one that it takes.
    """
    return next(_not_kept(part), "")


def _not_kept(part: Schema) -> Iterator[str]:
    alone = next((key for key in ("$ref", "oneOf", "anyOf") if key in part), "")
    if alone:
        yield from _other_than((alone,), part, _TYPES)
        return
    kinds = part.get("type")
    if isinstance(kinds, list):
        for kind in kinds:
            yield from _not_kept({**part, "type": kind})
        return
    values = [part["const"]] if "const" in part else part.get("enum")
    if isinstance(values, list):
        key = "const" if "const" in part else "enum"
        fits = kinds is None or all(_is_of(value, kinds) for value in values)
        yield from _other_than((key, *(("type",) if fits else ())), part, _TYPES)
        return
    yield from _of_type(part, kinds)


def _of_type(part: Schema, kind: Any) -> Iterator[str]:
    """Of a part that says by its type, or by its keywords, what value is meant."""
    if kind is None and any(key in part for key in ("properties", "additionalProperties")):
        kind = "object"
    elif kind is None and ("items" in part or "prefixItems" in part):
        kind = "array"
    elif kind is None and "format" in part:
        kind = "string"
    if kind == "object":
        yield from _of_object(part)
    elif kind == "array":
        tuple_of = "prefixItems" if "items" not in part else "items"
        counts = () if isinstance(part.get(tuple_of), list) else ("minItems", "maxItems")
        yield from _other_than((tuple_of, *counts), part, ("array",))
        yield from (key for key in counts if part.get(key, 0) >= NO_MAXIMUM)
    elif kind == "string":
        known = part.get("format") in _FORMATS
        read = ("format",) if known else ("minLength", "maxLength")
        yield from _other_than(read, part, ("string",))
        yield from (key for key in read if key != "format" and part.get(key, 0) >= NO_MAXIMUM)
    elif kind == "integer":
        pairs = (("minimum", "exclusiveMinimum"), ("maximum", "exclusiveMaximum"))
        yield from _other_than(
            tuple(one if one in part else other for one, other in pairs), part, ("integer",)
        )
    elif kind is None or kind in _TYPES:  # the engine says what is wrong with another one
        yield from _other_than((), part, (kind,) if kind else _TYPES)


def _of_object(part: Schema) -> Iterator[str]:
    yield from _other_than(("additionalProperties", "properties", "required"), part, ("object",))
    missing = set(part.get("required", ())) - set(part.get("properties", ()))
    if missing:
        yield "required"


def _other_than(read: tuple[str, ...], part: Schema, kinds: tuple[str, ...]) -> Iterator[str]:
    """What narrows a value of these types, and is not among what is read."""
    about = [key for kind in kinds for key in _ABOUT.get(_family(kind), ())]
    typed = () if kinds == _TYPES else ("type",)
    for key in (*_OF_ANY, *about):
        if key in part and key not in read and key not in typed:
            yield key


def _family(kind: str) -> str:
    return "number" if kind == "integer" else kind


def _is_of(value: Any, kind: Any) -> bool:
    """Whether a value is of a type of JSON schema."""
    if isinstance(value, bool) or value is None:
        return bool(kind == ("null" if value is None else "boolean"))
    if isinstance(value, int | float):
        return kind == "number" or (kind == "integer" and value == int(value))
    name = "string" if isinstance(value, str) else "array" if isinstance(value, list) else "object"
    return bool(name == kind)
