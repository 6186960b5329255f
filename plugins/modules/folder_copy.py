#!/usr/bin/python
# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: nas.assistant contributors

from __future__ import annotations

DOCUMENTATION = r"""
---
module: folder_copy
short_description: Copy what folders hold to where they will be mounted from
version_added: 0.1.0
description:
  - Before something is mounted over a folder, copies what it holds, with owners, times, hard links,
    access lists and extended attributes, and compares both by checksum. What uses the folder is
    stopped before, containers too, and is started again by O(state=resumed).
  - The old content is left as it is, beneath the mount. So nothing is lost whatever happens, and it
    goes on taking room until you remove it.
  - A folder that is empty, missing, or mounted already is passed over. One that holds something is
    refused unless it may be copied, and so is one where something else is mounted.
  - A mount or a subvolume in a folder is refused, since a copy would lack it. What Docker mounts
    for its containers goes when they stop, so it is refused only where it stays, and all is
    started again by O(state=resumed).
  - M(ansible.posix.synchronize) copies between machines. Take this one where services are to be
    stopped for it and the copy is to be proven.
author:
  - The nas.assistant contributors
options:
  folders:
    description: Folders that something will be mounted over.
    type: list
    elements: dict
    default: []
    suboptions:
      path:
        description: The folder.
        type: path
        required: true
      to:
        description: The folder that will be mounted there, such as a subvolume. It must be empty,
          or what an earlier run began.
        type: path
        required: true
      allowed:
        description: Whether it may be copied.
        type: bool
        default: false
      users:
        description: Units of systemd that use the folder.
        type: list
        elements: str
        default: []
      filesystem:
        description: UUID of the Btrfs that will be mounted there, where it is known. Another one
          that is there already is refused.
        type: str
        default: ""
      fresh:
        description: Whether nothing was ever mounted there by the caller. Only then is a copy that
          an earlier run began gone on with; later, O(folders[].to) is the one that counts.
        type: bool
        default: true
      root:
        description: What will be mounted there, as the kernel names it within its filesystem, such
          as C(/docker). Another mount that is there already is refused.
        type: str
        default: /
  remedy:
    description: What the owner can do where a folder is refused; it ends the message.
    type: str
    default: Empty it, or allow that it is copied.
  state:
    description: V(copied) stops and copies; V(resumed) starts what was stopped for it, after a run
      that was cut off too. A copy of O(folders) that is not mounted yet may be gone on with.
    type: str
    choices: [copied, resumed]
    default: copied
attributes:
  check_mode:
    description: Says what would be copied, and refuses what would be refused.
    support: full
  diff_mode:
    description: Shows the folders.
    support: full
"""

EXAMPLES = r"""
- name: Copy Docker's data into its subvolume
  nas.assistant.folder_copy:
    folders:
      - path: /var/lib/docker
        to: /srv/tank/docker
        allowed: true
        users: [docker.service]

# Mount it here.

- name: Let Docker go on
  nas.assistant.folder_copy:
    state: resumed
"""

RETURN = r"""
copied:
  description: The folders that were copied.
  type: list
  elements: str
  returned: success
resumed:
  description: Units and containers that were started again.
  type: list
  elements: str
  returned: success
"""

import contextlib
import glob
import os
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.nas.assistant.plugins.module_utils import (
    _btrfs as btrfs,
    _snapshots as snapshots,
)
from ansible_collections.nas.assistant.plugins.module_utils._standstill import (
    DOCKER,
    Standstill,
    StandstillError,
    alone,
    demand,
    running,
)

SHOWN = 5  # entries that a message names
# Everything as it is, within one filesystem; numbers, since names may differ in a chroot. What
# Btrfs keeps in attributes, such as compression, is the new place's own.
RSYNC = (
    *("rsync", "-aHAXS", "--numeric-ids", "--one-file-system", "--delete"),
    "--filter=-x btrfs.*",
)


class CopyError(Exception):
    """A folder cannot be copied; why, and what to do."""


def to_copy(folders: list[dict[str, Any]], begun: list[str], remedy: str) -> list[dict[str, Any]]:
    """Return the folders that hold something, and of those that may be copied the empty ones too:
    whoever uses one would go on in what is hidden, and owner and mode are to be the same.

    :param begun: where an earlier run began a copy.

    :raises CopyError: one of them may not be copied; names all of them.
    """
    points = btrfs.points()
    mounted = [folder for folder in folders if folder["path"] in points]
    found = [
        each
        for each in folders
        if each not in mounted
        and (_held(each["path"]) or (each["allowed"] and os.path.isdir(each["path"])))
    ]
    refused = [
        f"{folder['path']} is a link, or lies below one: give {os.path.realpath(folder['path'])}"
        for folder in folders
        if os.path.realpath(folder["path"]) != folder["path"]
    ]
    refused += [
        f"something else is mounted at {folder['path']}. Unmount it, also in /etc/fstab, or take "
        "another path; of a volume that has a new name, rename the subvolume itself (mv)"
        for folder in mounted
        if not is_right(folder)
    ]
    refused += [
        f"{inner} in {folder['path']} is a mount or a subvolume of its own, which would not be "
        "copied. Unmount or move it first"
        for folder in found
        if folder["allowed"] and (inner := first_apart(folder["path"], points, will_go(folder)))
    ]
    refused += [
        f"{folder['path']} holds {_named(_held(folder['path']))}, which {folder['to']} would hide"
        for folder in found
        if not folder["allowed"]
    ]
    refused += [
        f"{folder['path']} and {folder['to']} both hold something ({_named(_held(folder['to']))} "
        "there). Look which one is whole, and move the other one away"
        for folder in found
        if _held(folder["to"]) and not (folder["fresh"] and folder["to"] in begun)
    ]
    if refused:
        raise CopyError(f"{'; '.join(refused)}. {remedy}".strip())
    return found


def is_right(folder: dict[str, Any]) -> bool:
    """Whether what is mounted at a folder is what should be."""
    mounts = [mount for mount in btrfs.mounts() if mount.point == folder["path"]]
    place = snapshots.look(folder["path"]) if mounts else None
    return bool(
        place
        and mounts[-1].root == folder["root"]
        and folder["filesystem"] in ("", place.filesystem)
    )


def will_go(folder: dict[str, Any]) -> bool:
    """Whether containers will be stopped for a folder, with whom their mounts go."""
    return DOCKER in folder["users"] and bool(running([DOCKER]))


def demand_whole(paths: list[str]) -> None:
    """See that a copy of folders lacks nothing, once their users have stopped.

    :raises CopyError: something is mounted in one of them still; names it.
    """
    points = btrfs.points()
    left = [inner for path in paths if (inner := first_apart(path, points))]
    if left:
        raise CopyError(
            f"{_named(left)} is a mount or a subvolume of its own still, although what uses it has "
            "stopped, and would not be copied. Unmount it (umount), or remove the container or the "
            "volume that it belongs to, and run again; nothing was copied"
        )


def first_apart(path: str, points: set[str], passing: bool = False) -> str:
    """Return a folder below a path that is on another filesystem, or an empty text.

    :param points: where anything is mounted.
    :param passing: whether what Docker mounts for its containers is passed over, with all in it.
    """

    def passes(inner: str) -> bool:
        return passing and bool(btrfs.OF_CONTAINERS.fullmatch(inner))

    for point in sorted(points):
        if point.startswith(f"{path}/") and not passes(point):
            return point
    device = os.lstat(path).st_dev
    for folder, names, _ in os.walk(path):
        entered = []
        for name in names:
            inner = os.path.join(folder, name)
            try:
                apart = os.lstat(inner).st_dev != device
            except (FileNotFoundError, NotADirectoryError):  # whoever uses it goes on
                continue
            # Mounted since the points were read, perhaps.
            if (apart or inner in points) and passes(inner):
                continue
            if apart:
                return inner
            entered.append(name)
        names[:] = entered
    return ""


def users_of(path: str) -> list[str]:
    """Return the processes that have a file or a folder below a path open, by name and id."""
    found = set()
    for process in glob.glob("/proc/[0-9]*"):
        for link in [*glob.glob(f"{process}/fd/*"), f"{process}/cwd", f"{process}/root"]:
            with contextlib.suppress(OSError):
                target = os.readlink(link)
                if target == path or target.startswith(f"{path}/"):
                    with open(f"{process}/comm", encoding="utf-8", errors="replace") as stream:
                        found.add(f"{stream.read().strip()} ({os.path.basename(process)})")
    return sorted(found)


def copy(path: str, to: str) -> None:
    """Make ``to`` equal to ``path``, and prove it.

    :raises CopyError: they differ all the same: something went on writing.
    """
    if not os.path.isdir(to):
        raise CopyError(f"{to} is not there")
    busy = users_of(path)
    if busy:
        raise CopyError(
            f"{path} is in use by {_named(busy)}. Name their units as its users (needed_by), or "
            "stop them for the time"
        )
    demand([*RSYNC, f"{path}/", f"{to}/"])
    proof = ("--dry-run", "--checksum", "--out-format=%n")
    differing = demand([*RSYNC, *proof, f"{path}/", f"{to}/"])
    # Folders whose time alone differs are named with a slash at their end.
    names = [name for name in differing.splitlines() if not name.endswith("/")]
    if names:
        raise CopyError(
            f"{path} and its copy {to} differ in {_named(names)}: something writes there still. "
            "Stop it (users names the units), and run again"
        )


def _held(path: str) -> list[str]:
    try:
        return sorted(os.listdir(path))
    except FileNotFoundError:
        return []
    except NotADirectoryError:
        raise CopyError(f"{path} is no folder, and something is to be mounted there") from None


def _named(names: list[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return f"{', '.join(names[:SHOWN])}{more}"


def resume(folders: list[dict[str, Any]], check_mode: bool) -> tuple[list[str], list[str]]:
    """Start what stands still for a copy; return what did, and what runs again."""
    standstill = Standstill("copy")
    stopped, points = standstill.stopped, btrfs.points()
    # A copy is gone on with until something is mounted where it came from.
    rest = {each["to"] for each in folders if each["path"] not in points}
    notes = [note for note in standstill.notes if note in rest]
    return stopped, stopped if check_mode else standstill.end(notes)


def run(folders: list[dict[str, Any]], remedy: str, check_mode: bool) -> list[dict[str, Any]]:
    """Copy what is to be copied; return that."""
    standstill = Standstill("copy")
    found = to_copy(folders, standstill.notes, remedy)
    if found and not check_mode:
        users = [unit for folder in found for unit in folder["users"]]
        standstill.begin(dict.fromkeys(users), [folder["to"] for folder in found])
        demand_whole([folder["path"] for folder in found])
        for folder in found:
            copy(folder["path"], folder["to"])
    return found


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "folders": {
                "type": "list",
                "elements": "dict",
                "default": [],
                "options": {
                    "path": {"type": "path", "required": True},
                    "to": {"type": "path", "required": True},
                    "allowed": {"type": "bool", "default": False},
                    "users": {"type": "list", "elements": "str", "default": []},
                    "root": {"type": "str", "default": "/"},
                    "filesystem": {"type": "str", "default": ""},
                    "fresh": {"type": "bool", "default": True},
                },
            },
            "remedy": {"type": "str", "default": "Empty it, or allow that it is copied."},
            "state": {"type": "str", "choices": ["copied", "resumed"], "default": "copied"},
        },
        supports_check_mode=True,
    )
    params: dict[str, Any] = module.params
    try:
        with alone(module.check_mode):
            if params["state"] == "resumed":
                stopped, resumed = resume(params["folders"], module.check_mode)
                module.exit_json(changed=bool(stopped), copied=[], resumed=resumed)
            found = run(params["folders"], params["remedy"], module.check_mode)
        paths = [folder["path"] for folder in found]
        shown = "".join(f"{folder['path']}: copied to {folder['to']}\n" for folder in found)
        diff = {"before": "", "after": shown}
        module.exit_json(changed=bool(found), copied=paths, resumed=[], diff=diff)
    except (CopyError, StandstillError, btrfs.BtrfsError, OSError, ValueError) as error:
        module.fail_json(msg=str(error))


if __name__ == "__main__":
    main()
