#!/usr/bin/python
# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: nas.assistant contributors

from __future__ import annotations

DOCUMENTATION = r"""
---
module: btrfs_pool
short_description: Make, adopt, grow and repair a Btrfs over one or more disks
version_added: 0.1.0
description:
  - Brings the devices and RAID profiles of one Btrfs filesystem to what is wanted. Makes it where
    it is not there; takes one that is there as it is; adds devices; replaces a failed or a chosen
    one with its data intact; takes the room of a larger one; converts profiles; removes devices.
  - No device is written to that anything is on. It must be blank (no signature of a filesystem, a
    RAID, a volume group or a partition table, and zeros in its first 4 MiB), in nobody's use, and
    O(format=true) must be set. To use a disk again, look what is on it and empty it yourself.
  - Long work (replacing, converting, removing) goes on when O(wait) is over, and the next run
    continues with what comes after it.
  - M(community.general.filesystem) makes a Btrfs on one device. Take this one for several, and for
    all that comes after.
author:
  - The nas.assistant contributors
options:
  label:
    description: Label of the filesystem, and what messages call it.
    type: str
    required: true
  uuid:
    description: UUID of a filesystem that is there and is to be used as it is, whatever its label.
    type: str
    default: ""
  devices:
    description:
      - All devices that it should stand on. One that is written to must be called by a name below
        C(/dev/disk/by-id) where it has one, since C(/dev/sdb) may be another disk tomorrow.
      - One that it lacks takes the place of one that is missing, or else of one that is no longer
        named; further ones are added. Without O(devices), those of a filesystem stay as they are.
      - One that has failed and is gone may go on being named until there is another.
    type: list
    elements: path
    default: []
  data:
    description:
      - RAID profile of data; V(single), V(dup), V(raid0), V(raid1), V(raid1c3), V(raid1c4) or
        V(raid10).
      - Empty means as it is; of a new one V(raid1), or V(single) on one device.
      - Where it is empty, and some is mirrored and some is not, as after writes while a device of a
        mirror was missing, what is not is converted once all devices are there.
    type: str
    default: ""
  metadata:
    description:
      - As O(data), of metadata. Of a new one V(raid1), or V(dup) on one device.
    type: str
    default: ""
  format:
    description: Whether blank devices among O(devices) may be written to.
    type: bool
    default: false
  remove:
    description: Whether devices that are no longer named, and that none replaces, are given up.
      Their data is moved to the others before.
    type: bool
    default: false
  wait:
    description: Seconds to wait for long work.
    type: int
    default: 60
attributes:
  check_mode:
    description: Says what would be done, as far as the first long work.
    support: full
  diff_mode:
    description: Shows the steps.
    support: full
"""

EXAMPLES = r"""
- name: Make a mirror of two disks
  nas.assistant.btrfs_pool:
    label: tank
    devices:
      - /dev/disk/by-id/ata-EXAMPLE-1
      - /dev/disk/by-id/ata-EXAMPLE-2
    format: true

- name: Put a new disk in the place of the first, which failed
  nas.assistant.btrfs_pool:
    label: tank
    devices:
      - /dev/disk/by-id/ata-EXAMPLE-3
      - /dev/disk/by-id/ata-EXAMPLE-2
    format: true
    wait: 86400

- name: Use a filesystem that is there
  nas.assistant.btrfs_pool:
    label: tank
    uuid: 2f7c8a1e-0000-4000-8000-000000000001
"""

RETURN = r"""
uuid:
  description: UUID of the filesystem. Empty in check mode where it is to be made.
  type: str
  returned: success
done:
  description: The steps, in order.
  type: list
  elements: str
  returned: success
busy:
  description: Long work that goes on, such as V(device replace) or V(balance); else empty.
  type: str
  returned: success
mounted:
  description: Whether the filesystem was mounted before and still is.
  type: bool
  returned: success
missing:
  description: How many devices are missing and not replaced. Until they are, one more that fails
    may take the data with it.
  type: int
  returned: success
unmirrored:
  description: What of several devices is in one copy or on one device only, and no profile was
    asked for, such as V(data (single\)). The first device that fails takes some of it along.
  type: list
  elements: str
  returned: success
"""

import contextlib
import os
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.nas.assistant.plugins.module_utils import (
    _block as block,
    _btrfs as btrfs,
    _pool_plan as pool_plan,
    _snapshots as snapshots,
)

OPERATION = "/sys/fs/btrfs/{}/exclusive_operation"
# Where a filesystem is mounted while it is worked on, if it is not mounted anyway. Not in
# /run/nas-assistant/pools, where nas-pool-device has a link of the same name.
WORKPLACE = "/run/nas-assistant/pools-at-work"
PAUSE = 0.5  # seconds between looks at long work


def operation(uuid: str) -> str:
    """Return the long work that a mounted filesystem is busy with, or an empty text."""
    with open(OPERATION.format(uuid), encoding="ascii") as stream:
        return stream.read().strip().replace("none", "")


def filesystems() -> list[btrfs.Filesystem]:
    """Return the filesystems on all disks, with the real paths of their devices."""
    return [
        replace(
            each,
            devices=[
                replace(device, path=os.path.realpath(device.path) if device.path else "")
                for device in each.devices
            ],
        )
        for each in btrfs.filesystems()
    ]


@contextlib.contextmanager
def mounted(filesystem: btrfs.Filesystem) -> Iterator[str]:
    """Give a path where the filesystem is mounted; mount it for the time where it is not."""
    own = os.path.join(WORKPLACE, filesystem.uuid)
    mounts = btrfs.mounts_of(filesystem, btrfs.mounts())
    points = [mount.point for mount in mounts]
    point = snapshots.reached(filesystem.uuid, mounts)
    if not point:
        os.makedirs(own, mode=0o700, exist_ok=True)
        present = [device.path for device in filesystem.devices if not device.missing]
        options = "degraded" if len(present) < len(filesystem.devices) else "defaults"
        btrfs.call("mount", "-t", "btrfs", "-o", options, present[0], own)
        point, points = own, [own]
    try:
        yield point
    finally:
        # Long work of this run or an earlier one needs it.
        if own in points and not operation(filesystem.uuid):
            btrfs.call("umount", own)
            os.rmdir(own)


class Pool:
    """One run over one pool."""

    def __init__(self, params: dict[str, Any], check_mode: bool) -> None:
        real = {os.path.realpath(path): path for path in params["devices"]}
        if len(real) < len(params["devices"]):
            raise btrfs.BtrfsError(f"devices={params['devices']}: two of them are the same device")
        self.wish = pool_plan.Wish(
            label=params["label"],
            uuid=params["uuid"],
            devices=tuple(real),
            gone=frozenset(path for path in real if not block.is_there(path)),
            names=real,
            sizes={path: block.room(path) for path in real},
            profiles={"data": params["data"], "metadata": params["metadata"]},
            format=params["format"],
            remove=params["remove"],
        )
        self.check_mode = check_mode
        self.deadline = time.monotonic() + params["wait"]
        self.done: list[str] = []
        self.mounted = False
        self.unmirrored: list[str] = []

    def run(self) -> dict[str, Any]:
        """Look, plan, and do; return the module's result."""
        filesystem = pool_plan.find(self.wish, filesystems())
        if filesystem is None:
            steps = pool_plan.plan(self.wish, None, {})
            self.check(steps)
            self.create(steps)
            made = None if self.check_mode else pool_plan.find(self.wish, filesystems())
            return self.result(made.uuid if made else "", "", 0)
        steps = pool_plan.plan(self.wish, filesystem, {})
        idle = not steps.changes and bool(steps.missing)
        self.mounted = bool(btrfs.mounts_of(filesystem, btrfs.mounts()))
        if (idle or self.check_mode) and not self.mounted:
            # Nothing is mounted for a look alone, least of all without a device.
            self.check(steps)
            self.step(steps, "")  # names them only: there are none outside of check mode
            return self.result(filesystem.uuid, "", len(steps.missing))
        with mounted(filesystem) as point:
            return self.change(filesystem, point)

    def check(self, steps: pool_plan.Plan) -> None:
        """Refuse to write to what is not surely meant, or not blank."""
        names = [self.wish.names[path] for path in steps.overwritten]
        block.demand_stable(self.wish.label, names, btrfs.BtrfsError)
        block.demand_blank(self.wish.label, steps.overwritten, btrfs.BtrfsError)

    def create(self, steps: pool_plan.Plan) -> None:
        """Make the filesystem."""
        self.say(f"make {', '.join(steps.create)} a Btrfs")
        if not self.check_mode:
            options = ["--quiet", "--label", self.wish.label]
            options += ["--data", steps.profiles["data"], "--metadata", steps.profiles["metadata"]]
            # Without --force, so that it looks once more itself.
            btrfs.call("mkfs.btrfs", *options, *steps.create)
            # Others find a filesystem of several devices only once the kernel knows them all.
            btrfs.call("btrfs", "device", "scan", *steps.create)

    def change(self, filesystem: btrfs.Filesystem, point: str) -> dict[str, Any]:
        """Bring one that is there to what is wanted, one step after the other."""
        while True:
            # While one takes another's place, both are named.
            busy = self.wait(filesystem.uuid)
            (filesystem,) = [each for each in filesystems() if each.uuid == filesystem.uuid]
            missing = sum(device.missing for device in filesystem.devices)
            if busy:
                return self.result(filesystem.uuid, busy, missing)
            listing = btrfs.call("btrfs", "--format", "json", "filesystem", "df", point)
            profiles = btrfs.parse_profiles(listing)
            steps = pool_plan.plan(self.wish, filesystem, profiles)
            if len(filesystem.devices) + len(steps.add) > 1:
                kinds = pool_plan.unmirrored(self.wish, profiles)
                self.unmirrored = [f"{kind} ({profile})" for kind, profile in kinds.items()]
            if steps.changes:
                self.check(steps)
                self.step(steps, point)
            if self.check_mode or not steps.changes:
                return self.result(filesystem.uuid, busy, missing)

    def step(self, steps: pool_plan.Plan, point: str) -> None:
        """Do the first step; in check mode, name all."""
        for number, path in steps.replace:
            self.say(f"replace device {number} by {path}")
            # -r: read from a failing one only what no other has.
            if self.did("btrfs", "replace", "start", "-B", "-r", str(number), path, point):
                return
        if steps.add:
            self.say(f"add {', '.join(steps.add)}")
            if self.did("btrfs", "device", "add", *steps.add, point):
                return
        for number in steps.grow:
            self.say(f"let device {number} have all of its room")
            if self.did("btrfs", "filesystem", "resize", f"{number}:max", point):
                return
        if steps.convert:
            self.say(f"convert {', '.join(f'{k} to {p}' for k, p in steps.convert.items())}")
            # soft: what has the profile already is not written again.
            filters = [f"-{kind[0]}convert={name},soft" for kind, name in steps.convert.items()]
            if self.did("btrfs", "balance", "start", *filters, point):
                return
        if steps.remove:
            self.say(f"remove {', '.join(steps.remove)}")
            self.did("btrfs", "device", "remove", *steps.remove, point)

    def did(self, *argv: str) -> bool:
        """Run a command unless in check mode, and leave it running at the deadline; return whether
        it was run."""
        if self.check_mode:
            return False
        with tempfile.TemporaryFile() as said:
            # In a session of its own, so that it outlives the connection.
            process = subprocess.Popen(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=subprocess.STDOUT,
                env={**os.environ, "LC_ALL": "C"},
                start_new_session=True,
            )
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(max(PAUSE, self.deadline - time.monotonic()))
            if process.returncode:
                said.seek(0)
                text = " ".join(said.read().decode(errors="replace").split())
                raise btrfs.BtrfsError(f"{' '.join(argv)}: {text}")
        return True

    def wait(self, uuid: str) -> str:
        """Wait for long work as long as allowed; return what goes on still."""
        while (busy := operation(uuid)) and time.monotonic() < self.deadline:
            if self.check_mode:
                break
            time.sleep(PAUSE)
        return busy

    def say(self, step: str) -> None:
        """Note a step.

        :raises BtrfsError: it was done already, and did not have its effect.
        """
        if step in self.done:
            raise btrfs.BtrfsError(
                f"{self.wish.label}: could not {step}; the kernel's log has the reason "
                "(journalctl -k)"
            )
        self.done.append(step)

    def result(self, uuid: str, busy: str, missing: int) -> dict[str, Any]:
        """The module's result."""
        return {
            "changed": bool(self.done),
            "uuid": uuid,
            "done": self.done,
            "busy": busy,
            "missing": missing,
            "mounted": self.mounted,
            "unmirrored": self.unmirrored,
            "diff": {"before": "", "after": "".join(f"{step}\n" for step in self.done)},
        }


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "label": {"type": "str", "required": True},
            "uuid": {"type": "str", "default": ""},
            "devices": {"type": "list", "elements": "path", "default": []},
            "data": {"type": "str", "default": ""},
            "metadata": {"type": "str", "default": ""},
            "format": {"type": "bool", "default": False},
            "remove": {"type": "bool", "default": False},
            "wait": {"type": "int", "default": 60},
        },
        supports_check_mode=True,
    )
    try:
        module.exit_json(**Pool(module.params, module.check_mode).run())
    except (btrfs.BtrfsError, OSError, ValueError) as error:
        module.fail_json(msg=str(error))


if __name__ == "__main__":
    main()
