#!/usr/bin/python
# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: nas.assistant contributors

from __future__ import annotations

DOCUMENTATION = r"""
---
module: zfs_rollback
short_description: Bring a ZFS dataset back to one of its snapshots, and keep what was there
version_added: 0.1.0
description:
  - Makes a snapshot of what is there, then makes the files as they are in another snapshot. All
    snapshots stay, the later ones too, which C(zfs rollback) would destroy; so this can be undone
    by going back to the one that it made.
  - Files that are the same, by checksum, are not written. Datasets inside of it are left alone.
  - What was there is held (C(zfs holds)) until the next rollback, so that no retention takes it.
  - What uses the dataset stands still for the time, and is started again whatever happens. A run
    that was cut off is finished by running it again.
author:
  - The nas.assistant contributors
requirements:
  - On the NAS, ZFS, C(rsync), and root.
options:
  dataset:
    description: The dataset, which is mounted.
    type: str
    required: true
  to:
    description: Name of the snapshot, without the dataset's, such as C(nas.20250131T040000Z); with
      V(newest), the newest that the NAS made.
    type: str
    default: newest
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
  nas.assistant.zfs_rollback:
    dataset: tank/documents
    to: nas.20261124T090000Z
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
import time
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.nas.assistant.plugins.module_utils import (
    _private as private,
    _zfs as zfs,
    _zfs_snapshots as zfs_snapshots,
)
from ansible_collections.nas.assistant.plugins.module_utils._standstill import (
    Standstill,
    StandstillError,
    demand,
)

WORK = "rollback-zfs"
HOLD = "nas-assistant-rollback"
STAGE = "/run/nas-assistant/rollback"
# All attributes, by checksum: a database may change without its size and its time. What goes does
# so first, since there may be no room for both.
RSYNC = (
    *("rsync", "-aHAX", "--numeric-ids", "--one-file-system", "--delete-before"),
    *("--checksum", "--out-format=%n"),
)


def chosen(name: str, to: str, kept: list[str]) -> str:
    """Return the name of the snapshot that is meant.

    :param kept: what a run that was cut off made, which is no newest one.
    :raises ZfsError: it is not there; names those that are.
    """
    there = zfs.snapshots(name, zfs_snapshots.PROPERTY)
    own = zfs.dataset(name).guid
    ours = [each for each in there if each.mark == own and f"{name}@{each.text}" not in kept]
    if to == "newest" and ours:
        return str(max(ours, key=lambda each: each.time).text)
    if to in [each.text for each in there]:
        return to
    known = ", ".join(each.text for each in there) or "none"
    raise zfs.ZfsError(f"to={to!r} is no snapshot of {name}, which has {known}")


def keep(name: str, standstill: Standstill) -> str:
    """Have what is there as a snapshot; return its name. Of a run that was cut off, the one that it
    made."""
    taken = {each.text for each in zfs.snapshots(name, zfs_snapshots.PROPERTY)}
    for note in standstill.notes:
        dataset, _, text = note.partition("@")
        if dataset == name and text in taken:
            return str(text)
    text = zfs_snapshots.make(name, int(time.time()))
    zfs.call("zfs", "hold", HOLD, f"{name}@{text}")
    standstill.notes = [*standstill.notes, f"{name}@{text}"]
    standstill.save()
    return str(text)


def release(name: str, kept: str) -> None:
    """Let go of what earlier rollbacks kept."""
    for each in zfs.snapshots(name, zfs_snapshots.PROPERTY):
        if each.held and each.text != kept:
            tags = zfs.call("zfs", "holds", "-H", f"{name}@{each.text}")
            if HOLD in [line.split("\t")[1] for line in tags.splitlines()]:
                zfs.call("zfs", "release", HOLD, f"{name}@{each.text}")


def bring_back(dataset: zfs.Dataset, text: str) -> None:
    """Make the files as they are in a snapshot, and prove it."""
    private.mount(f"{dataset.name}@{text}", STAGE, "ro", "zfs")
    try:
        demand([*RSYNC, f"{STAGE}/", f"{dataset.mountpoint}/"])
        differing = demand([*RSYNC, "--dry-run", f"{STAGE}/", f"{dataset.mountpoint}/"])
    finally:
        private.unmount(STAGE)
    # Folders whose time alone differs end with a slash.
    names = [line for line in differing.splitlines() if not line.endswith("/")]
    if names:
        raise zfs.ZfsError(
            f"{dataset.mountpoint} still differs in {', '.join(names[:5])}: something writes "
            "there. Stop it (users names the units), and run again"
        )


def roll_back(name: str, text: str, users: list[str]) -> tuple[str, list[str]]:
    """Roll back; return what was kept, and what runs again.

    :raises ZfsError: the dataset is not mounted.
    """
    dataset = zfs.dataset(name)
    if not dataset.mounted or not os.path.isdir(dataset.mountpoint):
        raise zfs.ZfsError(
            f"dataset={name} is not mounted ({dataset.mountpoint}): zfs mount {name}"
        )
    private.enter()
    standstill, notes, kept = Standstill(WORK), None, ""
    try:
        standstill.begin(users)
        kept = keep(name, standstill)
        bring_back(dataset, text)
        release(name, kept)
        notes = [note for note in standstill.notes if note.partition("@")[0] != name]
    finally:
        # Where it failed, the next run must know what was there at first.
        resumed = standstill.end(standstill.notes if notes is None else notes, kept=kept)
    return kept, resumed


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "dataset": {"type": "str", "required": True},
            "to": {"type": "str", "default": "newest"},
            "users": {"type": "list", "elements": "str", "default": []},
        },
        supports_check_mode=True,
    )
    params: dict[str, Any] = module.params
    try:
        text = chosen(params["dataset"], params["to"], Standstill(WORK).notes)
        kept, resumed = "", list[str]()
        if not module.check_mode:
            kept, resumed = roll_back(params["dataset"], text, params["users"])
        before, after = f"{params['dataset']}: as it is\n", f"{params['dataset']}: {text}\n"
        diff = {"before": before, "after": after}
        module.exit_json(changed=True, snapshot=text, kept=kept, resumed=resumed, diff=diff)
    except (zfs.ZfsError, StandstillError, private.MountError, OSError, ValueError) as error:
        module.fail_json(msg=str(error))


if __name__ == "__main__":
    main()
