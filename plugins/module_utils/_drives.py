# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: nas.assistant contributors
"""The disks of a NAS, their health as they tell it themselves, and the filesystems in use."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ansible_collections.nas.assistant.plugins.module_utils._block import disks, stable_name
from ansible_collections.nas.assistant.plugins.module_utils._btrfs import unescaped
from ansible_collections.nas.assistant.plugins.module_utils._commands import answer

LSBLK = ("lsblk", "--json", "--bytes", "--output", "NAME,TYPE,SIZE,ROTA,TRAN,MODEL,RO")
# Made of memory, or of what is on another disk.
_NO_DISKS = ("zram", "ram", "loop", "zd", "nbd", "sr", "fd", "mtdblock")
# Of an eMMC, what the firmware is in, beside the disk itself.
_NO_DISK_PARTS = ("boot0", "boot1", "rpmb")
_WORN = 90  # percent of the writes that an SSD was made for
# Sectors that a disk could not read, of its attributes: those to be tried again, those given up.
_UNREADABLE = (197, 198)
_HOT = 0x02  # of NVMe's warnings, the one that means no damage
_ASLEEP = 3  # what smartctl is told to end with where it would have to wake a disk
_PATIENCE = 30  # seconds; a good disk answers within one
# After an error, newer kernels leave ext4 "rw" and say this beside it.
_READ_ONLY = frozenset({"ro", "emergency_ro"})


@dataclass(frozen=True)
class Drive:
    """A disk.

    :param name: the kernel's, such as ``sda``.
    :param stable: a name below ``/dev/disk/by-id``; empty where it has none.
    :param kind: ``hdd``, ``ssd``, ``nvme``, ``mmc``, ``virtual``, or ``usb`` whatever is behind it.
    :param size: bytes.
    :param health: ``good``, ``hot``, ``worn`` (an SSD near its end), ``unreadable`` (in places),
        ``failing``, ``asleep`` (it turns no more, and was not woken), ``silent`` (it was asked and
        did not answer), or empty where it says nothing or nobody asked.
    :param temperature: degrees Celsius; 0 where unknown.
    """

    name: str
    stable: str
    kind: str
    size: int
    model: str
    read_only: bool
    health: str = ""
    temperature: int = 0


# What a hypervisor says of the disks that it plays, on whatever bus.
PLAYED = re.compile(r"QEMU|VBOX|VMware|Virtual [Dd]isk")


@dataclass(frozen=True)
class Room:
    """A filesystem in use; sizes in bytes, ``free`` of them for everybody. ``paths``: those that
    were asked for and lie in it. ``disks``: the kernel's names of those below it, as far as it
    tells; of a Btrfs with several, those of one device."""

    mount: str
    source: str
    type: str
    size: int
    free: int
    read_only: bool
    paths: tuple[str, ...]
    disks: tuple[str, ...] = ()


def kind(device: Mapping[str, Any]) -> str:
    """Return what a disk is, of what lsblk says of it."""
    name, transport = str(device["name"]), str(device.get("tran") or "")
    if name.startswith("nvme") or transport == "nvme":
        return "nvme"
    if name.startswith("mmcblk"):
        return "mmc"
    if name.startswith(("vd", "xvd")) or transport == "virtio":
        return "virtual"
    if transport == "usb":
        return "usb"
    if PLAYED.match(str(device.get("model") or "")):
        return "virtual"
    return "hdd" if device.get("rota") else "ssd"


def parse_lsblk(text: str) -> list[Drive]:
    """Return the disks of its JSON. One without room is a reader without a card."""
    return [
        Drive(
            name=device["name"],
            stable="",
            kind=kind(device),
            size=int(device["size"]),
            model=" ".join(str(device.get("model") or "").split()),
            read_only=bool(device.get("ro")),
        )
        for device in json.loads(text)["blockdevices"]
        if device["type"] == "disk"
        and int(device["size"] or 0)
        and not device["name"].startswith(_NO_DISKS)
        and not device["name"].endswith(_NO_DISK_PARTS)
    ]


def parse_smart(text: str) -> tuple[str, int]:
    """Return health and temperature of smartctl's JSON."""
    try:
        found = json.loads(text)
    except ValueError:
        return "", 0
    if (found.get("smartctl") or {}).get("exit_status") == _ASLEEP:
        return "asleep", 0
    temperature = int((found.get("temperature") or {}).get("current") or 0)
    log = found.get("nvme_smart_health_information_log") or {}
    passed = (found.get("smart_status") or {}).get("passed")
    warning = log.get("critical_warning") or 0
    if warning & ~_HOT or (passed is False and not warning):
        return "failing", temperature
    if _unreadable(found):
        return "unreadable", temperature
    if warning:
        return "hot", temperature
    used = max(log.get("percentage_used") or 0, _ata_used(found))
    if used >= _WORN:
        return "worn", temperature
    return "good" if passed else "", temperature


def _unreadable(found: Mapping[str, Any]) -> bool:
    """Whether a disk counts sectors that it could not read."""
    rows = (found.get("ata_smart_attributes") or {}).get("table") or []
    counts = [(row.get("raw") or {}).get("value") for row in rows if row.get("id") in _UNREADABLE]
    return any(counts)


def _ata_used(found: Mapping[str, Any]) -> int:
    """Return the percentage of its life that an SSD says it has behind it (device statistics)."""
    pages = (found.get("ata_device_statistics") or {}).get("pages") or []
    for page in pages:
        for row in page.get("table") or []:
            if row.get("name") == "Percentage Used Endurance Indicator":
                return int(row.get("value") or 0)
    return 0


def parse_mounts(text: str) -> dict[str, tuple[str, str, bool]]:
    """Return what is mounted where: source, type and whether it is read-only, of
    ``/proc/self/mounts``. The last one at a place hides those before."""
    found = {}
    for line in text.splitlines():
        source, point, type_, options = line.split()[:4]
        found[unescaped(point)] = (source, type_, not _READ_ONLY.isdisjoint(options.split(",")))
    return found


def read() -> list[Drive]:
    """Look at the disks. What sleeps is not woken to be asked for its health."""
    found = parse_lsblk(answer(LSBLK) or '{"blockdevices": []}')
    return [_asked(each) for each in found]


def _asked(drive: Drive) -> Drive:
    device = f"/dev/{drive.name}"
    health, temperature = "", 0
    if drive.kind not in ("virtual", "mmc"):
        sleeping = f"--nocheck=standby,{_ASLEEP}"
        asked = ["smartctl", "--json", sleeping, "--health", "--attributes"]
        try:
            health, temperature = parse_smart(answer([*asked, "--log=devstat", device], _PATIENCE))
        except subprocess.TimeoutExpired:
            health = "silent"
    name = stable_name(device)
    return dataclasses.replace(drive, stable=name, health=health, temperature=temperature)


def rooms(paths: Sequence[str]) -> list[Room]:
    """Return the filesystems that paths lie in, or will lie in once they are made; each once."""
    with open("/proc/self/mounts", encoding="utf-8", errors="surrogateescape") as stream:
        mounts = parse_mounts(stream.read())
    found: dict[str, list[str]] = {}
    for path in paths:
        there = os.path.realpath(path)
        while not os.path.exists(there):
            there = os.path.dirname(there)
        point = there
        while point not in mounts and point != "/":
            point = os.path.dirname(point)
        found.setdefault(point, []).append(path)
    return [_room(point, mounts[point], each) for point, each in found.items() if point in mounts]


def _room(point: str, mount: tuple[str, str, bool], paths: Sequence[str]) -> Room:
    source, type_, read_only = mount
    status = os.statvfs(point)
    size, free = status.f_blocks * status.f_frsize, status.f_bavail * status.f_frsize
    # What is no text cannot be told.
    shown = point.encode(errors="surrogateescape").decode(errors="replace")
    below = tuple(sorted(_below(point, source)))
    return Room(shown, source, type_, size, free, read_only, tuple(paths), below)


def _below(point: str, source: str) -> frozenset[str]:
    """Return the disks that a filesystem lies on. Its own number is asked first: a source such as
    ``/dev/root`` is no device."""
    number = os.stat(point).st_dev
    node = f"/sys/dev/block/{os.major(number)}:{os.minor(number)}"
    if os.path.exists(node):
        return frozenset(disks(node))
    return frozenset(disks(source)) if source.startswith("/dev/") else frozenset()
