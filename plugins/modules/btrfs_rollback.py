#!/usr/bin/python
# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: nas.assistant contributors

from __future__ import annotations

DOCUMENTATION = r"""
---
module: btrfs_rollback
short_description: Bring a subvolume back to one of its snapshots
version_added: 0.1.0
description:
  - Stops what uses the subvolume, keeps its present state as one more snapshot, puts a writable
    copy of the chosen snapshot in its place, mounts that, and starts everything again. The quota
    stays; owner, mode and compression are those of the snapshot.
  - Nothing is lost, not even what is written while it works. To undo it, roll back to the snapshot
    that it kept; retention leaves that one alone until the next rollback of the same subvolume, or
    until its file in C(/var/lib/nas-assistant/holds) is removed.
  - Only snapshots that M(nas.assistant.btrfs_snapshot) made count.
author:
  - The nas.assistant contributors
options:
  path:
    description: The subvolume, at its place below the mounted top level of its filesystem.
    type: path
    required: true
  folder:
    description: The folder with its snapshots.
    type: path
    required: true
  name:
    description: First part of its snapshots' names. The last part of O(path) unless given.
    type: str
    default: ""
  to:
    description: Name of the snapshot, or V(newest).
    type: str
    default: newest
  mount_unit:
    description: Unit of systemd by which the subvolume is mounted beside O(path).
    type: str
    default: ""
  users:
    description: Units of systemd that use it. With V(docker.service), containers are stopped too.
    type: list
    elements: str
    default: []
attributes:
  check_mode:
    description: Says which snapshot it would be.
    support: full
  diff_mode:
    description: Shows the snapshot.
    support: full
"""

EXAMPLES = r"""
- name: Have the documents as they were an hour ago
  nas.assistant.btrfs_rollback:
    path: /srv/tank/documents
    folder: /srv/tank/.snapshots
    to: documents.20261124T090000Z
    mount_unit: srv-documents.mount
    users: [smbd.service]
"""

RETURN = r"""
snapshot:
  description: Name of the snapshot that it was brought back to.
  type: str
  returned: success
kept:
  description: Name of the snapshot of what was there before.
  type: str
  returned: success
resumed:
  description: Units and containers that were started again.
  type: list
  elements: str
  returned: success
"""

import os
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.nas.assistant.plugins.module_utils import (
    _btrfs as btrfs,
    _snapshot_plan as plan,
    _snapshots as snapshots,
)
from ansible_collections.nas.assistant.plugins.module_utils._files import replace
from ansible_collections.nas.assistant.plugins.module_utils._standstill import (
    Standstill,
    StandstillError,
    demand,
)

HOLDS = "/var/lib/nas-assistant/holds"


class Rollback:
    """One rollback of one subvolume."""

    def __init__(self, params: dict[str, Any]) -> None:
        self.path: str = params["path"]
        self.folder: str = params["folder"]
        self.name: str = params["name"] or os.path.basename(self.path)
        self.unit: str = params["mount_unit"]
        self.users: list[str] = params["users"]
        above, last = os.path.split(self.path)
        # The new state before it takes the place, and the old one after that.
        self.draft = os.path.join(above, f".{last}.rollback")
        self.old = os.path.join(above, f".{last}.before")

    def chosen(self, to: str) -> str:
        """Return the name of the snapshot that is meant.

        :raises BtrfsError: there is none of ours by that name; names those that there are.
        """
        try:
            names = sorted(os.listdir(self.folder))
        except FileNotFoundError:
            names = []
        entries = [found for name in names if (found := plan.entry(name))]
        ours = [
            found.text
            for found in entries
            if found.name == self.name and not found.draft and self.is_ours(found.text)
        ]
        if ours and to == "newest":
            return str(ours[-1])
        if to not in ours:
            raise btrfs.BtrfsError(
                f"to={to}: {self.folder} has no such snapshot of {self.name}; there are "
                f"{', '.join(ours) or 'none'}"
            )
        return to

    def is_ours(self, text: str) -> bool:
        """Whether this is a snapshot that btrfs_snapshot made."""
        place = snapshots.look(os.path.join(self.folder, text))
        return bool(place and place.is_subvolume and place.read_only and place.marked)

    def finish(self) -> str:
        """Bring a rollback that was cut off to where this one can begin; return what it kept."""
        if not os.path.lexists(self.path) and snapshots.is_subvolume(self.draft):
            os.rename(self.draft, self.path)
        if snapshots.is_subvolume(self.draft):
            btrfs.call("btrfs", "subvolume", "delete", self.draft)
        return self.keep() if snapshots.is_subvolume(self.old) else ""

    def check(self) -> None:
        """Refuse what would lose something.

        :raises BtrfsError: it is no subvolume, or others lie in it.
        """
        place = snapshots.look(self.path)
        if not place or not place.is_subvolume:
            raise btrfs.BtrfsError(f"path={self.path} is no subvolume of a Btrfs")
        inner = [each.path for each in btrfs.subvolumes(self.path) if each.parent == place.id]
        if inner:
            raise btrfs.BtrfsError(
                f"path={self.path}: other subvolumes lie in it ({', '.join(inner[:5])}), which no "
                "snapshot of it has. Move them away first"
            )

    def keep(self) -> str:
        """Make what was moved aside a snapshot as all others; return its name."""
        os.makedirs(self.folder, mode=0o700, exist_ok=True)
        text, number = "", snapshots.now()
        while not text or os.path.lexists(os.path.join(self.folder, text)):
            text, number = plan.snapshot_text(self.name, number), number + 1
        place = snapshots.look(self.old)
        if not place:
            raise btrfs.BtrfsError(f"{self.old} is gone")
        os.setxattr(self.old, snapshots.ATTRIBUTE, place.uuid.encode())
        # Held before it is there, since retention may look at any time.
        hold = os.path.join(HOLDS, snapshots.hold_name("rollback", self.folder, self.name))
        replace(hold, f"{place.uuid}\n".encode(), 0, 0, 0o600)
        final = os.path.join(self.folder, text)
        # In this order: the kernel moves no subvolume that is read-only.
        os.rename(self.old, final)
        btrfs.call("btrfs", "property", "set", "-ts", final, "ro", "true")
        btrfs.call("btrfs", "filesystem", "sync", final)
        return text

    def swap(self, text: str) -> None:
        """Put a writable copy of a snapshot in the place of the subvolume, which is moved aside."""
        quotas = btrfs.quotas(self.path) or {}
        before = snapshots.look(self.path)
        limit = quotas.get(before.id if before else 0, {}).get("max_referenced", 0)
        btrfs.call("btrfs", "subvolume", "snapshot", os.path.join(self.folder, text), self.draft)
        if limit:
            btrfs.call("btrfs", "qgroup", "limit", str(limit), self.draft)
        os.rename(self.path, self.old)
        os.rename(self.draft, self.path)

    def run(self, text: str) -> tuple[str, list[str]]:
        """Roll back; return what was kept, and what runs again."""
        standstill, kept = Standstill("rollback"), ""
        try:
            standstill.begin(self.users)
            if self.unit:
                demand(["systemctl", "stop", self.unit])
            self.finish()
            self.swap(text)
            kept = self.keep()
        finally:
            # Whatever happened: what is there is better than nothing.
            if self.unit:
                demand(["systemctl", "start", self.unit])
            resumed = standstill.end(kept=kept)
        return kept, resumed


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "path": {"type": "path", "required": True},
            "folder": {"type": "path", "required": True},
            "name": {"type": "str", "default": ""},
            "to": {"type": "str", "default": "newest"},
            "mount_unit": {"type": "str", "default": ""},
            "users": {"type": "list", "elements": "str", "default": []},
        },
        supports_check_mode=True,
    )
    try:
        rollback = Rollback(module.params)
        text = rollback.chosen(module.params["to"])
        kept, resumed = "", list[str]()
        if not module.check_mode:
            if os.path.lexists(rollback.path):
                rollback.check()
            kept, resumed = rollback.run(text)
        diff = {"before": f"{rollback.path}: as it is\n", "after": f"{rollback.path}: {text}\n"}
        module.exit_json(changed=True, snapshot=text, kept=kept, resumed=resumed, diff=diff)
    except (btrfs.BtrfsError, StandstillError, OSError, ValueError) as error:
        module.fail_json(msg=str(error))


if __name__ == "__main__":
    main()
