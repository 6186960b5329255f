# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: nas.assistant contributors
"""What the entries of storage_pools mean, and the units of systemd that mount them."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterable, Mapping
from typing import Any

from ansible.errors import AnsibleFilterError
from ansible_collections.nas.assistant.plugins.module_utils._sizes import bytes_of
from ansible_collections.nas.assistant.plugins.module_utils._snapshot_plan import duration
from ansible_collections.nas.assistant.plugins.module_utils._zfs_plan import FEWEST
from ansible_collections.nas.assistant.plugins.plugin_utils._entries import (
    entries,
    has_keys,
    listed,
    named,
)

Pool = dict[str, Any]
Volume = dict[str, Any]
VARIABLE = "storage_pools"
PROVIDERS = ("btrfs", "zfs")
KEYS = {
    *("name", "provider", "devices", "uuid", "format", "remove", "profile", "mount", "options"),
    *("compression", "scrub", "volumes"),
}
VOLUME_KEYS = {
    *("name", "path", "owner", "group", "mode", "compression", "copy_on_write", "quota"),
    *("snapshots", "migrate", "needed_by"),
}
SNAPSHOT_KEYS = {"every", "keep"}
KEEP_COUNTS = {"last", "hourly", "daily", "weekly", "monthly", "yearly", "minimum"}
DURATION = re.compile(r"0|[0-9]{1,9}[smhdw]")
# Seconds; of the timer that makes snapshots, nas-snapshots.timer.
ROUND = 15 * 60
QUOTA = re.compile(r"none|[1-9]\d*[KMGT]?(iB)?")
MODE = re.compile(r"0?[0-7]{3,4}")
# What both providers and a shell can stand.
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,62}")
VOLUME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}(/[A-Za-z0-9][A-Za-z0-9._-]{0,62})*")
PATH = re.compile(r"(/[A-Za-z0-9._@:+-]+)+")
OPTION = re.compile(r"[A-Za-z0-9_]+(=[A-Za-z0-9_.:/-]+)?")
# Of a pool, and of a volume: Btrfs takes a level as a mount option only.
COMPRESSION = {
    "btrfs": (
        re.compile(r"none|lzo|zstd(:([1-9]|1[0-5]))?|zlib(:[1-9])?"),
        re.compile(r"none|lzo|zstd|zlib"),
    ),
    "zfs": (re.compile(r"none|lz4|zstd(-([1-9]|1[0-9]))?|gzip(-[1-9])?"),) * 2,
}
# An event of systemd's timers, or how often in a word.
CALENDAR = re.compile(
    r"(minute|hour|dai|week|month|quarter|semiannual|year|annual)ly"
    r"|(?=.*[0-9*])[A-Za-z0-9 *:,./~-]+"
)
GUID = re.compile(r"[0-9]{1,20}")
# Of a pool or a volume, what ZFS has no like of.
NOT_ZFS = {
    "options": "compression and the like are properties of its datasets",
    "remove": "it gives up no device by itself",
    "copy_on_write": "all of it is copied on write",
    "migrate": "move what the path holds there yourself, and then run again",
}
UNIT = re.compile(r"[A-Za-z0-9:_.@\\-]+[.](service|socket|target|mount)")
# What runs on these must not begin before they are mounted: it would write beneath them.
OF_DOCKER = ("/var/lib/docker", "/var/lib/containerd", "/var/lib/nas-assistant")
OF_CONTAINERD = ("/var/lib/containerd",)
# Never mounted over: the system would be hidden, or lost sight of.
SYSTEM = {"/", "/home", "/root", "/tmp", "/var", "/var/lib", "/var/log", "/var/tmp"}  # noqa: S108
SYSTEM_FOLDERS = (
    *("/bin", "/boot", "/dev", "/etc", "/lib", "/lib64", "/proc", "/run", "/sbin", "/sys"),
    *("/usr", "/var/run"),
)


def storage_pools(given: Iterable[Mapping[str, Any]], data_root: str = "") -> list[Pool]:
    """Return the pools with all that they leave out.

    :param data_root: where Docker keeps its data, if not in its usual place.

    Each has ``name``, ``provider``, ``devices``, ``uuid``, ``format``, ``remove``, ``profile``
    (``data``, ``metadata``), ``mount``, ``options``, ``compression`` (an empty text: as it is),
    ``scrub`` (an empty text: never) and ``volumes``; each of these ``name``, ``path``, ``owner``,
    ``group``, ``mode``, ``compression``, ``copy_on_write``, ``quota`` (``None``: as it is),
    ``snapshots`` (empty: none), ``migrate``, ``needed_by``.

    :raises AnsibleFilterError: an entry cannot be understood, or cannot work; names it and why.
    """
    of_docker = (*OF_DOCKER, data_root) if data_root else OF_DOCKER
    found = [_pool(entry, of_docker) for entry in entries(VARIABLE, given)]
    names = [pool["name"] for pool in found]
    _once("pool", names)
    points = [pool["mount"] for pool in found]
    points += [volume["path"] for pool in found for volume in pool["volumes"] if volume["path"]]
    _once("mount point", points)
    _once("device", [device for pool in found for device in pool["devices"]])
    for pool in found:
        for volume in pool["volumes"]:
            _check_place(volume, pool["name"], [other["mount"] for other in found])
    return found


def _check_place(volume: Volume, pool: str, mounts: list[str]) -> None:
    """Refuse to mount a volume where it would hide a pool, or in one, where it is anyway."""
    path = volume["path"]
    for mount in mounts:
        if path and (_within(mount, (path,)) or _within(path, (mount,))):
            raise AnsibleFilterError(
                f"{VARIABLE}: {pool}: volume {volume['name']}: path={path}: the pool mounted at "
                f"{mount} would be hidden, or lies around it. Leave path out, or take another place"
            )


def storage_unit(path: str, suffix: str = "mount") -> str:
    """Return the name that systemd wants of a path's unit, as systemd-escape(1) makes it."""
    parts = [part for part in path.split("/") if part]
    escaped = []
    for number, part in enumerate(parts):
        for place, letter in enumerate(part):
            plain = letter.isascii() and (letter.isalnum() or letter in ":_.")
            if plain and not (letter == "." and number == 0 and place == 0):
                escaped.append(letter)
            else:
                escaped.extend(f"\\x{byte:02x}" for byte in letter.encode())
        escaped.append("-")
    return f"{''.join(escaped[:-1]) or '-'}.{suffix}"


def storage_mounts(pools: Iterable[Pool]) -> list[dict[str, Any]]:
    """Return what is mounted of pools of Btrfs, those first that others lie in.

    Each has ``pool`` (its name), ``volume`` (its name, an empty text for the top level), ``path``,
    ``options`` (a list) and ``needed_by``.
    """
    found = []
    for pool in pools:
        common = list(pool["options"])
        if pool["compression"] not in ("", "none"):
            common.append(f"compress={pool['compression']}")
        places = [{"name": "", "path": pool["mount"], "needed_by": []}, *pool["volumes"]]
        found += [
            {
                "pool": pool["name"],
                "volume": place["name"],
                "path": place["path"],
                "options": [f"subvol=/{place['name']}", *common],
                "needed_by": place["needed_by"],
            }
            for place in places
            if place["path"]
        ]
    return sorted(found, key=lambda mount: str(mount["path"]))


def storage_subvolume(volume: Volume) -> dict[str, Any]:
    """Return what M(nas.assistant.btrfs_subvolume) is to make of a volume."""
    keys = ("owner", "group", "mode", "compression", "copy_on_write", "quota")
    given = {key: volume[key] for key in keys if volume[key] is not None}
    return {"path": volume["name"], **given}


def storage_datasets(pool: Pool) -> list[dict[str, Any]]:
    """Return the datasets of a pool of ZFS, those first that others lie in.

    Each has ``name`` (with the pool's), ``path``, ``properties`` (for
    M(community.general.zfs)), ``owner``, ``group``, ``mode``, ``needed_by`` and ``snapshots``.
    """
    found = [
        {
            "name": pool["name"],
            "path": pool["mount"],
            "properties": _properties(pool["compression"], None),
            **dict.fromkeys(("owner", "group", "mode")),
            "needed_by": [],
            "snapshots": {},
        }
    ]
    found += [
        {
            "name": f"{pool['name']}/{volume['name']}",
            "path": volume["path"] or f"{pool['mount']}/{volume['name']}",
            "properties": _properties(volume["compression"], volume["quota"]),
            **{key: volume[key] for key in ("owner", "group", "mode", "needed_by", "snapshots")},
        }
        for volume in pool["volumes"]
    ]
    return sorted(found, key=lambda dataset: str(dataset["name"]))


def _properties(compression: str | None, quota: str | None) -> dict[str, str]:
    """Return properties as ``zfs get -p`` says them."""
    found = {}
    if compression:
        found["compression"] = "off" if compression == "none" else compression
    if quota:
        # Of what it refers to, as Btrfs counts: snapshots are on top.
        found["refquota"] = str(bytes_of(quota))
    return found


def _once(what: str, given: list[str]) -> None:
    for item in given:
        if given.count(item) > 1:
            raise AnsibleFilterError(f"{VARIABLE}: the {what} {item} is given twice")


def _pool(entry: Mapping[str, Any], of_docker: tuple[str, ...]) -> Pool:
    where = named(VARIABLE, entry)
    has_keys("a pool", entry, KEYS, where)
    name = str(entry.get("name") or "")
    if not NAME.fullmatch(name):
        raise AnsibleFilterError(f"{where}: name is of letters, digits, - and _, such as tank")
    where = f"{VARIABLE}: {name}"
    provider = entry.get("provider", "btrfs")
    if provider not in PROVIDERS:
        raise AnsibleFilterError(f"{where}: provider={provider!r} is none of {_or(PROVIDERS)}")
    if provider == "zfs":
        _check_zfs(entry, where)
    devices = [str(item) for item in listed(entry.get("devices"))]
    for device in devices:
        if not PATH.fullmatch(device) or not device.startswith("/dev/"):
            raise AnsibleFilterError(
                f"{where}: devices: {device!r} is no device such as /dev/disk/by-id/ata-EXAMPLE-1"
            )
    options = [str(item) for item in listed(entry.get("options", "noatime"))]
    for option in options:
        if not OPTION.fullmatch(option) or option.startswith(("subvol", "compress")):
            raise AnsibleFilterError(
                f"{where}: options: {option!r} is no mount option that may be set here; volumes "
                "and compression have keys of their own"
            )
    profile: Any = entry.get("profile") or ""
    if provider == "btrfs":
        profile = _profile(entry, len(devices), where)
    found = {
        "name": name,
        "provider": provider,
        "devices": devices,
        "uuid": str(entry.get("uuid") or ""),
        "format": _flag(entry, "format", where),
        "remove": _flag(entry, "remove", where),
        "profile": profile,
        "mount": _path(entry.get("mount", f"/srv/{name}"), "mount", where),
        "options": options,
        "compression": _compression(entry, COMPRESSION[provider][0], where) or "",
        "scrub": _calendar(entry.get("scrub", "monthly"), "scrub", where),
    }
    volumes = entry.get("volumes")
    if volumes is not None and not isinstance(volumes, list | tuple):
        raise AnsibleFilterError(f"{where}: volumes={volumes!r}: give a list of entries")
    found["volumes"] = [_volume(each, provider, of_docker, where) for each in volumes or []]
    # Also as what their snapshots are called, where a slash is a full stop.
    _once(f"volume of {name}", [each["name"].replace("/", ".") for each in found["volumes"]])
    return found


def _check_zfs(entry: Mapping[str, Any], where: str) -> None:
    """Refuse what ZFS has not."""
    volumes = entry.get("volumes")
    inner = [each for each in volumes or [] if isinstance(each, Mapping)]
    for given in (entry, *inner):
        for key in given.keys() & NOT_ZFS.keys():
            if given[key] not in (False, None):
                raise AnsibleFilterError(f"{where}: {key}: not with provider=zfs: {NOT_ZFS[key]}")
    name = str(entry["name"])
    if not name[0].isalpha() or name.startswith(("mirror", "raidz", "draid", "spare", "log")):
        raise AnsibleFilterError(f"{where}: a pool of ZFS may not be called so; call it tank")
    _like(entry.get("uuid") or None, GUID, "uuid", "a guid (zpool get guid)", where)
    profile = entry.get("profile") or ""
    if profile and profile not in FEWEST:
        raise AnsibleFilterError(
            f"{where}: profile={profile!r} is none of ZFS's: {', '.join(FEWEST)}"
        )


def _volume(entry: Any, provider: str, of_docker: tuple[str, ...], pool: str) -> Volume:
    has_keys("a volume", entry, VOLUME_KEYS, f"{pool}: {entry!r}")
    name = str(entry.get("name") or "")
    if not VOLUME.fullmatch(name):
        raise AnsibleFilterError(
            f"{pool}: volume {name!r}: a name is of letters, digits, ., - and _, such as docker"
        )
    where = f"{pool}: volume {name}"
    path = _path(entry["path"], "path", where) if entry.get("path") else ""
    usual = ["docker.service"] if _within(path, of_docker) else []
    usual += ["containerd.service"] if _within(path, OF_CONTAINERD) else []
    needed_by = [str(item) for item in listed(entry.get("needed_by", usual))]
    for unit in needed_by:
        if not UNIT.fullmatch(unit):
            raise AnsibleFilterError(
                f"{where}: needed_by: {unit!r} is no unit such as smbd.service"
            )
    copy_on_write = entry.get("copy_on_write")
    if copy_on_write is not None and not isinstance(copy_on_write, bool):
        raise AnsibleFilterError(f"{where}: copy_on_write={copy_on_write!r} is no true or false")
    return {
        "name": name,
        "path": path,
        "owner": _text(entry.get("owner")),
        "group": _text(entry.get("group")),
        "mode": _like(entry.get("mode"), MODE, "mode", "an octal mode, quoted: '0750'", where),
        "compression": _compression(entry, COMPRESSION[provider][1], where),
        "copy_on_write": copy_on_write,
        "quota": _like(entry.get("quota"), QUOTA, "quota", "none, or a size such as 20G", where),
        "snapshots": _snapshots(entry.get("snapshots"), where),
        "migrate": _flag(entry, "migrate", where),
        "needed_by": needed_by,
    }


def _snapshots(given: Any, where: str) -> dict[str, Any]:
    if not given:
        return {}
    has_keys("snapshots", given, SNAPSHOT_KEYS, where)
    every = _like(given.get("every", "1h"), DURATION, "snapshots.every", "such as 15m or 1d", where)
    if duration("every", every) % ROUND:
        raise AnsibleFilterError(
            f"{where}: snapshots.every={every}: whether one is due is looked each quarter of an "
            "hour, so give a multiple of 15m, such as 30m or 1d; or 0, and one is made each time"
        )
    keep = given.get("keep") or {"last": 3}
    has_keys("snapshots.keep", keep, {*KEEP_COUNTS, "within"}, where)
    for key, value in keep.items():
        if key == "within":
            _like(value, DURATION, "snapshots.keep.within", "an age such as 2d", where)
        elif not isinstance(value, int) or isinstance(value, bool) or value < 0:
            raise AnsibleFilterError(f"{where}: snapshots.keep.{key}={value!r} is no count")
    if not any(value for key, value in keep.items() if key != "minimum"):
        raise AnsibleFilterError(f"{where}: snapshots.keep={dict(keep)} keeps nothing")
    return {"every": every, "keep": dict(keep)}


def _profile(entry: Mapping[str, Any], devices: int, where: str) -> dict[str, str]:
    """The RAID profiles. Of a pool of our own, a mirror as soon as it has two devices."""
    several = devices > 1
    usual = {"data": "raid1" if several else "single", "metadata": "raid1" if several else "dup"}
    if entry.get("uuid") or not devices:
        usual = {"data": "", "metadata": ""}
    given = entry.get("profile") or {}
    if isinstance(given, Mapping):
        has_keys("profile", given, usual, where)
        return {kind: str(given.get(kind) or profile) for kind, profile in usual.items()}
    return dict.fromkeys(usual, str(given))


def _path(given: Any, key: str, where: str) -> str:
    path = str(given)
    plain = PATH.fullmatch(path) and posixpath.normpath(path) == path
    if not plain:
        raise AnsibleFilterError(f"{where}: {key}={path!r} is no plain path such as /srv/tank")
    if path in SYSTEM or _within(path, SYSTEM_FOLDERS):
        raise AnsibleFilterError(f"{where}: {key}={path} belongs to the system; take another place")
    return path


def _flag(entry: Mapping[str, Any], key: str, where: str) -> bool:
    value = entry.get(key, False)
    if not isinstance(value, bool):
        raise AnsibleFilterError(f"{where}: {key}={value!r} is neither true nor false")
    return value


def _compression(entry: Mapping[str, Any], pattern: re.Pattern[str], where: str) -> str | None:
    value = entry.get("compression")
    if value is None:
        return None
    if not pattern.fullmatch(str(value)):
        raise AnsibleFilterError(
            f"{where}: compression={value!r} is nothing that may stand here ({pattern.pattern})"
        )
    return str(value)


def _calendar(given: Any, key: str, where: str) -> str:
    if given in (None, False, "", "never"):
        return ""
    if not isinstance(given, str) or not CALENDAR.fullmatch(given):
        raise AnsibleFilterError(
            f"{where}: {key}={given!r} is neither never, weekly, monthly, nor an event such as "
            "'Sat *-*-1..7 03:00'"
        )
    return given


def _like(value: Any, pattern: re.Pattern[str], key: str, example: str, where: str) -> str | None:
    if value is not None and not pattern.fullmatch(str(value)):
        raise AnsibleFilterError(f"{where}: {key}={value!r} is not {example}")
    return _text(value)


def _text(value: Any) -> str | None:
    return None if value is None else str(value)


def _within(path: str, folders: Iterable[str]) -> bool:
    return any(path == folder or path.startswith(f"{folder}/") for folder in folders)


def _or(words: Iterable[str]) -> str:
    return " or ".join(words)


class FilterModule:
    """Ansible's way to find the filters."""

    def filters(self) -> dict[str, Any]:
        """The filters by name."""
        return {
            "storage_datasets": storage_datasets,
            "storage_mounts": storage_mounts,
            "storage_pools": storage_pools,
            "storage_subvolume": storage_subvolume,
            "storage_unit": storage_unit,
        }
