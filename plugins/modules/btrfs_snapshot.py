#!/usr/bin/python
# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: nas.assistant contributors

from __future__ import annotations

DOCUMENTATION = r"""
---
module: btrfs_snapshot
short_description: Make read-only snapshots of Btrfs subvolumes, and keep as many as are wanted
version_added: 0.1.0
description:
  - Makes a snapshot of each volume when one is due, names it by the time in UTC, and deletes those
    that retention drops. One call takes all volumes of a NAS.
  - M(community.general.btrfs_subvolume) is enough for one writable snapshot under a name that you
    choose, such as before an upgrade. Take this one for snapshots that are read-only (as an
    incremental transfer needs them), are made again and again, and are cleared away by a rule.
  - A snapshot is known by an extended attribute that carries its own UUID. What has none, or
    another's, is never deleted, whatever its name - neither what somebody else made, nor a replica
    that was received, nor a writable copy of one of ours.
  - After a rollback the snapshots of the subvolume that was there before are still the volume's,
    unless it was only moved aside. Then they count as that one's until it is deleted.
author:
  - The nas.assistant contributors
requirements:
  - On the NAS, C(btrfs) (package C(btrfs-progs)), and root.
options:
  state:
    description:
      - V(present) makes what is due, then deletes what retention drops.
      - V(pruned) only deletes what retention drops.
      - V(absent) deletes the snapshots that the volumes name, also those that retention would keep.
    type: str
    choices: [present, pruned, absent]
    default: present
  volumes:
    description:
      - The subvolumes. When one of them fails, the others are still worked on; then the task fails
        and names it.
    type: list
    elements: dict
    required: true
    suboptions:
      path:
        description: A subvolume, at any of its mounts.
        type: str
        required: true
      folder:
        description:
          - Where its snapshots are. It is made if it is missing, for root alone.
          - It is on the same filesystem, in another subvolume than O(volumes[].path), and only root
            may write in it.
        type: str
        required: true
      name:
        description:
          - What its snapshots are called, as in C(NAME.20250131T040000Z). Unless given, the last
            part of O(volumes[].path).
          - Two volumes with snapshots in one folder need names of their own.
        type: str
      keep:
        description:
          - What retention keeps; all unless given. What one key keeps, no other one drops.
          - V(last) is how many of the newest stay.
          - V(hourly), V(daily), V(weekly), V(monthly) and V(yearly) are how many periods the newest
            snapshot of each stays of, by UTC and ISO weeks. Periods without a snapshot do not
            count.
          - V(within) is an age such as V(7d), counted back from the newest snapshot; all that are
            younger stay. A time without a snapshot counts for a quarter of it at most, so that of a
            NAS that was off for long, or whose clock was ahead for a while, most stay, and go as
            new ones come.
          - V(minimum) is how many stay in any case, V(1) unless given.
        type: dict
      every:
        description:
          - No snapshot is made while one is there that is younger than this - a number with V(s),
            V(m), V(h), V(d) or V(w), such as V(15m). With V(0) each call makes one.
          - A timer is late at times. Give a little less than its interval, such as V(55m) to one
            that runs each hour.
        type: str
        default: "0"
      snapshots:
        description: Names of snapshots to delete. Needed with O(state=absent), and only then.
        type: list
        elements: str
  holds:
    description:
      - Folder with files of one subvolume UUID a line, which may be missing. A snapshot that is
        named there is not deleted, such as the parent that the next incremental transfer needs.
      - Who holds one writes the file first, and then sees that the snapshot is there.
      - While something there makes no sense, snapshots are made, and none is deleted.
    type: str
    default: /var/lib/nas-assistant-storage/holds
attributes:
  check_mode:
    description: Says what would be made and deleted. It does not wait for another run.
    support: full
  diff_mode:
    description: Shows the names before and after.
    support: full
notes:
  - Subvolumes inside of a volume are not in its snapshots; RV(volumes[].excluded) names them.
  - Runs at the same filesystem wait for each other, up to five minutes.
  - While the clock was ahead, snapshots were dated after now. They are neither deleted nor counted
    until their time has come; O(state=absent) deletes them.
"""

EXAMPLES = r"""
- name: Snapshots each hour, kept for a day, a week and a year
  nas.assistant.btrfs_snapshot:
    volumes:
      - path: /tank/photos
        folder: /tank/.snapshots
        every: 55m
        keep: {hourly: 24, daily: 7, monthly: 12}
      - path: /tank/assistant
        folder: /tank/.snapshots
        every: 23h
        keep: {last: 3}

- name: One more before the upgrade, and nothing deleted
  nas.assistant.btrfs_snapshot:
    volumes:
      - path: /tank/assistant
        folder: /tank/.snapshots
        name: before-upgrade

- name: Delete one
  nas.assistant.btrfs_snapshot:
    state: absent
    volumes:
      - path: /tank/photos
        folder: /tank/.snapshots
        snapshots: [photos.20250131T040000Z]
"""

RETURN = r"""
volumes:
  description: What was done for each volume, in the order given; also when the task fails. In check
    mode, what would be done.
  type: list
  elements: dict
  returned: always
  contains:
    path: {description: As it was given, type: str}
    folder: {description: As it was given, type: str}
    name: {description: What its snapshots are called, type: str}
    made: {description: Names of snapshots that were made, type: list, elements: str}
    deleted:
      description: Names of snapshots that were deleted, and of drafts that an interrupted run left.
      type: list
      elements: str
    held:
      description: Names of what would have been deleted if it were not held.
      type: list
      elements: str
    ahead: {description: Names of snapshots that are dated after now, type: list, elements: str}
    foreign:
      description: Names that look like this volume's snapshots or drafts and are not, and so were
        left alone.
      type: list
      elements: str
    excluded:
      description: Paths of subvolumes inside of the volume, which are not in its snapshots.
      type: list
      elements: str
    problems: {description: What failed; empty if nothing did, type: list, elements: str}
"""

from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.nas.assistant.plugins.module_utils import (
    _snapshot_plan as plan,
    _snapshots as snapshots,
)
from ansible_collections.nas.assistant.plugins.module_utils._btrfs import BtrfsError


def describe(outcome: snapshots.Outcome) -> dict[str, Any]:
    """Return what the module says of one volume."""
    wish = outcome.wish
    names = ("made", "deleted", "held", "ahead", "foreign", "excluded", "problems")
    return {
        "path": wish.path,
        "folder": wish.folder,
        "name": wish.name,
        **{name: getattr(outcome, name) for name in names},
    }


def difference(outcome: snapshots.Outcome) -> dict[str, str]:
    """Return the names before and after."""
    return {
        "before_header": f"{outcome.wish.folder} ({outcome.wish.path})",
        "after_header": f"{outcome.wish.folder} ({outcome.wish.path})",
        "before": "".join(f"{text}\n" for text in outcome.before),
        "after": "".join(f"{text}\n" for text in outcome.after),
    }


def left_alone(outcome: snapshots.Outcome) -> list[str]:
    """Return why snapshots are still there that the task wanted to be absent."""
    path = outcome.wish.folder
    return [f"{path}/{text} is held, and was left alone" for text in outcome.held] + [
        f"{path}/{text} is no snapshot of this volume, whatever its name, and was left alone"
        for text in outcome.wish.snapshots
        if text in outcome.foreign
    ]


def main() -> None:
    """Run the module."""
    volume = {
        "path": {"type": "str", "required": True},
        "folder": {"type": "str", "required": True},
        "name": {"type": "str"},
        "keep": {"type": "dict"},
        "every": {"type": "str", "default": "0"},
        "snapshots": {"type": "list", "elements": "str"},
    }
    module = AnsibleModule(
        argument_spec={
            "state": {
                "type": "str",
                "choices": ["present", "pruned", "absent"],
                "default": "present",
            },
            "volumes": {"type": "list", "elements": "dict", "required": True, "options": volume},
            "holds": {"type": "str", "default": plan.HOLDS},
        },
        supports_check_mode=True,
    )
    state = module.params["state"]
    try:
        wishes = plan.wishes(module.params["volumes"], state)
        holds = plan.absolute("holds", module.params["holds"])
    except BtrfsError as error:
        module.fail_json(msg=str(error), volumes=[])
    outcomes = snapshots.carry_out(wishes, state, holds, module.check_mode)
    changed = [outcome for outcome in outcomes if outcome.made or outcome.deleted]
    answer: dict[str, Any] = {
        "changed": bool(changed),
        "volumes": [describe(outcome) for outcome in outcomes],
    }
    if module._diff:
        answer["diff"] = [difference(outcome) for outcome in changed]
    for outcome in outcomes if state == "absent" else []:
        for text in left_alone(outcome):
            module.warn(text)
    failed = [outcome for outcome in outcomes if outcome.problems]
    if failed:
        reasons = [f"{outcome.wish.path}: {'; '.join(outcome.problems)}" for outcome in failed]
        count = f"{len(failed)} of {len(outcomes)} volumes failed. "
        module.fail_json(msg=count + " ".join(reasons), **answer)
    module.exit_json(**answer)


if __name__ == "__main__":
    main()
