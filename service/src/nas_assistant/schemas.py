# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: nas.assistant contributors
"""JSON schemas that the engine's grammar would not survive, told before it sees them.

llama.cpp turns a schema into a grammar, and at every token follows all ways in which the text so
far can be read. It trusts the schema: a few hundred bytes take all memory, end the process, or keep
it from answering anybody. What it does was measured, and read in its common/json-schema.cpp,
common/json-schema-to-grammar.cpp and src/llama-grammar.cpp.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from nas_assistant.errors import ApiError, bad_request

Schema = dict[str, Any]

_MOST_PARTS = 2000  # schemas within one request
# At one place. With 500, one who asks meanwhile waits for a second (135M parameters, one core).
_MOST_WAYS = 500
# White space, which may come after a bracket, takes so many more.
_WAYS_OF_SPACE = 4
# Each makes a rule, and the rules that follow each other are made anew for each of them: 200 take
# 0.1 s, 1600 take 39 s.
_MOST_OPTIONAL = 200
# Rules, of which each repetition is one: 280 bytes in the engine for each slot.
_MOST_RULES = 20_000
# From here on the engine takes a maximum for none.
NO_MAXIMUM = 2000
_HIGHEST = (1 << 31) - 1  # it counts in 32 bits
# Bytes. The engine's regular expressions take a piece of stack for each byte: 40 000 end it where a
# thread has 8 MiB, and musl gives 128 KiB.
_LONGEST_NAME = 200
# Whole numbers beyond it have more digits than the engine counts.
_LARGEST = 10**18
# And where there is no bound on the other side, it makes a repetition of fewer than no digits.
_LARGEST_ALONE = 10**15

_CHILD = ("additionalProperties", "contains", "if", "then", "else", "items", "not")
_CHILDREN = ("allOf", "anyOf", "items", "oneOf", "prefixItems")
_NAMED = ("$defs", "definitions", "patternProperties", "properties")
# What a text begins with: a bracket; neither, so that nothing can be in it; or one of several.
_BRACKETS, _PLAIN, _UNKNOWN = "{[", "=", "?"
_ALTERNATIVES = ("anyOf", "oneOf")
_COUNTS = (("minLength", "maxLength"), ("minItems", "maxItems"), ("minProperties", "maxProperties"))


class SchemaError(Exception):
    """What is wrong with a schema; the text goes on after the name of its field."""


def check_schemas(schemas: list[Schema], where: str) -> None:
    """Raise ApiError (400) for schemas that would harm the engine.

    :param where: the field of the request that they are in.
    """
    parts, rules = 0, 0
    try:
        for root in schemas:
            found = list(parts_of(root, _MOST_PARTS - parts))
            parts += len(found)
            for part in found:
                _check_part(part, root)
            reader = _Reader(root)
            rules += sum(reader.rules(part) for part in (root, *reader.targets(found)))
            if rules > _MOST_RULES:
                raise SchemaError(
                    f"has more than {_MOST_RULES} repetitions: use smaller lengths and numbers of "
                    "items, or none, and no allOf that comes back to itself"
                )
            for part in found:
                if reader.ways(part) > _MOST_WAYS:
                    raise SchemaError(
                        f"has more than {_MOST_WAYS} alternatives at one place (values, optional "
                        "properties, and objects by five); use fewer"
                    )
                reader.check_growth(part)
    except SchemaError as error:
        raise _refusal(where, str(error)) from error
    except RecursionError as error:
        raise _refusal(where, "has schemas that refer to each other too deeply") from error


def _refusal(where: str, why: str) -> ApiError:
    return bad_request(f"'{where}' {why}.", where, "invalid_json_schema")


def parts_of(root: Schema, most: int = _MOST_PARTS) -> Iterator[Schema]:
    """The schema and every schema in it, also those that are only referred to. Raises
    SchemaError beyond ``most``, and for a reference that leads nowhere.
    """
    found, seen = [root], {id(root)}
    for at, part in enumerate(found):
        if at >= most:
            raise SchemaError(f"has more than {_MOST_PARTS} schemas")
        yield part
        inner = [part.get(key) for key in _CHILD]
        for key in _CHILDREN:
            inner += part[key] if isinstance(part.get(key), list) else []
        for key in _NAMED:
            inner += part[key].values() if isinstance(part.get(key), dict) else []
        if isinstance(part.get("$ref"), str):
            # It may be where no schema is otherwise.
            inner.append(resolve(part["$ref"], root))
        for item in inner:
            if isinstance(item, dict) and id(item) not in seen:
                seen.add(id(item))
                found.append(item)


def resolve(reference: str, root: Schema) -> Schema:
    """What ``#/a/b`` points to. Raises SchemaError."""
    found: Any = root
    start, *names = reference.split("/")
    # The engine leaves out an empty name at the end, and would find another part than we do.
    if start == "#" and names and all(names) and len(reference.encode()) <= _LONGEST_NAME:
        for name in names:
            found = found.get(name) if isinstance(found, dict) else None
        if isinstance(found, dict):
            return found
    raise SchemaError(f"refers to {reference[:100]!r}, which is not in its schema")


def _check_part(part: Schema, root: Schema) -> None:
    """Raise SchemaError for what is wrong with one part by itself."""
    if isinstance(part.get("pattern"), str):
        raise SchemaError("has a pattern, which is not supported: use enum, format or maxLength")
    required, properties = part.get("required", []), part.get("properties", {})
    if not isinstance(required, list) or not all(isinstance(name, str) for name in required):
        raise SchemaError("has a 'required' that is no list of names")
    names = [name for key in _NAMED if isinstance(part.get(key), dict) for name in part[key]]
    for name in names:
        if len(name.encode(errors="replace")) > _LONGEST_NAME:
            raise SchemaError(f"has a name of more than {_LONGEST_NAME} bytes")
    if isinstance(properties, dict):
        if part.get("additionalProperties") is False:
            for name in required:
                if name not in properties and not _composed(part):
                    raise SchemaError(f"requires {name[:100]!r}, which its properties lack")
        if len(properties.keys() - set(required)) > _MOST_OPTIONAL:
            raise SchemaError(
                f"has more than {_MOST_OPTIONAL} optional properties in one object; use fewer"
            )
    kinds = part.get("type", "object")
    if isinstance(kinds, list):
        if not all(isinstance(kind, str) for kind in kinds) or len(set(kinds)) < len(kinds):
            raise SchemaError("has a list of types that are not words, or one of them twice")
        if "allOf" in part:
            # Both would be written out for each of the types, and so would each that is in them.
            raise SchemaError("has allOf beside a list of types")
    elif not isinstance(kinds, str):
        raise SchemaError("has a type that is no word")
    _check_bounds(part)


def _composed(part: Schema) -> bool:
    return any(key in part for key in ("$ref", "allOf", *_ALTERNATIVES))


def _check_bounds(part: Schema) -> None:
    for fewest, largest in _COUNTS:
        for key in (fewest, largest):
            if key in part and not (_is_whole(part[key]) and 0 <= part[key] <= _HIGHEST):
                raise SchemaError(f"has a {key} that is no whole number from 0 to {_HIGHEST}")
        if part.get(fewest, 0) > part.get(largest, math.inf):
            raise SchemaError(f"has a {fewest} that is more than its {largest}")
    keys = ("minimum", "exclusiveMinimum", "maximum", "exclusiveMaximum")
    for key in keys:
        if key in part and not (_is_number(part[key]) and abs(part[key]) <= _LARGEST):
            raise SchemaError(f"has a {key} that is no number from {-_LARGEST} to {_LARGEST}")
    low, low_out, high, high_out = (part.get(key) for key in keys)
    if _holds_none(part.get("type") == "integer", low, low_out, high, high_out):
        raise SchemaError("has a minimum that is more than its maximum")
    # Of two bounds on one side the engine takes the first.
    least, most = (low if low is not None else low_out), (high if high is not None else high_out)
    far = (most is None and least is not None and least >= _LARGEST_ALONE) or (
        least is None and most is not None and most <= -_LARGEST_ALONE
    )
    if far:
        raise SchemaError(f"has a bound beyond {_LARGEST_ALONE} and none on the other side")


def _holds_none(
    whole: bool,
    low: float | None,
    low_out: float | None,
    high: float | None,
    high_out: float | None,
) -> bool:
    """Whether no number is within these bounds, the second of each side being outside of it."""
    if whole:
        low = None if low is None else math.ceil(low)
        low_out = None if low_out is None else math.floor(low_out) + 1
        high = None if high is None else math.floor(high)
        high_out = None if high_out is None else math.ceil(high_out) - 1
    pairs = ((low, high, False), (low, high_out, True), (low_out, high, True))
    return any(
        least is not None
        and most is not None
        and (least > most or (out and not whole and least == most))
        for least, most, out in (*pairs, (low_out, high_out, True))
    )


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


class _Reader:
    """Follows one schema as the engine does. Its parts were checked by themselves."""

    def __init__(self, root: Schema) -> None:
        self._root = root
        self._rules: dict[int, int] = {}
        self._ways: dict[int, int] = {}
        self._reached: dict[int, dict[int, Schema]] = {}

    def targets(self, parts: list[Schema]) -> list[Schema]:
        """What is referred to, of which the engine makes rules once."""
        found = [self._target(part) for part in parts if isinstance(part.get("$ref"), str)]
        return list({id(each): each for each in found}.values())

    def _target(self, part: Schema) -> Schema:
        return resolve(part["$ref"], self._root)

    def rules(self, part: Any) -> int:
        """How many the engine makes of a part."""
        if not isinstance(part, dict):
            return 0
        if id(part) not in self._rules:
            # One that comes back to itself on this way has no end.
            self._rules[id(part)] = _MOST_RULES + 1
            count = 1 + _repetitions(part)
            if not isinstance(part.get("$ref"), str):
                count += sum(self.rules(child) for child in _written_out(part))
                # Elsewhere a reference is a rule's name; here what it leads to is written out.
                for item in _dicts(part.get("allOf")):
                    count += sum(self.rules(each) for each in self._components(item))
            self._rules[id(part)] = min(count, _MOST_RULES + 1)
        return self._rules[id(part)]

    def _components(self, item: Schema) -> list[Schema]:
        """The parts that allOf writes out of one of its own."""
        found: list[Schema] = []
        for each in [item, *_dicts(item.get("anyOf"))]:
            seen: set[int] = set()
            while isinstance(each.get("$ref"), str):
                if id(each) in seen:
                    raise SchemaError("has an allOf whose reference comes back to itself")
                seen.add(id(each))
                each = self._target(each)
            found.append(each)
        return found

    def ways(self, part: Any) -> int:
        """In how many ways a text that fits can be read at one time, at most."""
        if not isinstance(part, dict):
            return 1
        if id(part) not in self._ways:
            self._ways[id(part)] = 1  # for one that refers to itself, see check_growth
            # A number that is large enough, rather than one of a thousand digits.
            self._ways[id(part)] = min(max(self._count(part), 1), _MOST_WAYS + 1)
        return self._ways[id(part)]

    def _count(self, part: Schema) -> int:
        if isinstance(part.get("$ref"), str):
            return self.ways(self._target(part))
        for key in _ALTERNATIVES:
            if key in part:
                return self._count_any(_dicts(part[key]))
        ways = len(part["enum"]) if isinstance(part.get("enum"), list) else 1
        inner = 1
        for item in _dicts(part.get("allOf")):
            inner *= self.ways(item)
        inner = max(inner, max((self.ways(child) for child in _written_out(part)), default=1))
        optional = 0
        if isinstance(part.get("properties"), dict):
            optional = len(part["properties"].keys() - set(part.get("required", [])))
        if _is_open(part):
            ways += _WAYS_OF_SPACE + optional
        return max(ways, inner)

    def _count_any(self, items: list[Schema]) -> int:
        """Of alternatives: all of them at their beginning, and after it those that begin alike."""
        beginnings: dict[Any, int] = {}
        first, unknown = 0, 0
        for item in items:
            begins = self._begins(item)
            ways = self.ways(item)
            first += 1 + _WAYS_OF_SPACE if begins[0] in _BRACKETS else ways
            if begins[0] == _UNKNOWN:
                unknown += ways
            else:
                beginnings[begins] = beginnings.get(begins, 0) + ways
        return max(first, unknown + max(beginnings.values(), default=0))

    def _begins(self, part: Schema) -> tuple[str, str, str]:
        """What tells a text that fits this part from others early: its bracket and, of an object,
        the first property and that one's only value. Parts that may begin alike have the same.
        """
        for _ in range(_MOST_PARTS):
            if not isinstance(part.get("$ref"), str):
                break
            part = self._target(part)
        if any(key in part for key in _ALTERNATIVES) or "allOf" in part:
            return _UNKNOWN, "", ""
        if "const" in part or "enum" in part:
            return _PLAIN, "", ""
        properties, required = part.get("properties"), part.get("required", [])
        if isinstance(properties, dict) and part.get("type", "object") == "object":
            for name, child in properties.items():
                if name in required:
                    value = child.get("const") if isinstance(child, dict) else None
                    if isinstance(child, dict) and isinstance(child.get("enum"), list):
                        value = child["enum"][0] if len(child["enum"]) == 1 else None
                    return "{", name, repr(value) if isinstance(value, str) else ""
        if _is_open(part):
            array = part.get("type") == "array" or (
                "type" not in part and "properties" not in part and "items" in part
            )
            return ("[" if array else "{"), "", ""
        return _PLAIN, "", ""

    def check_growth(self, part: Schema) -> None:
        """Raise SchemaError where of two alternatives that begin alike one comes back to here, and
        the other may be as deep: the ways to read a text would grow with each bracket in it, and
        double where both come back.
        """
        for key in _ALTERNATIVES:
            seen: list[tuple[tuple[str, str, str], Schema]] = []
            for item in _dicts(part.get(key)):
                begins = self._begins(item)
                for other, before in seen if begins[0] != _PLAIN else ():
                    if _alike(begins, other) and self._grow(part, item, before):
                        raise SchemaError(
                            "has alternatives that begin alike and come back to themselves: give "
                            "each a first required property with a name or a const of its own"
                        )
                seen.append((begins, item))

    def _grow(self, part: Schema, *items: Schema) -> bool:
        back = [id(part) in self._reach(item) for item in items]
        return any(back) and all(
            comes or self._deep(item) for comes, item in zip(back, items, strict=True)
        )

    def _deep(self, part: Schema) -> bool:
        """Whether there is no end to what can be within a part."""
        return any(
            id(each) in self._reach(each) if isinstance(each.get("$ref"), str) else _is_any(each)
            for each in self._reach(part).values()
        )

    def _reach(self, part: Schema) -> dict[int, Schema]:
        """What can be within a part, itself too; of a reference, what it leads to."""
        if isinstance(part.get("$ref"), str):
            part = self._target(part)
        known = self._reached.get(id(part))
        if known is None:
            found, known = [part], {id(part): part}
            for each in found:
                inner = list(_inside(each))
                if isinstance(each.get("$ref"), str):
                    inner.append(self._target(each))
                for item in inner:
                    if id(item) not in known:
                        known[id(item)] = item
                        found.append(item)
            self._reached[id(part)] = known
        return known


def _alike(one: tuple[str, str, str], other: tuple[str, str, str]) -> bool:
    """Whether texts of two parts may have the same beginning, of more than a bracket."""
    if _PLAIN in (one[0], other[0]):
        return False
    if one[0] != other[0] or not one[1] or not other[1]:
        return one[0] == other[0] or _UNKNOWN in (one[0], other[0])
    return one[1] == other[1] and (one[2] == other[2] or not one[2] or not other[2])


def _is_open(part: Schema) -> bool:
    """Whether it may be an object or a list."""
    kinds = part.get("type", ["object"])
    kinds = kinds if isinstance(kinds, list) else [kinds]
    return "enum" not in part and "const" not in part and bool({"object", "array"} & set(kinds))


def _is_any(part: Schema) -> bool:
    """Whether it may be an object or a list of which nothing is said."""
    if not _is_open(part) or _composed(part):
        return False
    if "properties" in part or part.get("additionalProperties", True) is not True:
        return part.get("additionalProperties") is True
    return "items" not in part and "prefixItems" not in part


def _repetitions(part: Schema) -> int:
    """Rules that the engine makes of lengths and numbers of items."""
    count = 0
    for bounds in _COUNTS[:2]:
        given = [part[key] for key in bounds if key in part and part[key] <= NO_MAXIMUM + 1]
        count += max(given, default=0)
    return count


def _written_out(part: Schema) -> Iterator[Any]:
    """The parts of which the engine makes rules in this one's place, but those of allOf."""
    for key in ("anyOf", "oneOf", "prefixItems", "items"):
        yield from _dicts(part.get(key))
    yield from (part[key] for key in ("items", "additionalProperties") if key in part)
    if isinstance(part.get("properties"), dict):
        yield from part["properties"].values()


def _inside(part: Schema) -> Iterator[Schema]:
    yield from (child for child in _written_out(part) if isinstance(child, dict))
    yield from _dicts(part.get("allOf"))


def _dicts(value: Any) -> list[Schema]:
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []
