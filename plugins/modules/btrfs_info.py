#!/usr/bin/python
# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: nas.assistant contributors

from __future__ import annotations

DOCUMENTATION = r"""
---
module: btrfs_info
short_description: Look at Btrfs filesystems, their devices, subvolumes and health
version_added: 0.1.0
description:
  - Says of each filesystem on which devices it stands, how full it is, what errors these had, how
    the last scrub ended, and what subvolumes there are, with their UUIDs and quotas.
  - M(community.general.btrfs_info) says which filesystems and subvolumes there are, and where they
    are mounted. Take this one for UUIDs, read-only flags, RAID profiles, errors, quotas and scrubs.
  - Reads only; nothing is mounted, so of a filesystem that is not, only its devices are known.
author:
  - The nas.assistant contributors
extends_documentation_fragment: [nas.assistant.looks_only]
options:
  filesystem:
    description: UUID, label, or a path of the one filesystem that is meant; all unless given.
    type: str
    default: ""
  subvolumes:
    description: Whether to list subvolumes too. There may be thousands.
    type: bool
    default: true
"""

EXAMPLES = r"""
- name: Look at the pool
  nas.assistant.btrfs_info:
    filesystem: tank
    subvolumes: false
  register: pool

- name: See that every disk is there
  ansible.builtin.assert:
    that: not pool.filesystems[0].devices | selectattr('missing')
"""

RETURN = r"""
filesystems:
  description: What was found. Sizes are bytes.
  type: list
  elements: dict
  returned: always
  contains:
    uuid: {description: UUID of the filesystem, type: str}
    label: {description: "Label, an empty text without one", type: str}
    used: {description: "Bytes used, of data and metadata, each counted once", type: int}
    mounts:
      description: Where it is mounted, each with C(point), C(root) (the subvolume's path from the
        top level, with a slash before it) and C(options).
      type: list
      elements: dict
    devices:
      description: Each with C(id), C(path) (empty where it is missing), C(size), C(used),
        C(missing) and, where the filesystem is mounted, C(errors) (counts of C(read_io),
        C(write_io), C(flush_io), C(corruption), C(generation)).
      type: list
      elements: dict
    profiles:
      description: RAID profiles of C(data), C(metadata) and C(system); more than one while a
        conversion has not ended. Empty where it is not mounted.
      type: dict
    scrub:
      description: The last scrub's C(status) (V(never), V(running), V(finished), V(aborted),
        V(interrupted)), C(started), C(bytes), C(errors), C(uncorrectable). Empty where it is not
        mounted.
      type: dict
    quotas: {description: Whether quotas are on, type: bool}
    subvolumes:
      description: Each with C(id), C(parent), C(path), C(uuid), C(parent_uuid), C(received_uuid),
        C(generation), C(created_generation), C(read_only) and, with quotas, C(referenced),
        C(exclusive), C(max_referenced), C(max_exclusive) (no limit is 0).
      type: list
      elements: dict
"""

import os
from dataclasses import asdict
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.nas.assistant.plugins.module_utils import (
    _btrfs as btrfs,
    _snapshots as snapshots,
)


def meant(
    wish: str, found: list[btrfs.Filesystem], mounts: list[btrfs.Mount]
) -> list[btrfs.Filesystem]:
    """Return the filesystems that a UUID, a label or a path stands for; all without a wish.

    :raises BtrfsError: there is none, or several have this label.
    """
    if not wish:
        return found
    if wish.startswith("/"):
        chosen = [each for each in found if _holds(each, wish, mounts)]
    else:
        chosen = [each for each in found if wish in (each.uuid, each.label)]
    if not chosen:
        known = ", ".join(f"{each.uuid} ({each.label or 'no label'})" for each in found)
        raise btrfs.BtrfsError(
            f"filesystem={wish}: there is no such Btrfs filesystem; there are {known or 'none'}"
        )
    if len(chosen) > 1:
        uuids = ", ".join(each.uuid for each in chosen)
        raise btrfs.BtrfsError(f"filesystem={wish}: {uuids} all have this label; name it by UUID")
    return chosen


def describe(
    filesystem: btrfs.Filesystem, mounts: list[btrfs.Mount], with_subvolumes: bool
) -> dict[str, Any]:
    """Return what the module says of one filesystem."""
    mine = btrfs.mounts_of(filesystem, mounts)
    devices = [{**asdict(device), "missing": device.missing} for device in filesystem.devices]
    found: dict[str, Any] = {
        "uuid": filesystem.uuid,
        "label": filesystem.label,
        "used": filesystem.used,
        "mounts": [
            {"point": each.point, "root": each.root, "options": list(each.options)} for each in mine
        ],
        "devices": devices,
        "profiles": {},
        "scrub": {},
        "quotas": False,
        "subvolumes": [],
    }
    point = snapshots.reached(filesystem.uuid, mine)
    if not point:
        return found
    in_json = ("btrfs", "--format", "json")
    errors = btrfs.parse_errors(btrfs.call(*in_json, "device", "stats", point))
    for device in devices:
        device["errors"] = errors.get(device["id"], {})
    found["profiles"] = btrfs.parse_profiles(btrfs.call(*in_json, "filesystem", "df", point))
    found["scrub"] = btrfs.parse_scrub(btrfs.call("btrfs", "scrub", "status", "-R", point))
    quotas = btrfs.quotas(point)
    found["quotas"] = quotas is not None
    if with_subvolumes:
        found["subvolumes"] = [
            {**asdict(each), **(quotas or {}).get(each.id, {})} for each in btrfs.subvolumes(point)
        ]
    return found


def _holds(filesystem: btrfs.Filesystem, path: str, mounts: list[btrfs.Mount]) -> bool:
    """Whether a path is one of its devices, or lies in one of its mounts."""
    real = os.path.realpath(path)
    if real in {os.path.realpath(device.path) for device in filesystem.devices if device.path}:
        return True
    above = [each for each in mounts if os.path.commonpath([real, each.point]) == each.point]
    # Of those at the deepest point, what was mounted last is what the path leads to.
    deepest = max(reversed(above), key=lambda each: len(each.point), default=None)
    return deepest is not None and deepest in btrfs.mounts_of(filesystem, mounts)


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "filesystem": {"type": "str", "default": ""},
            "subvolumes": {"type": "bool", "default": True},
        },
        supports_check_mode=True,
    )
    try:
        mounts = btrfs.mounts()
        found = meant(module.params["filesystem"], btrfs.filesystems(), mounts)
        listed = [describe(each, mounts, module.params["subvolumes"]) for each in found]
        module.exit_json(changed=False, filesystems=listed)
    except (btrfs.BtrfsError, OSError, ValueError) as error:
        module.fail_json(msg=str(error))


if __name__ == "__main__":
    main()
