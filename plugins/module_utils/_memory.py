# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: nas.assistant contributors
"""How much memory there is, and whether a container can be held to its share."""

from __future__ import annotations

import os
from dataclasses import dataclass

from ansible_collections.nas.assistant.plugins.module_utils._btrfs import unescaped


@dataclass(frozen=True)
class Swap:
    """A place for what memory has no room for; sizes in bytes. ``kind``: ``partition``, ``file`` or
    ``zram``."""

    path: str
    kind: str
    size: int
    used: int
    priority: int


@dataclass(frozen=True)
class Memory:
    """Memory in bytes. ``available`` is what programs can still have without swapping."""

    total: int
    available: int
    swap: tuple[Swap, ...]


@dataclass(frozen=True)
class Cgroup:
    """How the kernel holds containers to their limits.

    :param version: 1 or 2; 0 where there are none.
    :param controllers: those that are on. Without ``memory``, a limit is taken and ignored, as on
        Raspberry Pi OS.
    """

    version: int
    controllers: tuple[str, ...]


def parse_meminfo(text: str) -> tuple[int, int]:
    """Return bytes in all, and those that are available.

    :raises ValueError: it says neither.
    """
    found = {}
    for line in text.splitlines():
        name, _, value = line.partition(":")
        words = value.split()
        if words:
            found[name] = int(words[0]) * 1024
    try:
        return found["MemTotal"], found["MemAvailable"]
    except KeyError as error:
        raise ValueError(f"/proc/meminfo says no {error}") from None


def parse_swaps(text: str) -> tuple[Swap, ...]:
    """Return the places of ``/proc/swaps``. A blank in a path is written as an octal number."""
    found = []
    for line in text.splitlines()[1:]:
        path, kind, size, used, priority = line.rsplit(maxsplit=4)
        path = unescaped(path.rstrip())
        if os.path.basename(path).startswith("zram"):
            kind = "zram"
        found.append(Swap(path, kind, int(size) * 1024, int(used) * 1024, int(priority)))
    return tuple(found)


def parse_cgroups(text: str) -> tuple[str, ...]:
    """Return the controllers of version 1 that are on."""
    rows = [line.split() for line in text.splitlines() if not line.startswith("#")]
    return tuple(sorted(row[0] for row in rows if len(row) == 4 and row[3] == "1"))


def read(root: str = "/") -> Memory:
    """Look at memory and swap."""
    with open(os.path.join(root, "proc/meminfo"), encoding="ascii") as stream:
        total, available = parse_meminfo(stream.read())
    swaps = os.path.join(root, "proc/swaps")
    with open(swaps, encoding="utf-8", errors="surrogateescape") as stream:
        return Memory(total, available, parse_swaps(stream.read()))


def cgroup(root: str = "/") -> Cgroup:
    """Look at the control groups."""
    place = os.path.join(root, "sys/fs/cgroup")
    try:
        with open(os.path.join(place, "cgroup.controllers"), encoding="ascii") as stream:
            return Cgroup(2, tuple(sorted(stream.read().split())))
    except FileNotFoundError:
        pass
    try:
        with open(os.path.join(root, "proc/cgroups"), encoding="ascii") as stream:
            controllers = parse_cgroups(stream.read())
    except FileNotFoundError:
        return Cgroup(0, ())
    # One that the kernel has is of use only where it is mounted.
    return Cgroup(1, tuple(each for each in controllers if os.path.isdir(f"{place}/{each}")))
