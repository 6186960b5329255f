# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: nas.assistant contributors
"""Whether a systemd unit runs with its files as they are now, and what it takes to get there."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from datetime import UTC, datetime

from ansible_collections.nas.assistant.plugins.module_utils._commands import run

PROPERTIES = ("LoadState", "ActiveState", "UnitFileState", "InactiveExitTimestamp")
TIME = "%a %Y-%m-%d %H:%M:%S.%f UTC"
# systemd forgets when a service was reloaded at its own next daemon-reload, so a stamp keeps it. In
# /run, since no reload outlives a boot.
STAMPS = "/run/nas-assistant/loaded"


class SystemdError(Exception):
    """systemctl failed; what it said, and the end of the unit's journal."""


def timestamp(text: str) -> float:
    """Return seconds since the epoch of a time as systemctl prints it (us+utc), 0 without one."""
    try:
        return datetime.strptime(text, TIME).replace(tzinfo=UTC).timestamp()
    except ValueError:
        return 0.0


def loaded_at(properties: dict[str, str], stamp: str) -> float:
    """Return when the service last began to read its files: its start, or a reload of ours.

    :param stamp: file whose modification time is that of the reload; it may be missing.
    """
    started = timestamp(properties.get("InactiveExitTimestamp", ""))
    return max(started, os.stat(stamp).st_mtime) if os.path.exists(stamp) else started


def newer_than(files: list[str], moment: float) -> list[str]:
    """Return the files that were changed after ``moment`` (seconds since the epoch)."""
    return [path for path in files if os.path.exists(path) and os.stat(path).st_ctime > moment]


def plan(
    properties: dict[str, str], newer: list[str], action: str, reload_first: bool = False
) -> list[str]:
    """Return the systemctl verbs that are needed, in order."""
    # "static", "generated" and the like need no enabling and take none.
    verbs = ["enable"] if properties.get("UnitFileState") in ("disabled", "") else []
    if properties.get("ActiveState") not in ("active", "reloading", "activating"):
        return [*verbs, "start"]
    if not newer:
        return verbs
    return [*verbs, "reload", action] if reload_first and action == "restart" else [*verbs, action]


def plan_off(properties: dict[str, str]) -> list[str]:
    """Return the systemctl verbs that stop and disable a unit; none where there is no such unit."""
    if properties.get("LoadState") != "loaded":
        return []
    verbs = ["disable"] if properties.get("UnitFileState", "").startswith("enabled") else []
    active = properties.get("ActiveState") not in ("inactive", "failed")
    return [*verbs, "stop"] if active else verbs


def show(units: Sequence[str]) -> dict[str, dict[str, str]]:
    """Return the properties of each unit; one that does not exist has ``LoadState=not-found``."""
    if not units:
        return {}
    out = systemctl("show", *units, f"--property={','.join(PROPERTIES)}", "--timestamp=us+utc")
    # A blank line stands between two units; they come in the order that was asked.
    blocks = [
        dict(line.partition("=")[::2] for line in block.splitlines())
        for block in out.strip("\n").split("\n\n")
    ]
    return dict(zip(units, blocks, strict=True))


def stamp_of(unit: str, action: str) -> str:
    """Return the file whose time is that of the last reload.

    What only a restart makes the service read, no reload has made it read: then there is none.
    """
    return os.path.join(STAMPS, unit) if action == "reload" else ""


def carry_out(unit: str, verbs: Sequence[str], stamp: str) -> None:
    """Run systemctl with each verb, and remember when a reload began.

    :raises SystemdError: one of them failed.
    """
    for verb in verbs:
        began = time.time()
        systemctl(verb, unit)
        if verb == "reload" and stamp:
            os.makedirs(STAMPS, mode=0o755, exist_ok=True)
            with open(stamp, "w", encoding="ascii"):
                os.utime(stamp, (began, began))


def systemctl(*arguments: str) -> str:
    """Run systemctl and return what it prints.

    :raises SystemdError: with what systemctl and the unit's journal say.
    """
    done = run(["systemctl", *arguments])
    if done.returncode != 0:
        journal = run(["journalctl", "--unit", arguments[-1], "--lines=10", "-o", "cat"])
        raise SystemdError(
            f"systemctl {' '.join(arguments)}: {done.stderr.strip()}\n{journal.stdout.strip()}"
        )
    return str(done.stdout)
