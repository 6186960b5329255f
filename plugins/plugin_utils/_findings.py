# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: nas.assistant contributors
"""What reports are made of: what was looked at, what is said of it, and what to do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ansible.errors import AnsibleFilterError

#: ``check``, ``verdict``, ``value`` that was found, ``limit``, ``reason`` why it matters, and
#: ``remedy``; the last two are empty where nothing is to be done.
Finding = dict[str, str]

#: What is said of a disk that is not well, by its health: reason and remedy.
ILL = {
    "failing": (
        "it says itself that it is about to fail",
        "make a copy of what is on it now, and replace it",
    ),
    "silent": (
        "it did not say how it is within 30 s",
        "see what the kernel says of it (journalctl -k), and have a copy of what is on it",
    ),
    "unreadable": (
        "it has places that it cannot read any more",
        "have a copy of what is on it, and replace it",
    ),
    "hot": ("it says that it is too hot", "give it air: heat makes it slow, and shortens its life"),
    "worn": (
        "it has nearly as many writes behind it as it was made for",
        "have a new one ready",
    ),
}


def finding(
    check: str, verdict: str, value: str, limit: str = "", reason: str = "", remedy: str = ""
) -> Finding:
    """Return a finding."""
    return {
        "check": check,
        "verdict": verdict,
        "value": value,
        "limit": limit,
        "reason": reason,
        "remedy": remedy,
    }


def table(findings: Sequence[Finding]) -> list[str]:
    """Return findings as lines for the console; below each why it matters and what to do, where
    there is something."""
    widths = [max(len(each[key]) for each in findings) for key in ("verdict", "check")]
    lines = []
    for each in findings:
        verdict, check = each["verdict"].ljust(widths[0]), each["check"].ljust(widths[1])
        because = _because(each)
        limit = f", wanted {each['limit']}" if because and each["limit"] else ""
        lines.append(f"  {verdict}  {check}  {each['value']}{limit}".rstrip())
        if because:
            lines.append(f"  {' ' * widths[0]}  {' ' * widths[1]}  {because}")
    return lines


def sentence(found: Finding) -> str:
    """Return a finding as a sentence with value, limit, reason and remedy."""
    limit = f", wanted {found['limit']}" if found["limit"] else ""
    return f"{found['check']}: {found['value']}{limit}; {_because(found)}."


def gib(size: int) -> str:
    """Return a size in bytes as it is read."""
    return f"{size / (1 << 30):.1f} GiB"


def limits(
    variable: str, given: Mapping[str, Any], defaults: Mapping[str, float]
) -> dict[str, float]:
    """Return limits with those that are given in their place.

    :raises AnsibleFilterError: one is unknown, or is no number from 0 on.
    """
    for name, value in given.items():
        if name not in defaults:
            raise AnsibleFilterError(
                f"{variable}: {name} is unknown; there are {', '.join(defaults)}"
            )
        if isinstance(value, bool) or not isinstance(value, (int, float)) or value < 0:
            raise AnsibleFilterError(f"{variable}: {name}={value!r} is no number from 0 on")
    return {**defaults, **given}


def _because(found: Finding) -> str:
    return ": ".join(each for each in (found["reason"], found["remedy"]) if each)
