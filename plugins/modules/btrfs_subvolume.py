#!/usr/bin/python
# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: nas.assistant contributors

from __future__ import annotations

DOCUMENTATION = r"""
---
module: btrfs_subvolume
short_description: Make subvolumes with their compression, quota, owner and copy-on-write
version_added: 0.1.0
description:
  - Makes the subvolumes that are missing, and brings those that are there to what is wanted, all of
    one filesystem in one call. What is not given stays as it is. Nothing is ever deleted.
  - M(community.general.btrfs_subvolume) makes, deletes and snapshots single subvolumes. Take this
    one for compression, quotas and copy-on-write, which it does not know.
author:
  - The nas.assistant contributors
options:
  pool:
    description: Where the top level of the filesystem is mounted.
    type: path
    required: true
  filesystem:
    description: UUID of the filesystem that must be the one at O(pool). Any unless given.
    type: str
    default: ""
  subvolumes:
    description: What there should be.
    type: list
    elements: dict
    required: true
    suboptions:
      path:
        description: Path below O(pool), without a slash before it. Folders above it are made.
        type: str
        required: true
      owner:
        description: Name or number of the owner of its topmost folder.
        type: str
      group:
        description: Name or number of the group.
        type: str
      mode:
        description: Octal mode, quoted.
        type: str
      compression:
        description: V(zstd), V(lzo), V(zlib) or V(none) for what is written from now on; it stands
          above the mount option. Empty takes it away again.
        type: str
      copy_on_write:
        description:
          - V(false) writes files in place from now on, which databases and images of machines gain
            from. Btrfs then keeps no checksums of them and does not compress them, so a mirror
            cannot tell which copy of a damaged block is the right one.
          - Files that are there keep what they have.
        type: bool
      quota:
        description: Most that it may refer to, such as V(20G), with K, M, G or T; V(none) for no
          limit. Quotas of the filesystem are switched on where one is wanted.
        type: str
  wait:
    description: Seconds to wait until what is there is counted, where quotas are switched on. It is
      counted to its end all the same.
    type: int
    default: 60
attributes:
  check_mode:
    description: Says what would be done.
    support: full
  diff_mode:
    description: Shows what each subvolume has, and what it would have.
    support: full
"""

EXAMPLES = r"""
- name: Make room for documents and for databases
  nas.assistant.btrfs_subvolume:
    pool: /srv/tank
    subvolumes:
      - path: documents
        owner: alice
        compression: zstd
        quota: 200G
      - path: databases
        mode: "0700"
        copy_on_write: false
"""

RETURN = r"""
made:
  description: Paths of the subvolumes that were missing.
  type: list
  elements: str
  returned: success
altered:
  description: Paths of those that were there and were altered.
  type: list
  elements: str
  returned: success
"""

import contextlib
import os
import re
import stat
import subprocess
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.nas.assistant.plugins.module_utils import (
    _btrfs as btrfs,
    _snapshots as snapshots,
)
from ansible_collections.nas.assistant.plugins.module_utils._commands import run
from ansible_collections.nas.assistant.plugins.module_utils._files import (
    FilesError,
    group_id,
    user_id,
)
from ansible_collections.nas.assistant.plugins.module_utils._sizes import bytes_of

COMPRESSIONS = ("", "zstd", "lzo", "zlib", "none")
State = dict[str, Any]


def wanted(entry: dict[str, Any]) -> State:
    """Return what an entry asks for, in the words of ``look``; what it leaves out is missing.

    :raises BtrfsError: it cannot be understood.
    """
    path = entry["path"]
    parts = path.split("/")
    if not path or path.startswith("/") or {"", ".", ".."} & set(parts) or "\n" in path:
        raise btrfs.BtrfsError(f"path={path!r}: give a path below the pool, such as apps/state")
    found: State = {}
    for key, lookup in (("owner", user_id), ("group", group_id)):
        if entry.get(key) is not None:
            found[key] = lookup(entry[key], path)
    if entry.get("mode") is not None:
        if not re.fullmatch(r"0?[0-7]{3,4}", entry["mode"]):
            raise btrfs.BtrfsError(f"{path}: mode={entry['mode']!r} is no octal mode such as 0750")
        found["mode"] = f"{int(entry['mode'], 8):04o}"
    if entry.get("compression") is not None:
        if entry["compression"] not in COMPRESSIONS:
            raise btrfs.BtrfsError(
                f"{path}: compression={entry['compression']!r} is none of "
                f"{', '.join(COMPRESSIONS[1:])}; a level is a mount option of the whole pool"
            )
        found["compression"] = entry["compression"]
    if entry.get("copy_on_write") is not None:
        found["copy_on_write"] = entry["copy_on_write"]
    if found.get("copy_on_write") is False and found.get("compression") not in (None, "", "none"):
        raise btrfs.BtrfsError(
            f"{path}: compression={found['compression']} and copy_on_write=false exclude each other"
        )
    if entry.get("quota") is not None:
        try:
            found["quota"] = bytes_of(entry["quota"])
        except ValueError as error:
            raise btrfs.BtrfsError(f"{path}: quota={error}") from None
    return found


def look(place: str, quotas: dict[int, dict[str, int]], number: int) -> State:
    """Return what a subvolume has.

    :param number: its id.
    """
    status = os.stat(place, follow_symlinks=False)
    said = btrfs.call("btrfs", "property", "get", place, "compression").strip()
    compression = said.partition("=")[2]
    flags = btrfs.call("lsattr", "-d", place).split(maxsplit=1)[0]
    return {
        "owner": status.st_uid,
        "group": status.st_gid,
        "mode": f"{stat.S_IMODE(status.st_mode):04o}",
        "compression": "none" if compression == "no" else compression,
        "copy_on_write": "C" not in flags,
        "quota": quotas.get(number, {}).get("max_referenced", 0),
    }


class Subvolumes:
    """One run over the subvolumes of one filesystem."""

    def __init__(self, params: dict[str, Any], check_mode: bool) -> None:
        self.pool: str = params["pool"]
        self.filesystem: str = params["filesystem"]
        self.wait: int = params["wait"]
        self.check_mode = check_mode
        self.wishes = {entry["path"]: wanted(entry) for entry in params["subvolumes"]}
        if len(self.wishes) < len(params["subvolumes"]):
            raise btrfs.BtrfsError("subvolumes: one path is given twice")
        self.made: list[str] = []
        self.altered: list[str] = []
        self.diff: list[dict[str, str]] = []

    def run(self) -> dict[str, Any]:
        """Look, and change what differs; return the module's result."""
        if not any(
            mount.point == os.path.realpath(self.pool) and mount.root == "/"
            for mount in btrfs.mounts()
        ):
            raise btrfs.BtrfsError(f"pool={self.pool}: no top level of a Btrfs is mounted there")
        place = snapshots.look(self.pool)
        if self.filesystem and (not place or place.filesystem != self.filesystem):
            raise btrfs.BtrfsError(
                f"pool={self.pool}: another filesystem than {self.filesystem} is mounted there. "
                "Unmount it first"
            )
        for path in self.wishes:
            self.check(path)
        quotas = btrfs.quotas(self.pool)
        if quotas is None and any(wish.get("quota") for wish in self.wishes.values()):
            self.switch_on_quotas()
            quotas = {}
        numbers = {each.path: each.id for each in btrfs.subvolumes(self.pool)}
        # Those first that others lie in, in whatever order they were given.
        for path, wish in sorted(self.wishes.items(), key=lambda item: item[0].count("/")):
            self.settle(path, wish, quotas or {}, numbers.get(path))
        return {
            "changed": bool(self.diff),
            "made": [path for path in self.wishes if path in self.made],
            "altered": [path for path in self.wishes if path in self.altered],
            "diff": self.diff,
        }

    def check(self, path: str) -> None:
        """Refuse, before anything changes, what is there and is no subvolume."""
        place = self.pool
        for part in path.split("/"):
            place = os.path.join(place, part)
            if os.path.islink(place) or (os.path.lexists(place) and not os.path.isdir(place)):
                raise btrfs.BtrfsError(f"{place} is no folder, and a subvolume should be there")
        above, last = os.path.split(place)
        for rest in (f".{last}.before", f".{last}.rollback"):
            if os.path.lexists(os.path.join(above, rest)):
                raise btrfs.BtrfsError(
                    f"{os.path.join(above, rest)} is left of a rollback that was cut off: run that "
                    "rollback again, which finishes it and starts what stands still since"
                )
        if os.path.lexists(place) and not snapshots.is_subvolume(place):
            raise btrfs.BtrfsError(
                f"{place} is a plain folder, and should be a subvolume. Move it aside, run this "
                "again, and move its content in"
            )

    def switch_on_quotas(self) -> None:
        """Have the filesystem count what each subvolume uses."""
        self.diff.append({"before": "quotas: off\n", "after": "quotas: on\n"})
        if not self.check_mode:
            btrfs.call("btrfs", "quota", "enable", self.pool)
            # What is there already is counted once, by the kernel, for hours perhaps; limits hold
            # from then on. The command only asks for it and waits; it fails where it is at it.
            command = ["btrfs", "quota", "rescan", "-w", self.pool]
            with contextlib.suppress(subprocess.TimeoutExpired):
                done = run(command, max(1, self.wait))
                if done.returncode not in (0, 1):
                    said = " ".join(done.stderr.split())
                    raise btrfs.BtrfsError(f"{' '.join(command)}: {said}")

    def settle(
        self, path: str, wish: State, quotas: dict[int, dict[str, int]], number: int | None
    ) -> None:
        """Make one subvolume, or alter what differs."""
        place = os.path.join(self.pool, path)
        before: State = {}
        if number is None:
            self.made.append(path)
            if not self.check_mode:
                os.makedirs(os.path.dirname(place), mode=0o755, exist_ok=True)
                btrfs.call("btrfs", "subvolume", "create", "--", place)
                before = look(place, {}, 0)
        else:
            before = look(place, quotas, number)
        differing = {key: value for key, value in wish.items() if before.get(key) != value}
        if not self.check_mode:
            for key, value in differing.items():
                alter(place, key, value)
        if number is not None and differing:
            self.altered.append(path)
        if number is None or differing:
            shown = {key: before.get(key) for key in differing} if number is not None else {}
            self.diff.append({
                "before_header": place,
                "after_header": place,
                "before": "".join(f"{key}: {value}\n" for key, value in shown.items()),
                "after": "".join(f"{key}: {value}\n" for key, value in differing.items()),
            })  # fmt: skip


def alter(place: str, key: str, value: Any) -> None:
    """Give a subvolume one thing that it should have."""
    if key == "owner":
        os.chown(place, value, -1, follow_symlinks=False)
    elif key == "group":
        os.chown(place, -1, value, follow_symlinks=False)
    elif key == "mode":
        os.chmod(place, int(value, 8))
    elif key == "compression":
        btrfs.call("btrfs", "property", "set", place, "compression", value)
    elif key == "copy_on_write":
        btrfs.call("chattr", "-C" if value else "+C", place)
    elif key == "quota":
        btrfs.call("btrfs", "qgroup", "limit", str(value or "none"), place)


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "pool": {"type": "path", "required": True},
            "filesystem": {"type": "str", "default": ""},
            "subvolumes": {
                "type": "list",
                "elements": "dict",
                "required": True,
                "options": {
                    "path": {"type": "str", "required": True},
                    "owner": {"type": "str"},
                    "group": {"type": "str"},
                    "mode": {"type": "str"},
                    "compression": {"type": "str"},
                    "copy_on_write": {"type": "bool"},
                    "quota": {"type": "str"},
                },
            },
            "wait": {"type": "int", "default": 60},
        },
        supports_check_mode=True,
    )
    try:
        module.exit_json(**Subvolumes(module.params, module.check_mode).run())
    except (btrfs.BtrfsError, FilesError, OSError, ValueError) as error:
        module.fail_json(msg=str(error))


if __name__ == "__main__":
    main()
