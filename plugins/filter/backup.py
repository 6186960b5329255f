# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: nas.assistant contributors
"""What the entries of backup_sources and backup_copies mean."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any
from urllib.parse import urlsplit

from ansible.errors import AnsibleFilterError
from ansible_collections.nas.assistant.plugins.plugin_utils._entries import (
    entries,
    has_keys,
    listed,
    named,
)

SOURCES, COPIES = "backup_sources", "backup_copies"
SOURCE_KEYS = {"volume", "folder", "exclude", "used_by"}
COPY_KEYS = {
    *("name", "repository", "device", "schedule", "drill", "keep", "verify", "environment", "ca"),
    *("ssh", "prune"),
}
DEVICE_KEYS = {"uuid", "path", "format"}
SSH_KEYS = {"host_key", "port", "append_only"}
PRUNE_KEYS = {"on", "user", "repository", "environment"}
KEEP_KEYS = {"last", "hourly", "daily", "weekly", "monthly", "yearly", "minimum", "within"}
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,31}")
PATH = re.compile(r"(/[A-Za-z0-9._@:+-]+)+")
# Whatever a name may have but what restic takes for a pattern; and but for %, which stands for a
# slash in what the manifest of a folder is called.
FOLDER = re.compile(r"(/[^/%*?\[\\]+)+")
BELOW = re.compile(r"[^/*?\[\\]+(/[^/*?\[\\]+)*")
LONGEST = 230
UUID = re.compile(r"[0-9A-Fa-f-]{4,36}")
UNIT = re.compile(r"[A-Za-z0-9:_.@\\-]+[.]service")
VARIABLE = re.compile(r"[A-Z][A-Z0-9_]*")
REPOSITORY = re.compile(r"(rest|sftp|s3|b2|swift|azure|gs|rclone):.+|/.+")
# sftp:USER@HOST:PATH and sftp://USER@HOST:PORT/PATH
SFTP = re.compile(
    r"sftp:(//)?(?P<user>[A-Za-z0-9._-]+)@(?P<host>[A-Za-z0-9.-]+)(:(?P<port>\d+))?.*"
)
CALENDAR = re.compile(r"(hour|dai|week|month)ly|(?=.*[0-9*])[A-Za-z0-9 *:,./~-]+")
KEEP = {"last": 3, "within": "30d"}
LEAST = 7 * 86400  # seconds for which nothing is pruned elsewhere


def backup_sources(
    given: Iterable[Mapping[str, Any]], pools: Iterable[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """Return what is to be copied: ``volume``, ``path``, ``folder`` (of snapshots), ``mounted``,
    ``exclude``, as ``_backup_plan.Source`` has them, and ``used_by`` (units).

    :param pools: what ``storage_pools`` returns.
    :raises AnsibleFilterError: an entry cannot be understood, or cannot work; names it and why.
    """
    places = {
        f"{pool['name']}/{volume['name']}": _place(pool, volume)
        for pool in pools
        for volume in pool["volumes"]
    }
    found = [_source(entry, places) for entry in entries(SOURCES, given)]
    paths = [source["path"] for source in found if not source["volume"]]
    for path in paths:
        for other in paths:
            if path != other and path.startswith(f"{other}/"):
                raise AnsibleFilterError(f"{SOURCES}: {path} lies in {other}: name one of them")
    names = [source["volume"] or source["path"] for source in found]
    _once(SOURCES, names)
    return found


def backup_copies(
    given: Iterable[Mapping[str, Any]], folder: str = "/etc/nas-assistant/backup"
) -> list[dict[str, Any]]:
    """Return the copies with all that they leave out.

    Each has ``name``, ``repository``, ``device`` (``uuid``, ``path``, ``format``; empty: none),
    ``schedule``, ``drill`` (empty: never), ``keep``, ``verify``, ``environment``, ``ca``,
    ``host_key``, ``options`` (for restic), ``prune`` (``on``, ``user``, ``repository``,
    ``environment``), ``exposed`` (whether the NAS's own rights there delete all of it),
    ``overwritable`` (whether they write over all of it, so that old versions must be kept there).

    :param folder: where certificates and keys are on the NAS.
    :raises AnsibleFilterError: as ``backup_sources``.
    """
    found = [_copy(entry, folder) for entry in entries(COPIES, given)]
    _once(COPIES, [copy["name"] for copy in found])
    devices = [copy["device"] for copy in found if copy["device"]]
    _once(COPIES, [f"the device {each['uuid'] or each['path']}" for each in devices])
    return found


def backup_left_out(
    sources: Iterable[Mapping[str, Any]],
    pools: Iterable[Mapping[str, Any]],
    folders: Iterable[str] = (),
) -> list[str]:
    """Return what no copy has: volumes by their names, and folders.

    :param sources: what ``backup_sources`` returns.
    :param pools: what ``storage_pools`` returns.
    :param folders: those that would be missed, wherever they lie.
    """
    points = {
        f"{pool['name']}/{volume['name']}": volume["path"] or f"{pool['mount']}/{volume['name']}"
        for pool in pools
        for volume in pool["volumes"]
    }
    places = [(points.get(each["volume"], each["path"]), each["exclude"]) for each in sources]
    taken = {place for place, _ in places}
    missed = [name for name, point in points.items() if point not in taken]
    for folder in folders:
        # A source ends where another filesystem is mounted in it.
        above = [(point, name) for name, point in points.items() if _lies_in(folder, point)]
        point, volume = max(above, key=lambda each: len(each[0]), default=("", ""))
        if volume not in missed and not any(
            _lies_in(folder, place)
            and (not point or _lies_in(place, point))
            and not any(_lies_in(folder, f"{place}/{each}") for each in exclude)
            for place, exclude in places
        ):
            missed.append(folder)
    return missed


def backup_told(restored: Mapping[str, Any], put: Iterable[Mapping[str, Any]]) -> list[str]:
    """Return what a restore did, as sentences.

    :param restored: what M(nas.assistant.backup_restore) returned.
    :param put: what M(nas.assistant.btrfs_rollback) returned for each volume.
    """
    kept = {str(each.get("snapshot")): str(each.get("kept") or "") for each in put}
    made = datetime.fromtimestamp(restored["time"], UTC)
    found = [f"From the restore point {restored['point'][:8]} of {made:%Y-%m-%d %H:%M:%S} UTC:"]
    for each in restored["restored"]:
        if each["snapshot"]:
            before = kept.get(each["snapshot"])
            rest = f"; what was there before is the snapshot {before}" if before else ""
            found.append(f"{each['name']}: as a whole{rest}")
        else:
            rest = f"; what they replaced is in {each['kept']}" if each["kept"] else ""
            found.append(f"{each['name']}: {each['changed']} files{rest}")
    return found


def _lies_in(path: str, folder: str) -> bool:
    return path == folder or path.startswith(f"{folder}/")


def _place(pool: Mapping[str, Any], volume: Mapping[str, Any]) -> dict[str, str]:
    """Return where a volume is, and where its snapshots may be; those of ZFS are its own affair."""
    inside = f"{pool['mount']}/{volume['name']}"
    if pool["provider"] == "zfs":
        return {"path": volume["path"] or inside, "folder": "", "mounted": ""}
    return {"path": inside, "folder": f"{pool['mount']}/.snapshots", "mounted": volume["path"]}


def _source(entry: Any, places: Mapping[str, Mapping[str, str]]) -> dict[str, Any]:
    where = named(SOURCES, entry)
    has_keys("a source", entry, SOURCE_KEYS, where)
    volume, path = str(entry.get("volume") or ""), str(entry.get("folder") or "")
    if bool(volume) == bool(path):
        raise AnsibleFilterError(f"{where}: give either a volume or a folder")
    exclude = [str(each) for each in listed(entry.get("exclude"))]
    for each in exclude:
        if not _is_plain(each, BELOW) or ".." in each.split("/"):
            raise AnsibleFilterError(
                f"{where}: exclude: {each!r} is no path from the source on, such as cache/tmp: no "
                "pattern, so without any of * ? [ \\"
            )
    used_by = [str(each) for each in listed(entry.get("used_by"))]
    for each in used_by:
        if not UNIT.fullmatch(each):
            raise AnsibleFilterError(f"{where}: used_by: {each!r} is no unit such as nginx.service")
    common = {"exclude": exclude, "used_by": used_by}
    if volume:
        if volume not in places:
            raise AnsibleFilterError(
                f"{where}: volume={volume!r} is none of storage_pools, which has "
                f"{', '.join(places) or 'none'}. Name it as POOL/NAME, or give a folder"
            )
        return {"volume": volume, **places[volume], **common}
    # The manifest is a file with the whole path for a name.
    if not _is_plain(path, FOLDER) or len(path.encode()) > LONGEST:
        raise AnsibleFilterError(
            f"{where}: folder={path!r} is no plain path such as /etc: the whole path, of {LONGEST} "
            "bytes at most, without any of % * ? [ \\"
        )
    return {"volume": "", "path": path, "folder": "", "mounted": "", **common}


def _is_plain(path: str, pattern: re.Pattern[str]) -> bool:
    whole = bool(pattern.fullmatch(path)) and posixpath.normpath(path) == path
    return whole and path.isprintable()


def _copy(entry: Any, folder: str) -> dict[str, Any]:
    where = _where(entry)
    has_keys("a copy", entry, COPY_KEYS, where)
    name = str(entry.get("name") or "")
    if not NAME.fullmatch(name):
        raise AnsibleFilterError(f"{where}: name is of letters, digits, - and _, such as offsite")
    where = f"{COPIES}: {name}"
    repository = str(entry.get("repository") or "")
    device = _device(entry.get("device"), where)
    if bool(repository) == bool(device):
        raise AnsibleFilterError(f"{where}: give either a repository or a device")
    if repository and not REPOSITORY.fullmatch(repository):
        raise AnsibleFilterError(
            f"{where}: repository is none that restic knows, such as "
            "rest:https://backup.example.com:8000/nas1/, sftp:nas1@backup.example.com:/nas1"
        )
    verify = entry.get("verify", 100 if device else 0)
    if type(verify) is not int or not 0 <= verify <= 100:
        raise AnsibleFilterError(f"{where}: verify={verify!r} is no percentage from 0 to 100")
    if device and verify != 100:
        raise AnsibleFilterError(
            f"{where}: verify={verify}: what is old on a disk goes only once all of it was read, "
            "so it would fill up; leave verify away"
        )
    if repository.startswith("rest:"):
        _check_address(repository, where)
    keep, prune = _keep(entry.get("keep"), where), _prune(entry.get("prune"), repository, where)
    if prune and seconds(str(keep.get("within", 0))) < LEAST:
        raise AnsibleFilterError(
            f"{where}: keep.within={keep.get('within', 0)!r}: give 7d or more with prune, since "
            "what a NAS that was taken over sends is dated as it likes"
        )
    location, options, host_key = _ssh(repository, entry.get("ssh"), folder, where)
    ca = str(entry.get("ca") or "")
    if ca and "-----BEGIN CERTIFICATE-----" not in ca:
        raise AnsibleFilterError(
            f"{where}: ca is a certificate itself, in PEM; a lookup reads a file"
        )
    if ca:
        options += ["--cacert", f"{folder}/{name}.pem"]
    return {
        "name": name,
        "repository": location,
        "device": device,
        "schedule": _calendar(
            entry.get("schedule", "weekly" if device else "daily"), "schedule", where
        ),
        "drill": _calendar(entry.get("drill", "monthly"), "drill", where),
        "keep": keep,
        "verify": verify,
        "environment": _environment(entry.get("environment"), where),
        "ca": ca,
        "host_key": host_key,
        "options": options,
        "prune": prune,
        **_reach(location, host_key, prune),
    }


def _reach(location: str, host_key: str, prune: Mapping[str, Any]) -> dict[str, bool]:
    """Return what the NAS's own rights do to what is there, as far as the inventory tells."""
    # Of ours, rclone: with a host key is one that a server forces its command upon.
    by_server = location.startswith("rest:") or (location.startswith("rclone:") and host_key)
    if not location or by_server:
        return {"exposed": False, "overwritable": False}
    # Who may put an object into a store may put another over it.
    own_key = bool(prune.get("environment")) and not location.startswith(("sftp:", "/"))
    return {"exposed": not own_key, "overwritable": own_key}


def _check_address(repository: str, where: str) -> None:
    """Refuse an address whose password restic would take for a path, and tell of."""
    try:
        parts = urlsplit(repository.removeprefix("rest:"))
        sound = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        sound = False
    if (
        not sound
        or re.search(r"\s", repository)
        or "@" in f"{parts.path}{parts.query}{parts.fragment}"
    ):
        raise AnsibleFilterError(
            f"{where}: repository is no address such as rest:https://USER:PASSWORD@HOST:8000/NAS/; "
            "of a password, all but letters and digits must be percent-encoded (filter urlencode)"
        )


def seconds(age: str) -> int:
    """Return the seconds of an age such as 30d."""
    units = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}
    return int(age[:-1]) * units[age[-1]] if age[-1:] in units else 0


def _where(entry: Any) -> str:
    """What a message calls an entry: it may hold a password."""
    return f"{COPIES}: {entry.get('name')}" if isinstance(entry, Mapping) else named(COPIES, entry)


def _device(given: Any, where: str) -> dict[str, Any]:
    if not given:
        return {}
    has_keys("device", given, DEVICE_KEYS, where)
    uuid, path = str(given.get("uuid") or ""), str(given.get("path") or "")
    if bool(uuid) == bool(path):
        raise AnsibleFilterError(
            f"{where}: device: give the uuid of a filesystem that is there (blkid names it), or "
            "the path of a blank disk below /dev/disk/by-id with format: true"
        )
    if uuid and not UUID.fullmatch(uuid):
        raise AnsibleFilterError(f"{where}: device: uuid={uuid!r} is none; blkid names it")
    if path and not (PATH.fullmatch(path) and path.startswith("/dev/")):
        raise AnsibleFilterError(
            f"{where}: device: path={path!r} is none such as /dev/disk/by-id/usb-EXAMPLE"
        )
    flag = given.get("format", False)
    if not isinstance(flag, bool):
        raise AnsibleFilterError(f"{where}: device: format={flag!r} is neither true nor false")
    return {"uuid": uuid, "path": path, "format": flag}


def _ssh(repository: str, given: Any, folder: str, where: str) -> tuple[str, list[str], str]:
    """Return the repository as restic takes it, its options for SSH, the line of known_hosts."""
    matched = SFTP.fullmatch(repository)
    if not repository.startswith("sftp:"):
        if given:
            raise AnsibleFilterError(f"{where}: ssh goes with a repository sftp:…")
        return repository, [], ""
    if not matched:
        raise AnsibleFilterError(f"{where}: repository: name the user: sftp:USER@HOST:/PATH")
    given = given or {}
    has_keys("ssh", given, SSH_KEYS, where)
    host_key = str(given.get("host_key") or "")
    if not re.fullmatch(r"(ssh|ecdsa|sk)-[a-z0-9@.-]+ [A-Za-z0-9+/=]+", host_key):
        raise AnsibleFilterError(
            f"{where}: ssh: host_key={host_key!r} is no key such as 'ssh-ed25519 AAAA…': "
            f"`ssh-keyscan {matched['host']}` prints it, and the other side's owner confirms it"
        )
    # In the old form, what follows the colon is the path.
    port = str(given.get("port") or (matched["port"] if matched[1] else None) or 22)
    if not port.isdigit():
        raise AnsibleFilterError(f"{where}: ssh: port={port!r} is no port")
    append_only = given.get("append_only", False)
    if not isinstance(append_only, bool):
        raise AnsibleFilterError(
            f"{where}: ssh: append_only={append_only!r} is neither true nor false"
        )
    command = (
        f"ssh -i {folder}/id_ed25519 -o IdentitiesOnly=yes -o BatchMode=yes "
        f"-o StrictHostKeyChecking=yes -o UserKnownHostsFile={folder}/{where.split(': ')[1]}.hosts "
        f"-o ConnectTimeout=30 -o ServerAliveInterval=30 -p {port} "
        f"{matched['user']}@{matched['host']}"
    )
    known = matched["host"] if port == "22" else f"[{matched['host']}]:{port}"
    if not append_only:
        return repository, ["-o", f"sftp.command={command} -s sftp"], f"{known} {host_key}"
    # What restic asks for begins with "serve", which is no program: without a command that the
    # server forces upon the key, there is no connection, rather than one that may delete.
    location = f"rclone:{repository.removeprefix('sftp:')}"
    return location, ["-o", f"rclone.program={command}"], f"{known} {host_key}"


def _keep(given: Any, where: str) -> dict[str, Any]:
    if given is None:
        return dict(KEEP)
    has_keys("keep", given, KEEP_KEYS, where)
    for key, value in given.items():
        if key == "within":
            if not re.fullmatch(r"0|[0-9]{1,9}[smhdw]", str(value)):
                raise AnsibleFilterError(f"{where}: keep.within={value!r} is no age such as 30d")
        elif type(value) is not int or value < 0:
            raise AnsibleFilterError(f"{where}: keep.{key}={value!r} is no count")
    if not any(value for key, value in given.items() if key != "minimum"):
        raise AnsibleFilterError(f"{where}: keep={dict(given)} keeps nothing")
    return dict(given)


def _prune(given: Any, repository: str, where: str) -> dict[str, Any]:
    if not given:
        return {}
    has_keys("prune", given, PRUNE_KEYS, where)
    if not repository:
        raise AnsibleFilterError(f"{where}: prune: the NAS itself prunes a device")
    user = str(given.get("user") or "")
    if user and not re.fullmatch(r"[a-z_][a-z0-9_-]{0,31}", user):
        raise AnsibleFilterError(f"{where}: prune: user={user!r} is no user such as backup")
    return {
        "user": user,
        "on": str(given.get("on") or "localhost"),
        "repository": str(given.get("repository") or repository),
        "environment": _environment(given.get("environment"), where),
    }


def _environment(given: Any, where: str) -> dict[str, str]:
    if given is not None and not isinstance(given, Mapping):
        raise AnsibleFilterError(f"{where}: environment is a dictionary of restic's variables")
    for key in given or {}:
        if not VARIABLE.fullmatch(str(key)):
            raise AnsibleFilterError(f"{where}: environment: {key} is no variable of restic's")
    return {str(key): str(value) for key, value in (given or {}).items()}


def _calendar(given: Any, key: str, where: str) -> str:
    if given in (None, False, "", "never"):
        return ""
    if not isinstance(given, str) or not CALENDAR.fullmatch(given):
        raise AnsibleFilterError(
            f"{where}: {key}={given!r} is neither never, daily, weekly, monthly, nor an event such "
            "as '*-*-* 03:00'"
        )
    return given


def _once(variable: str, given: list[str]) -> None:
    for item in given:
        if given.count(item) > 1:
            raise AnsibleFilterError(f"{variable}: {item} is given twice")


class FilterModule:
    """Ansible's way to find the filters."""

    def filters(self) -> dict[str, Any]:
        """The filters by name."""
        return {
            "backup_copies": backup_copies,
            "backup_left_out": backup_left_out,
            "backup_sources": backup_sources,
            "backup_told": backup_told,
        }
