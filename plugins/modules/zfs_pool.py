#!/usr/bin/python
# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: nas.assistant contributors

from __future__ import annotations

DOCUMENTATION = r"""
---
module: zfs_pool
short_description: Make, adopt, grow and repair a ZFS pool
version_added: 0.1.0
description:
  - Brings the devices of one pool to what is wanted. Makes it where it is not there; takes one that
    is there, in use or not, as it is; adds devices; replaces a failed or a chosen one with its data
    intact; makes mirrors of single disks.
  - No device is written to that anything is on. It must be blank (no signature of a filesystem, a
    RAID, a volume group or a partition table, and zeros in its first 4 MiB), in nobody's use, and
    O(format=true) must be set.
  - M(community.general.zpool) compares a pool with a list of groups by the names of devices, and
    adds and removes groups where they differ, such as where a disk has two names. Take this one
    where the pool holds something.
author:
  - The nas.assistant contributors
requirements:
  - On the NAS, ZFS (C(zfsutils-linux) and the kernel module), and root.
options:
  name:
    description: Name of the pool.
    type: str
    required: true
  uuid:
    description: The pool's guid, where it must be that one.
    type: str
    default: ""
  devices:
    description:
      - All devices that it should stand on. One that is written to must be called by a name below
        C(/dev/disk/by-id) where it has one, since C(/dev/sdb) may be another disk tomorrow.
      - One that it lacks takes the place of one that failed, or else of one that is no longer
        named; further ones are added. Without O(devices), those of a pool stay as they are.
      - One that has failed and is gone may go on being named until there is another.
    type: list
    elements: path
    default: []
  profile:
    description:
      - V(single), V(mirror), V(raidz1), V(raidz2) or V(raidz3). Unless given, of a new pool
        V(mirror), or V(single) on one device.
      - V(mirror) of an even number of devices is pairs. A pool of single disks becomes one of
        mirrors with as many disks more, unless O(profile=single). Other changes ZFS does not
        know.
    type: str
    default: ""
  format:
    description: Whether blank devices among O(devices) may be written to.
    type: bool
    default: false
  properties:
    description: Properties of the topmost filesystem of a new pool.
    type: dict
    default: {}
  wait:
    description: Seconds to wait until what a new device must have is on it. It goes on after that.
    type: int
    default: 60
attributes:
  check_mode:
    description: Says what would be done.
    support: full
  diff_mode:
    description: Shows the steps.
    support: full
notes:
  - A pool that is not in use is imported without mounting any of it.
"""

EXAMPLES = r"""
- name: Make a mirror of two disks
  nas.assistant.zfs_pool:
    name: tank
    devices:
      - /dev/disk/by-id/ata-EXAMPLE-1
      - /dev/disk/by-id/ata-EXAMPLE-2
    format: true
    properties: {compression: lz4, mountpoint: /srv/tank}

- name: Use a pool that is there
  nas.assistant.zfs_pool:
    name: tank
"""

RETURN = r"""
uuid:
  description: Guid of the pool. Empty in check mode where it is to be made.
  type: str
  returned: success
done:
  description: The steps, in order.
  type: list
  elements: str
  returned: success
busy:
  description: Long work that goes on, V(resilver) or V(scrub); else empty.
  type: str
  returned: success
missing:
  description: How many devices failed and are not replaced.
  type: int
  returned: success
errors:
  description: What ZFS says of damaged data; empty where there is none that it knows of.
  type: str
  returned: success
datasets:
  description: The filesystems that are there, by name. None in check mode where the pool is not in
    use yet.
  type: dict
  returned: success
  sample: {"tank/docs": {"mountpoint": "/srv/tank/docs", "mounted": true}}
"""

import os
import time
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.nas.assistant.plugins.module_utils import (
    _block as block,
    _zfs as zfs,
    _zfs_plan as zfs_plan,
)

PAUSE = 0.5  # seconds between looks at long work
# Of a new pool: sectors of 4 KiB, also for disks that say they had 512 bytes; all the room of a
# larger disk in the place of a smaller; and what Linux wants.
POOL = ("-o", "ashift=12", "-o", "autoexpand=on")
DATASET = {"atime": "off", "xattr": "sa", "acltype": "posixacl"}


def disk(path: str) -> str:
    """Return the disk that a path leads to, where it leads to the part of one that ZFS made."""
    real = os.path.realpath(path)
    place = os.path.realpath(f"/sys/class/block/{os.path.basename(real)}")
    if os.path.exists(os.path.join(place, "partition")):
        return f"/dev/{os.path.basename(os.path.dirname(place))}"
    return real


def holders(devices: list[str], leaves: list[zfs.Leaf]) -> dict[str, str]:
    """Return, of each device that is in the pool, the name that the pool has for it."""
    found = {}
    for device in devices:
        real = os.path.realpath(device)
        for leaf in leaves:
            path = leaf.name if leaf.name.startswith("/") else leaf.was
            if real not in (os.path.realpath(path), disk(path)):
                continue
            # A blank one in the place of one that failed is another disk.
            if not leaf.failed or block.holds(device):
                found[device] = leaf.name
    return found


class Run:
    """One run over one pool."""

    def __init__(self, params: dict[str, Any], check_mode: bool) -> None:
        self.params, self.check_mode = params, check_mode
        self.name, self.devices = params["name"], params["devices"]
        real = {os.path.realpath(path) for path in self.devices}
        if len(real) < len(self.devices):
            raise zfs.ZfsError(f"devices={self.devices}: two of them are the same device")
        self.deadline = time.monotonic() + params["wait"]
        self.done: list[str] = []

    def run(self) -> dict[str, Any]:
        """Look, plan, and do; return the module's result."""
        zfs.need(self.name)
        present = zfs.pool(self.name)
        importable = [] if present else zfs.importable()
        pool = zfs_plan.found(self.wish([]), present, importable)
        if pool and not present:
            self.done.append(f"import {pool.name}")
            if self.check_mode:
                return self.result(pool, [])
            zfs.call("zpool", "import", "-N", pool.guid)
            present = zfs.pool(self.name)
        steps = zfs_plan.plan(self.wish(present.leaves if present else []), present)
        block.demand_stable(self.name, steps.overwritten, zfs.ZfsError)
        block.demand_blank(self.name, steps.overwritten, zfs.ZfsError)
        self.carry_out(steps)
        if self.check_mode:
            return self.result(present or zfs.Pool(""), zfs.datasets(self.name) if present else [])
        return self.result(self.wait(), zfs.datasets(self.name))

    def wish(self, leaves: list[zfs.Leaf]) -> zfs_plan.Wish:
        """What the inventory wants, of what is there."""
        return zfs_plan.Wish(
            name=self.name,
            guid=self.params["uuid"],
            devices=tuple(self.devices),
            gone=frozenset(each for each in self.devices if not block.is_there(each)),
            holders=holders(self.devices, leaves),
            profile=self.params["profile"],
            format=self.params["format"],
        )

    def carry_out(self, steps: zfs_plan.Plan) -> None:
        """Do the steps; in check mode, name them."""
        if steps.create:
            self.done.append(f"make a pool of {' '.join(steps.create)}")
            options = list(POOL)
            for key, value in {**DATASET, **self.params["properties"]}.items():
                options += ["-O", f"{key}={value}"]
            # Without -f, so that it looks once more itself.
            self.change("zpool", "create", *options, self.name, *steps.create)
        for word, pairs in (("replace", steps.replace), ("attach", steps.attach)):
            for old, new in pairs:
                self.done.append(f"{word} {old} {'by' if word == 'replace' else 'and'} {new}")
                self.change("zpool", word, self.name, old, new)
        if steps.add:
            self.done.append(f"add {' '.join(steps.add)}")
            self.change("zpool", "add", self.name, *steps.add)

    def change(self, *argv: str) -> None:
        """Run a command unless in check mode."""
        if not self.check_mode:
            zfs.call(*argv)

    def wait(self) -> zfs.Pool:
        """Wait for a resilver as long as allowed; return the pool then."""
        while True:
            found = zfs.pool(self.name)
            if not found:
                raise zfs.ZfsError(f"{self.name} is no longer in use")
            if found.busy != "resilver" or time.monotonic() >= self.deadline:
                return found
            time.sleep(PAUSE)

    def result(self, pool: zfs.Pool, there: list[zfs.Dataset]) -> dict[str, Any]:
        """The module's result."""
        return {
            "changed": bool(self.done),
            "uuid": pool.guid,
            "done": self.done,
            "busy": pool.busy,
            "missing": sum(leaf.failed and not leaf.replaced for leaf in pool.leaves),
            "errors": pool.errors,
            "datasets": {
                each.name: {"mountpoint": each.mountpoint, "mounted": each.mounted}
                for each in there
            },
            "diff": {"before": "", "after": "".join(f"{step}\n" for step in self.done)},
        }


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "name": {"type": "str", "required": True},
            "uuid": {"type": "str", "default": ""},
            "devices": {"type": "list", "elements": "path", "default": []},
            "profile": {"type": "str", "default": ""},
            "format": {"type": "bool", "default": False},
            "properties": {"type": "dict", "default": {}},
            "wait": {"type": "int", "default": 60},
        },
        supports_check_mode=True,
    )
    try:
        module.exit_json(**Run(module.params, module.check_mode).run())
    except (zfs.ZfsError, OSError, ValueError) as error:
        module.fail_json(msg=str(error))


if __name__ == "__main__":
    main()
