# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: nas.assistant contributors
"""How a NAS is that was built with this collection: what it runs, and how old its copies are.

Times are whole seconds since the epoch, 0 where something never happened.
"""

from __future__ import annotations

import contextlib
import gzip
import http.client
import json
import os
import re
import socket
import ssl
import time
import urllib.parse
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from ansible_collections.nas.assistant.plugins.module_utils import (
    _docker_cli as docker_cli,
    _gateway as gateway,
    _snapshot_plan as plan,
    _systemd as systemd,
    _zfs_snapshots as zfs_snapshots,
)
from ansible_collections.nas.assistant.plugins.module_utils._commands import answer
from ansible_collections.nas.assistant.plugins.module_utils._sysfs import text

Found = dict[str, Any]
_VERSION = "org.opencontainers.image.version"
_PATIENCE = 30  # seconds for a command: one that asks a disk which is gone never ends
_RECORD = (
    *("run", "success", "cause", "points", "old"),
    *("drill_run", "drill_success", "drill_cause"),
)
# While it is there, a member of a pool of NAS takes nothing new of it; the proxy role has it too.
_DRAINED = "/run/nas-assistant-drained"
# What ran before a rollout, kept until the new one has proved itself; the rollout role has it too.
_KEPT = "/var/lib/nas-assistant-rollout/release.json"


def assistant(container: str, socket: str) -> Found:
    """Look at the container and ask the service in it. ``state``: Docker's, ``missing`` where there
    is no container, and ``unknown`` where Docker does not say; then ``problem`` is what it said.
    """
    found: Found = {"state": "missing", "since": 0, "restarts": 0, "image": "", "version": ""}
    found["problem"] = ""
    try:
        inspected = docker_cli.inspect(container, timeout=_PATIENCE)
    except docker_cli.DockerError as error:
        found["state"], found["problem"] = "unknown", str(error).splitlines()[-1]
    else:
        if inspected:
            found["state"] = str(inspected["State"]["Status"])
            found["since"] = _moment(str(inspected["State"]["StartedAt"]))
            found["restarts"] = int(inspected["RestartCount"])
            found["image"] = str(inspected["Config"]["Image"])
            found["version"] = str((inspected["Config"]["Labels"] or {}).get(_VERSION, ""))
    status, body = gateway.ask(socket)
    models = body.get("models")
    return {
        **found,
        "ready": status == 200,
        "reason": "" if status == 200 else gateway.reason(body),
        "degraded": str(body.get("reason", "")) if status == 200 else "",
        "models": list(models) if isinstance(models, list) else [],
        "drained": os.path.exists(_DRAINED),
        "unproved": os.path.exists(_KEPT),
    }


def front(url: str) -> Found:
    """Ask the assistant as clients do, through Nginx: by the NAS's own name, since another site may
    be the default one there. Its certificate is judged elsewhere.
    """
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    where, name = urllib.parse.urlsplit(url), os.uname().nodename.partition(".")[0]
    try:
        with (
            socket.create_connection((str(where.hostname), where.port or 443), _PATIENCE) as plain,
            context.wrap_socket(plain, server_hostname=name) as secured,
        ):
            connection = http.client.HTTPConnection(name)
            connection.sock = secured
            connection.request("GET", where.path)
            return {"url": url, "status": connection.getresponse().status, "reason": ""}
    except (OSError, http.client.HTTPException) as error:
        return {"url": url, "status": 0, "reason": str(error)}


def certificate(path: str) -> Found:
    """Say when a certificate ends, 0 where it cannot be read; whether it names itself as who made
    it; and its SHA-256 fingerprint, in lower case.
    """
    asked = ["-enddate", "-dateopt", "iso_8601", "-subject", "-issuer", "-fingerprint", "-sha256"]
    said = answer(["openssl", "x509", "-in", path, "-noout", *asked], _PATIENCE)
    lines = dict(line.partition("=")[::2] for line in said.splitlines())
    return {
        "path": path,
        "expires": parse_enddate(said),
        "own": "subject" in lines and lines["subject"] == lines.get("issuer"),
        "fingerprint": lines.get("sha256 Fingerprint", "").lower(),
    }


def parse_enddate(said: str) -> int:
    """Return the time in what ``openssl x509 -enddate -dateopt iso_8601`` prints."""
    found = re.search(r"notAfter=(\S+) (\S+)Z", said)
    return int(datetime.fromisoformat(f"{found[1]}T{found[2]}+00:00").timestamp()) if found else 0


def snapshots(settings: Mapping[str, Any]) -> list[Found]:
    """Say of each volume with a schedule how many snapshots there are, and how old the newest is.

    :param settings: what the storage role left on the NAS (``snapshots.json``).
    """
    found = []
    for wish in plan.wishes(settings.get("volumes", []), "present"):
        ours = [each for each in map(plan.entry, _names(wish.folder)) if each]
        times = [each.time for each in ours if each.name == wish.name and not each.draft]
        found.append(_aged(wish.path, wish.every, [time for time in times if time]))
    for wish in zfs_snapshots.wishes(settings.get("datasets", [])):
        command = ["zfs", "list", "-Hp", "-t", "snapshot", "-d", "1", wish.path]
        rows = answer([*command, "-o", f"creation,{zfs_snapshots.PROPERTY}"], _PATIENCE)
        cells = [row.split("\t") for row in rows.splitlines()]
        found.append(
            _aged(wish.path, wish.every, [int(made) for made, mark in cells if mark != "-"])
        )
    return found


def _aged(volume: str, every: int, times: Sequence[int]) -> Found:
    return {"volume": volume, "every": every, "count": len(times), "newest": max(times, default=0)}


def copies(settings: Mapping[str, Any]) -> list[Found]:
    """Say of each copy how its last run and its last drill went, and when each was last due.

    ``due`` and ``drill_due``: when its timer last elapsed; None where it has no timer that runs.

    :param settings: what the backup role left on the NAS (``backup.json``).
    """
    found = []
    for copy in settings.get("copies", []):
        name = str(copy["name"])
        try:
            record = _json(os.path.join(settings["state"], name, "record.json"))
        except ValueError as error:
            record = {"cause": f"its record is damaged: {error}"}
        told = {key: record.get(key, "" if key.endswith("cause") else 0) for key in _RECORD}
        due = {"due": _elapsed(f"nas-backup-{name}.timer")}
        due["drill_due"] = _elapsed(f"nas-drill-{name}.timer")
        found.append({"name": name, **told, **due})
    return found


def _elapsed(timer: str) -> int | None:
    wanted = "--property=ActiveState,LastTriggerUSec"
    said = answer(["systemctl", "show", timer, wanted, "--timestamp=us+utc"], _PATIENCE)
    found = dict(line.partition("=")[::2] for line in said.splitlines())
    if found.get("ActiveState") != "active":
        return None
    return int(systemd.timestamp(found.get("LastTriggerUSec", "")))


def pools(root: str = "/sys") -> list[Found]:
    """Say of each pool of several disks what of it is missing, and what errors were counted."""
    found = [*_btrfs(os.path.join(root, "fs/btrfs")), *_md(os.path.join(root, "block"))]
    for name in answer(["zpool", "list", "-H", "-o", "name"], _PATIENCE).split():
        said = answer(["zpool", "status", "-x", name], _PATIENCE)
        status = re.search(r"^ *(?:status|state): *(.*)", said, re.MULTILINE)
        missing = [] if "is healthy" in said else [status[1] if status else "it does not say"]
        found.append({"name": name, "kind": "zfs", "missing": missing, "errors": []})
    return found


def _btrfs(folder: str) -> list[Found]:
    found = []
    for uuid in _names(folder):
        if len(uuid) != 36:  # features
            continue
        pool: Found = {"name": text(folder, uuid, "label") or uuid, "kind": "btrfs"}
        pool |= {"missing": [], "errors": []}
        for device in _names(os.path.join(folder, uuid, "devinfo")):
            place = os.path.join(folder, uuid, "devinfo", device)
            if text(place, "missing") == "1":
                pool["missing"].append(f"device {device}")
            # "invalid" where the filesystem has not read them.
            counts = re.findall(r"^(\w+) ([1-9]\d*)$", text(place, "error_stats"), re.MULTILINE)
            pool["errors"] += [f"device {device}: {count} {name}" for name, count in counts]
        found.append(pool)
    return found


def _md(folder: str) -> list[Found]:
    found = []
    for name in _names(folder):
        lost = text(folder, name, "md/degraded")
        if lost:
            missing = [] if lost == "0" else [f"{lost} of its disks"]
            found.append({"name": name, "kind": "md", "missing": missing, "errors": []})
    return found


def not_mounted(paths: Sequence[str]) -> list[str]:
    """Return those of the paths that nothing is mounted at."""
    return [path for path in paths if not os.path.ismount(path)]


def failed_units() -> list[str]:
    """Return the units of systemd that failed."""
    command = ["systemctl", "list-units", "--state=failed", "--plain", "--no-legend"]
    return [line.split()[0] for line in answer(command, _PATIENCE).splitlines() if line.strip()]


def packages(root: str = "/") -> Found:
    """Say when the lists of packages were last fetched, and packages last ``upgraded``; what would
    be upgraded now, how many of those close holes (``security``), and what wants a reboot.
    """
    wanting = text(root, "run/reboot-required.pkgs").split()
    if not wanting and os.path.exists(os.path.join(root, "run/reboot-required")):
        wanting = ["it does not say which"]
    said = answer(["apt-get", "--simulate", "-o", "Debug::NoLocking=1", "upgrade"], _PATIENCE)
    return {
        "fetched": _modified(os.path.join(root, "var/lib/apt/lists")),
        "upgraded": _upgraded(os.path.join(root, "var/log")),
        **parse_upgrade(said),
        "reboot": sorted(set(wanting)),
    }


def _upgraded(folder: str) -> int:
    logs = [os.path.join(folder, each) for each in _names(folder) if each.startswith("dpkg.log")]
    for path in sorted(logs, key=_modified, reverse=True):
        with (gzip.open if path.endswith(".gz") else open)(path, "rt", errors="replace") as log:
            found = re.findall(r"^(\S+ \S+) upgrade ", log.read(), re.MULTILINE)
        if found:
            return int(time.mktime(time.strptime(found[-1], "%Y-%m-%d %H:%M:%S")))
    return 0


def versions(root: str = "/") -> dict[str, str]:
    """Say of what the assistant stands on which version there is, empty where there is none."""
    show = ["dpkg-query", "--show", "--showformat", "${Version}", "nginx"]
    return {
        "Debian": text(root, "etc/debian_version"),
        "Docker": answer(["docker", "version", "-f", "{{.Server.Version}}"], _PATIENCE).strip(),
        "Nginx": answer(show, _PATIENCE).strip(),
    }


def parse_upgrade(said: str) -> Found:
    """Return the packages in what ``apt-get --simulate upgrade`` prints."""
    rows = [line for line in said.splitlines() if line.startswith("Inst ")]
    names = [line.split()[1] for line in rows]
    return {"pending": names, "security": sum("-Security:" in line for line in rows)}


def settings(path: str) -> Found:
    """Return what a role left on the NAS; nothing where it did not."""
    return _json(path)


def _json(path: str) -> Found:
    """What is not there says nothing. Raises ValueError for what is no dictionary."""
    try:
        with open(path, encoding="utf-8") as stream:
            found = json.load(stream)
    except FileNotFoundError:
        return {}
    if not isinstance(found, dict):
        raise ValueError(f"{path} is no dictionary")
    return found


def _moment(said: str) -> int:
    """Seconds since the epoch of a time as Docker says it; 0 for what never was."""
    with contextlib.suppress(ValueError):
        return max(0, int(datetime.fromisoformat(f"{said[:19]}+00:00").timestamp()))
    return 0


def _names(folder: str) -> list[str]:
    try:
        return sorted(os.listdir(folder))
    except (FileNotFoundError, NotADirectoryError):
        return []


def _modified(path: str) -> int:
    try:
        return int(os.stat(path).st_mtime)
    except FileNotFoundError:
        return 0
