# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: nas.assistant contributors
"""How a NAS is that was built with this collection: what it runs, and how old its copies are.

Times are whole seconds since the epoch, 0 where something never happened.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from ansible_collections.nas.assistant.plugins.module_utils import (
    _docker_cli as docker_cli,
    _gateway as gateway,
    _snapshot_plan as plan,
)
from ansible_collections.nas.assistant.plugins.module_utils._commands import answer
from ansible_collections.nas.assistant.plugins.module_utils._sysfs import text

Found = dict[str, Any]
_VERSION = "org.opencontainers.image.version"
_RECORD = ("run", "success", "cause", "points", "drill_run", "drill_success", "drill_cause")


def assistant(container: str, socket: str) -> Found:
    """Look at the container and ask the service in it."""
    found: Found = {"state": "missing", "since": "", "restarts": 0, "image": "", "version": ""}
    with contextlib.suppress(docker_cli.DockerError):
        said = docker_cli.run(["docker", "container", "inspect", container], timeout=30)
        (inspected,) = json.loads(said)
        found["state"] = str(inspected["State"]["Status"])
        found["since"] = str(inspected["State"]["StartedAt"])
        found["restarts"] = int(inspected["RestartCount"])
        found["image"] = str(inspected["Config"]["Image"])
        found["version"] = str((inspected["Config"]["Labels"] or {}).get(_VERSION, ""))
    status, body = gateway.ask(socket)
    models = body.get("models")
    return {
        **found,
        "ready": status == 200,
        "reason": "" if status == 200 else gateway.reason(body),
        "models": list(models) if isinstance(models, list) else [],
    }


def certificate(path: str) -> Found:
    """Say when a certificate ends; 0 where it cannot be read."""
    said = answer(["openssl", "x509", "-in", path, "-noout", "-enddate", "-dateopt", "iso_8601"])
    return {"path": path, "expires": parse_enddate(said)}


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
    for dataset in settings.get("datasets", []):
        name, every = str(dataset["dataset"]), plan.duration("every", dataset.get("every", 0))
        listed = answer(["zfs", "list", "-Hp", "-t", "snapshot", "-o", "creation", "-d", "1", name])
        found.append(_aged(name, every, [int(line) for line in listed.split()]))
    return found


def _aged(volume: str, every: int, times: Sequence[int]) -> Found:
    return {"volume": volume, "every": every, "count": len(times), "newest": max(times, default=0)}


def copies(settings: Mapping[str, Any]) -> list[Found]:
    """Say of each copy how its last run and its last drill went.

    :param settings: what the backup role left on the NAS (``backup.json``).
    """
    found = []
    for copy in settings.get("copies", []):
        record = _json(os.path.join(settings["state"], copy["name"], "record.json"))
        told = {key: record.get(key, "" if key.endswith("cause") else 0) for key in _RECORD}
        found.append({"name": copy["name"], "full": copy["full"], **told})
    return found


def pools(root: str = "/sys") -> list[Found]:
    """Say of each pool of several disks what is wrong with it."""
    found = [*_btrfs(os.path.join(root, "fs/btrfs")), *_md(os.path.join(root, "block"))]
    for line in answer(["zpool", "list", "-H", "-o", "name,health"]).splitlines():
        name, health = line.split("\t")
        problem = [] if health == "ONLINE" else [health]
        found.append({"name": name, "kind": "zfs", "problems": problem})
    return found


def _btrfs(folder: str) -> list[Found]:
    found = []
    for uuid in _names(folder):
        if len(uuid) != 36:  # features
            continue
        problems = []
        for device in _names(os.path.join(folder, uuid, "devinfo")):
            place = os.path.join(folder, uuid, "devinfo", device)
            if text(os.path.join(place, "missing")) == "1":
                problems.append(f"device {device} is missing")
            lines = text(os.path.join(place, "error_stats")).splitlines()
            counts = [line.split() for line in lines]
            wrong = [f"{count} {name}" for name, count in counts if count != "0"]
            if wrong:
                problems.append(f"device {device} had {', '.join(wrong)}")
        name = text(os.path.join(folder, uuid, "label")) or uuid
        found.append({"name": name, "kind": "btrfs", "problems": problems})
    return found


def _md(folder: str) -> list[Found]:
    found = []
    for name in _names(folder):
        lost = text(os.path.join(folder, name, "md/degraded"))
        if lost:
            problem = [] if lost == "0" else [f"{lost} of its disks are missing"]
            found.append({"name": name, "kind": "md", "problems": problem})
    return found


def failed_units() -> list[str]:
    """Return the units of systemd that failed."""
    said = answer(["systemctl", "list-units", "--state=failed", "--plain", "--no-legend"])
    return [line.split()[0] for line in said.splitlines() if line.strip()]


def packages(root: str = "/") -> Found:
    """Say when packages were last changed and their lists last fetched, and which want a reboot."""
    wanting = text(os.path.join(root, "run/reboot-required.pkgs")).split()
    if not wanting and os.path.exists(os.path.join(root, "run/reboot-required")):
        wanting = ["it does not say which"]
    return {
        "changed": _modified(os.path.join(root, "var/lib/dpkg/status")),
        "fetched": _modified(os.path.join(root, "var/lib/apt/lists")),
        "reboot": sorted(set(wanting)),
    }


def settings(path: str) -> Found:
    """Return what a role left on the NAS; nothing where it did not."""
    return _json(path)


def _json(path: str) -> Found:
    try:
        with open(path, encoding="utf-8") as stream:
            return dict(json.load(stream))
    except FileNotFoundError:
        return {}


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
