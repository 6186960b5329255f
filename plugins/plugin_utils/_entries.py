# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: nas.assistant contributors
"""Reads the entries of a role's declarative variable."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from ansible.errors import AnsibleFilterError


def entries(variable: str, given: Any) -> list[Any]:
    """Return the entries of a variable.

    :raises AnsibleFilterError: it is no list.
    """
    if isinstance(given, str | Mapping) or not isinstance(given, Iterable):
        raise AnsibleFilterError(f"{variable}={given!r}: give a list of entries")
    return list(given)


def named(variable: str, entry: Any) -> str:
    """Return how a message names an entry: its variable, and what was given."""
    return f"{variable}: {dict(entry) if isinstance(entry, Mapping) else entry!r}"


def has_keys(what: str, given: Any, keys: Iterable[str], where: str) -> None:
    """Refuse what is no dictionary of these keys.

    :param what: what the dictionary is, as a sentence begins: ``an entry``, ``ipv4``.
    :raises AnsibleFilterError: names the entry, and the keys.
    """
    if not isinstance(given, Mapping) or set(given) - set(keys):
        raise AnsibleFilterError(
            f"{where}: {what} is a dictionary with some of {', '.join(sorted(keys))}"
        )


def listed(value: Any) -> list[Any]:
    """Return a list of what may be given as one or many."""
    if value is None:
        return []
    return list(value) if isinstance(value, list | tuple) else [value]
