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
  - What was there is held (C(zfs holds)) until a rollback a week or more later, so that no
    retention takes it.
  - What uses the dataset stands still for the time, and is started again whatever happens. A run
    that was cut off is finished by running it again. Where it had changed nothing yet,
    O(state=resumed) starts what it had stopped.
author:
  - The nas.assistant contributors
requirements:
  - On the NAS, ZFS, C(rsync), and root.
options:
  dataset:
    description: The dataset, which is mounted. Needed with O(state=rolled_back).
    type: str
  to:
    description: Name of the snapshot, without the dataset's, such as C(nas.20250131T040000Z); with
      V(newest), the newest that the NAS made, that is not dated after now and that no rollback
      kept, so that the same again does not bring back what was to go.
    type: str
    default: newest
  users:
    description: Units of systemd that use it. With V(docker.service), containers are stopped too.
    type: list
    elements: str
    default: []
  state:
    description: V(rolled_back) brings it back. V(resumed) starts what a run that was cut off left
      standing, of whatever dataset; it refuses to where that one is not whole.
    type: str
    choices: [rolled_back, resumed]
    default: rolled_back
attributes:
  check_mode:
    description: Says which snapshot it would be, and refuses what would be refused.
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
  returned: with O(state=rolled_back)
kept:
  description: Name of the snapshot of what was there before.
  type: str
  returned: with O(state=rolled_back)
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
    _snapshots as snapshots,
    _zfs as zfs,
    _zfs_snapshots as zfs_snapshots,
)
from ansible_collections.nas.assistant.plugins.module_utils._standstill import (
    Standstill,
    StandstillError,
    alone,
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
    # To what a rollback kept, one goes back by its name: the same command twice would bring it back
    # otherwise.
    earlier = {
        each.text for each in zfs.snapshots(name, zfs_snapshots.KEPT) if each.mark == own != ""
    }
    now = int(time.time())
    ours = [each for each in ours if each.text not in earlier and each.time <= now]
    if to == "newest" and ours:
        return str(max(ours, key=lambda each: each.time).text)
    if to in [each.text for each in there]:
        return to
    known = ", ".join(each.text for each in there) or "none"
    apart = ", which others made, rollbacks kept or which are dated after now: name one"
    raise zfs.ZfsError(
        f"to={to!r} is no snapshot of {name}, which has {known}"
        f"{apart if to == 'newest' and there else ''}"
    )


def demand_whole(standstill: Standstill, but: str = "") -> None:
    """Refuse to go on where a rollback was cut off in its midst.

    :param but: the dataset that is worked on.
    :raises ZfsError: another one may be half of one state and half of another; says what stands
        still.
    """
    others = [name for note in standstill.notes if (name := note.partition("@")[0]) != but]
    # Of one that failed, all was started again, and its owner was told.
    if others and standstill.stopped:
        raise zfs.ZfsError(
            f"{', '.join(others)}: a rollback was cut off, and {', '.join(standstill.stopped)} "
            "stand still. Run that rollback again: it is finished then, and what stands still is "
            f"started. If there is nothing to bring back any more, remove {standstill.path}"
        )


def resume(check_mode: bool) -> list[str]:
    """Start what a rollback that was cut off left standing; return what runs again."""
    standstill = Standstill(WORK)
    demand_whole(standstill)
    resumed: list[str] = standstill.stopped
    if resumed and not check_mode:
        resumed = standstill.end(standstill.notes)
    return resumed


def keep(name: str, standstill: Standstill) -> str:
    """Have what is there as a snapshot; return its name. Of a run that was cut off, the one that it
    made."""
    taken = {each.text for each in zfs.snapshots(name, zfs_snapshots.PROPERTY)}
    for note in standstill.notes:
        dataset, _, text = note.partition("@")
        if dataset == name and text in taken:
            return str(text)
    text = zfs_snapshots.make(name, int(time.time()), kept=True)
    zfs.call("zfs", "hold", HOLD, f"{name}@{text}")
    standstill.notes = [*standstill.notes, f"{name}@{text}"]
    standstill.save()
    return str(text)


def release(name: str, kept: str) -> None:
    """Let go of what rollbacks kept that are long past."""
    for each in zfs.snapshots(name, zfs_snapshots.PROPERTY):
        if each.held and each.text != kept and time.time() - each.time >= snapshots.HELD:
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
            "dataset": {"type": "str"},
            "to": {"type": "str", "default": "newest"},
            "users": {"type": "list", "elements": "str", "default": []},
            "state": {
                "type": "str",
                "choices": ["rolled_back", "resumed"],
                "default": "rolled_back",
            },
        },
        required_if=[("state", "rolled_back", ("dataset",))],
        supports_check_mode=True,
    )
    params: dict[str, Any] = module.params
    try:
        with alone(module.check_mode):
            if params["state"] == "resumed":
                resumed = resume(module.check_mode)
                module.exit_json(changed=bool(resumed), resumed=resumed)
            standstill = Standstill(WORK)
            demand_whole(standstill, params["dataset"])
            text = chosen(params["dataset"], params["to"], standstill.notes)
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
