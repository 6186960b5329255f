# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: nas.assistant contributors
"""What the assistant's container may have of a machine, and the keys of its clients."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from ansible.errors import AnsibleFilterError
from ansible_collections.nas.assistant.plugins.module_utils._cpu import (
    LIST,
    for_the_assistant,
    parse_list,
    spoken,
)
from ansible_collections.nas.assistant.plugins.module_utils._weights import cpu_weights, io_weight

VARIABLE = "assistant_resources"
AUTO = "auto"
MIB = 1 << 20
# Of the memory, the rest is the NAS's.
SHARE = 0.6
# In steps, since the memory that a kernel shows differs a little from one to the next, and other
# limits make another container.
STEP = 64 * MIB
PAGE = 4096
_SIZE = re.compile(r"([1-9]\d*)([mMgG])")
RESTART = ("no", "always", "on-failure", "unless-stopped")


_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
_SECRET = re.compile(r"[!-~]{32,}")
_DAY = re.compile(r"\d{4}-\d{2}-\d{2}")
_LIMITS = ("requests_per_minute", "tokens_per_day", "parallel")
_ROLES = ("user", "admin")


def assistant_key_faults(keys: Any) -> list[str]:
    """Return a sentence for each thing that is wrong with ``assistant_keys``; secrets are not in
    them.
    """
    if not isinstance(keys, Mapping) or not keys:
        return ["give at least one, as NAME: {role: admin}"]
    faults = []
    for name, key in keys.items():
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            faults.append(f"{name}: a name has letters, digits, - and _")
        elif not isinstance(key, Mapping):
            faults.append(f"{name} is no mapping: write {name}: {{}}")
        else:
            faults += [f"{name}.{fault}" for fault in _key_faults(key)]
    return faults


def _key_faults(key: Mapping[str, Any]) -> Iterator[str]:
    allowed = ("key", "role", *_LIMITS, "models", "expires", "local_only")
    for field in key:
        if field not in allowed:
            yield f"{field} means nothing here; there are {', '.join(allowed)}"
    secret = key.get("key", "x" * 32)
    if not isinstance(secret, str) or not _SECRET.fullmatch(secret):
        yield "key is one word of at least 32 characters"
    if key.get("role", "user") not in _ROLES:
        yield f"role={key['role']}: it is {' or '.join(_ROLES)}"
    for field in _LIMITS:
        value = key.get(field, 0)
        if isinstance(value, bool) or not isinstance(value, int) or value < 0:
            yield f"{field}={value}: it is a whole number, 0 for no limit"
    models = key.get("models", [])
    if not isinstance(models, list) or not all(isinstance(model, str) for model in models):
        yield f"models={models}: it is a list of names"
    if not isinstance(key.get("local_only", False), bool):
        yield f"local_only={key['local_only']}: it is true or false"
    if not _DAY.fullmatch(str(key.get("expires", "2030-12-31"))):
        yield f"expires={key['expires']}: it is a day such as 2030-12-31"


def assistant_key(key: Mapping[str, Any], name: str, secret: str) -> dict[str, Any]:
    """Return a key as the service reads it, with the digest of its secret and not the secret."""
    kept = {field: value for field, value in key.items() if field != "key"}
    if "expires" in kept:
        # YAML makes a date of it.
        kept["expires"] = str(kept["expires"])
    return {**kept, "name": name, "sha256": hashlib.sha256(secret.encode()).hexdigest()}


def assistant_limits(wish: Mapping[str, Any], machine: Mapping[str, Any]) -> dict[str, Any]:
    """Return the limits with all that is left to the machine worked out.

    In bytes ``memory``, ``memory_reservation`` (0 for none) and ``memory_swap`` (memory and swap
    together); ``cpuset_cpus`` a list such as ``1-3``; ``ulimits`` as Docker takes them; the others
    as they were given.

    :param wish: ``assistant_resources`` with all of its keys.
    :param machine: ``cpu`` and ``memory`` of ``nas.assistant.nas_info``.
    :raises AnsibleFilterError: a value is none; names it, and what is allowed.
    """
    cpu = machine["cpu"]
    memory = _memory(wish, int(machine["memory"]["total"]))
    reserved = _or_none(wish, "memory_reservation")
    if reserved > memory:
        raise _odd("memory_reservation", wish["memory_reservation"], "it is above memory")
    swap = _or_none(wish, "swap")
    return {
        **wish,
        "memory": memory,
        "memory_reservation": reserved,
        # One page of swap: none at all would become any amount at systemd's next reload, since runc
        # does not tell systemd of a zero (https://github.com/opencontainers/cgroups/issues/74).
        "memory_swap": memory + (swap or PAGE),
        "cpus": _number(wish, "cpus", 0, cpu["count"], float),
        "cpuset_cpus": _cpuset(wish["cpuset_cpus"], cpu),
        "cpu_shares": _number_or_0(wish, "cpu_shares", 2, 262144),
        "pids": _number(wish, "pids", 32, 4194304),
        "oom_score_adj": _number(wish, "oom_score_adj", 0, 1000),
        "io_priority": _number(wish, "io_priority", 0, 7),
        "blkio_weight": _number_or_0(wish, "blkio_weight", 10, 1000),
        "ulimits": [f"{name}:{value}:{value}" for name, value in sorted(_ulimits(wish).items())],
        "restart_policy": _choice(wish, "restart_policy", RESTART),
    }


def _memory(wish: Mapping[str, Any], total: int) -> int:
    if wish["memory"] == AUTO:
        return int(total * SHARE) // STEP * STEP
    return _size("memory", wish["memory"], AUTO)


def _or_none(wish: Mapping[str, Any], key: str) -> int:
    return 0 if wish[key] in ("none", 0, "0") else _size(key, wish[key], "none")


def _size(key: str, value: Any, otherwise: str) -> int:
    """Return the bytes of a size; ``otherwise`` is the word that may stand in its place."""
    matched = _SIZE.fullmatch(str(value))
    if not matched:
        raise _odd(key, value, f"it is a whole number with m or g such as 2g, or {otherwise}")
    return int(matched[1]) * (MIB if matched[2] in "mM" else MIB << 10)


def _cpuset(value: Any, cpu: Mapping[str, Any]) -> str:
    """Return the list of CPUs; by itself the fast ones, without a core where there are enough."""
    there = sorted(each for core in cpu["siblings"] for each in core)
    if value == AUTO:
        cores = for_the_assistant(cpu["siblings"], cpu["efficient"])
        return str(spoken(each for core in cores for each in core))
    text = str(value)
    # Looked at before it is written out, since a range may be as long as somebody types.
    ends = [part.partition("-") for part in text.split(",")] if LIST.fullmatch(text) else []
    known = ends and all(int(first) <= int(last or first) <= there[-1] for first, _, last in ends)
    if not known or not set(parse_list(text)) <= set(there):
        raise _odd("cpuset_cpus", value, f"it is {AUTO}, or some of {spoken(there)}")
    return str(spoken(parse_list(text)))


def _number(
    wish: Mapping[str, Any], key: str, least: int, most: int, kind: type[int | float] = int
) -> int | float:
    try:
        number = kind(wish[key])
    except (TypeError, ValueError):
        number = least - 1
    if not least <= number <= most:
        what = "a number" if kind is float else "a whole number"
        raise _odd(key, wish[key], f"it is {what} from {least} to {most}")
    return number


def _number_or_0(wish: Mapping[str, Any], key: str, least: int, most: int) -> int | float:
    return 0 if str(wish[key]) == "0" else _number(wish, key, least, most)


def _ulimits(wish: Mapping[str, Any]) -> dict[str, int]:
    given = wish["ulimits"]
    numbers = isinstance(given, Mapping) and all(
        re.fullmatch("[a-z]+", str(name)) and re.fullmatch(r"\d+|-1", str(value))
        for name, value in given.items()
    )
    if not numbers:
        raise _odd("ulimits", given, "it is a dictionary such as {nofile: 4096}")
    return {str(name): int(value) for name, value in given.items()}


def _choice(wish: Mapping[str, Any], key: str, allowed: Iterable[str]) -> str:
    if wish[key] not in allowed:
        raise _odd(key, wish[key], f"it is one of {', '.join(allowed)}")
    return str(wish[key])


def _odd(key: str, value: Any, remedy: str) -> AnsibleFilterError:
    return AnsibleFilterError(
        f"{VARIABLE}.{key}={value}: {remedy}. Nothing of the assistant was changed."
    )


class FilterModule:
    """What Ansible looks for."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Return the filters by name."""
        return {
            "assistant_cpu_weight": lambda shares: cpu_weights(shares)[1],
            "assistant_io_weight": io_weight,
            "assistant_key": assistant_key,
            "assistant_key_faults": assistant_key_faults,
            "assistant_limits": assistant_limits,
        }
