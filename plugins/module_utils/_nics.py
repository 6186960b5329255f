# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: nas.assistant contributors
"""The network interfaces that are made of metal, and how fast their links are."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass

from ansible_collections.nas.assistant.plugins.module_utils import _sysfs as sysfs
from ansible_collections.nas.assistant.plugins.module_utils._commands import answer

_MODE = re.compile(r"\b(\d+)base")
_ROUTE_UP = 0x1


@dataclass(frozen=True)
class Nic:
    """An interface.

    :param speed: Mbit/s of its link; 0 where it has none, or does not say.
    :param most: Mbit/s that it can have; 0 where it does not say.
    :param duplex: ``full``, ``half``, or empty.
    :param up: whether there is a cable with somebody at its other end.
    :param way_out: whether a default route leads through it, or through what it is a part of.
    :param wireless: whether it is Wi-Fi.
    """

    name: str
    driver: str
    speed: int
    most: int
    duplex: str
    up: bool
    way_out: bool
    wireless: bool = False


def parse_ethtool(text: str) -> int:
    """Return the Mbit/s of the fastest mode that an interface supports; 0 where it says none."""
    most, inside = 0, False
    for line in text.splitlines():
        key, colon, value = line.partition(":")
        if colon:
            inside = key.strip() == "Supported link modes"
        if inside:
            modes = _MODE.findall(value if colon else line)
            most = max([most, *(int(mode) for mode in modes)])
    return most


def parse_routes(text: str) -> frozenset[str]:
    """Return the interfaces of IPv4's default routes, of ``/proc/net/route``."""
    rows = [line.split() for line in text.splitlines()[1:]]
    return frozenset(
        row[0]
        for row in rows
        if row[1] == "00000000" and row[7] == "00000000" and int(row[3], 16) & _ROUTE_UP
    )


def parse_routes6(text: str) -> frozenset[str]:
    """Return the interfaces of IPv6's default routes, of ``/proc/net/ipv6_route``."""
    rows = [line.split() for line in text.splitlines()]
    return frozenset(row[9] for row in rows if row[0] == "0" * 32 and row[1] == "00") - {"lo"}


def read(root: str = "/") -> list[Nic]:
    """Look at the interfaces."""
    folder = os.path.join(root, "sys/class/net")
    ways = parse_routes(sysfs.text(root, "proc/net/route"))
    ways |= parse_routes6(sysfs.text(root, "proc/net/ipv6_route"))
    names = sorted(os.listdir(folder)) if os.path.isdir(folder) else []
    return [_nic(folder, name, ways) for name in names if _is_real(folder, name)]


def _is_real(folder: str, name: str) -> bool:
    # Bridges, bonds, VLANs and tunnels have no device behind them. Nor has a container's end of a
    # pair, which is all that a container has: it leads to another namespace, and so do the ends
    # that Docker has here, by other names.
    place = os.path.join(folder, name)
    if not os.path.isdir(place):  # bonding_masters
        return False
    if os.path.exists(os.path.join(place, "device")):
        return True
    elsewhere = sysfs.text(place, "iflink") != sysfs.text(place, "ifindex")
    lower = any(entry.startswith("lower_") for entry in os.listdir(place))
    return name.startswith("eth") and elsewhere and not lower


def _nic(folder: str, name: str, ways: frozenset[str]) -> Nic:
    place = os.path.join(folder, name)
    up = sysfs.text(place, "carrier") == "1"
    speed = sysfs.text(place, "speed")
    return Nic(
        name=name,
        driver=sysfs.target(place, "device/driver"),
        # -1 without a link, and where a driver does not know.
        speed=max(0, int(speed)) if up and speed.lstrip("-").isdigit() else 0,
        most=parse_ethtool(answer(["ethtool", name])),
        duplex=sysfs.text(place, "duplex").replace("unknown", "") if up else "",
        up=up,
        way_out=bool({name, *_above(folder, name)} & ways),
        # The second one of drivers that are older than the kernel's common part.
        wireless=any(
            os.path.exists(os.path.join(place, each)) for each in ("phy80211", "wireless")
        ),
    )


def _above(folder: str, name: str) -> set[str]:
    """Return what an interface is a part of, and what that is a part of: bonds, bridges, VLANs."""
    found: set[str] = set()
    left = [name]
    while left:
        place = os.path.join(folder, left.pop())
        if not os.path.isdir(place):
            continue
        entries = [each for each in os.listdir(place) if each.startswith("upper_")]
        above = {sysfs.target(place, "master"), *(each.removeprefix("upper_") for each in entries)}
        left += above - found - {""}
        found |= above - {""}
    return found
