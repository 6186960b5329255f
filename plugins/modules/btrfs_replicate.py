#!/usr/bin/python
# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: nas.assistant contributors

from __future__ import annotations

DOCUMENTATION = r"""
---
module: btrfs_replicate
short_description: Replicate read-only snapshots to another Btrfs, here or over SSH
version_added: 0.1.0
description:
  - Sends snapshots called NAME.YYYYMMDDTHHMMSSZ, such as M(nas.assistant.btrfs_snapshot) makes, to
    a folder on another filesystem, with C(btrfs send) and C(btrfs receive). Only what changed since
    the newest snapshot that both sides have goes through; without such a parent, all of it.
  - A replica has its final name only when it is whole and verified. Until then it lies in
    C(.incoming-NAME) of the destination. What an interrupted run left there is removed by the next
    one, which goes on from the last whole replica.
  - A replica is known by its name, its received UUID and its read-only flag. All else at the
    destination is left alone; where it has the very name that a snapshot is to get, the module
    fails. The one exception is what an interrupted C(btrfs receive) of somebody else left by that
    name, which is removed - writable, and never received.
  - Give each source a destination folder of its own. O(keep_last) cannot tell replicas of one name
    that come from two machines.
  - One run at a time sends from a folder to the same destination; another one waits for up to five
    minutes.
author:
  - The nas.assistant contributors
requirements:
  - Root, C(btrfs) (package C(btrfs-progs)) on both sides.
  - For O(ssh), C(ssh) here, and there C(python3) and a shell as POSIX has it.
options:
  source:
    description: Folder with the snapshots.
    type: str
    required: true
  name:
    description:
      - First part of the snapshots' names. Only read-only ones called exactly
        NAME.YYYYMMDDTHHMMSSZ count.
    type: str
    required: true
  destination:
    description:
      - Folder for the replicas, which must exist. It must be on another Btrfs than the source, and
        unless O(ssh) is given on other disks too.
      - Nobody but root should be able to write to it. Others could put there what passes
        for a replica; only O(verify=content) sees through that.
    type: str
    required: true
  ssh:
    description:
      - How to reach the destination; without it, it is a folder of this machine.
      - The user's SSH configuration, agent and shared connections are not used, and a host key
        that is not known is refused.
    type: dict
    suboptions:
      host:
        description: Name or address.
        type: str
        required: true
      port:
        description: Port.
        type: int
        default: 22
      user:
        description: User to log in as.
        type: str
        default: root
      identity_file:
        description: Private key without a passphrase; C(~/.ssh/id_*) unless given.
        type: str
      known_hosts_file:
        description: The only file with host keys that count; those of the user and of the machine
          unless given.
        type: str
      become:
        description: Whether to use C(sudo) there, which must ask for no password.
        type: bool
        default: false
  select:
    description:
      - V(newest) replicates the newest snapshot only.
      - V(all) replicates every one that is missing; with O(keep_last), as many as that.
    type: str
    choices: [newest, all]
    default: newest
  keep_last:
    description:
      - How many replicas stay at the destination, V(1) or more; all unless given.
      - The others are removed, the oldest first, after all that was to be sent is there and
        verified. Snapshots that this run was to replicate stay in any case.
    type: int
  verify:
    description:
      - V(received) trusts C(btrfs receive), which checks a checksum of each command, and compares
        the number of entries and their bytes.
      - V(content) reads both sides and compares paths, types, modes, owners, times, links,
        extended attributes and the SHA-256 of each file. It does so in each run, also for what was
        replicated earlier and is wanted by O(select).
    type: str
    choices: [received, content]
    default: received
  holds:
    description:
      - Folder for a file with the UUID of the snapshot that the next run needs as parent, so that
        M(nas.assistant.btrfs_snapshot) does not remove it. While a run sends, the file names all
        snapshots that it needs.
      - The file is called after O(name) and O(destination). Remove it when this replication is
        given up.
    type: str
    default: /var/lib/nas-assistant-storage/holds
  timeout:
    description: Seconds without a byte until a transfer is given up.
    type: int
    default: 600
  state:
    description: The replicas are there.
    type: str
    choices: [present]
    default: present
attributes:
  check_mode:
    description: Looks at both sides, and says what would be sent and removed.
    support: full
  diff_mode:
    description: Shows which replicas are at the destination before and after.
    support: full
"""

EXAMPLES = r"""
- name: Replicate the newest snapshot to the disk at /mnt/weekly, and keep three there
  nas.assistant.btrfs_replicate:
    source: /srv/tank/.snapshots/state
    name: state
    destination: /mnt/weekly/state
    keep_last: 3
    verify: content

- name: Replicate all snapshots to another NAS
  nas.assistant.btrfs_replicate:
    source: /srv/tank/.snapshots/state
    name: state
    destination: /srv/replicas/nas1
    select: all
    keep_last: 14
    ssh:
      host: nas2.example.net
      user: replica
      become: true
      identity_file: /etc/nas-assistant/replica.key
      known_hosts_file: /etc/nas-assistant/replica.known_hosts
"""

RETURN = r"""
sent:
  description: What was sent, in order; in check mode what would be, without bytes and seconds. When
    the module fails, all that it had completed until then, as in the other values.
  type: list
  elements: dict
  returned: always
  contains:
    name: {description: Name of the snapshot and of its replica, type: str}
    parent: {description: The snapshot it was sent from; null for all of it, type: str}
    bytes: {description: Bytes that went through, type: int}
    seconds: {description: Seconds that it took, type: float}
deleted:
  description: Subvolumes that were removed at the destination, by their paths in it - what
    interrupted runs left, and old replicas.
  type: list
  elements: str
  returned: always
present:
  description: Names of the whole replicas at the destination, the oldest first; in check mode those
    that are there now.
  type: list
  elements: str
  returned: always
held:
  description: UUIDs of the snapshots that the next run needs as parent.
  type: list
  elements: str
  returned: always
"""

from collections.abc import Iterable
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.nas.assistant.plugins.module_utils._replicate import Outcome, Replication
from ansible_collections.nas.assistant.plugins.module_utils._replicate_plan import (
    HOLDS,
    ReplicateError,
    Wish,
)


def answer(outcome: Outcome, destination: str) -> dict[str, Any]:
    """Return the module's result."""
    lost = set(outcome.deleted)
    after = ({*outcome.before} - lost) | {each["name"] for each in outcome.sent}
    return {
        "changed": outcome.changed,
        "sent": outcome.sent,
        "deleted": outcome.deleted,
        "present": outcome.present,
        "held": outcome.held,
        "diff": {
            "before_header": destination,
            "after_header": destination,
            "before": _lines({*outcome.before, *lost}),
            "after": _lines(after),
        },
    }


def _lines(names: Iterable[str]) -> str:
    return "".join(f"{name}\n" for name in sorted(names))


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "source": {"type": "str", "required": True},
            "name": {"type": "str", "required": True},
            "destination": {"type": "str", "required": True},
            "ssh": {
                "type": "dict",
                "options": {
                    "host": {"type": "str", "required": True},
                    "port": {"type": "int", "default": 22},
                    "user": {"type": "str", "default": "root"},
                    "identity_file": {"type": "str"},
                    "known_hosts_file": {"type": "str"},
                    "become": {"type": "bool", "default": False},
                },
            },
            "select": {"type": "str", "choices": ["newest", "all"], "default": "newest"},
            "keep_last": {"type": "int"},
            "verify": {"type": "str", "choices": ["received", "content"], "default": "received"},
            "holds": {"type": "str", "default": HOLDS},
            "timeout": {"type": "int", "default": 600},
            "state": {"type": "str", "choices": ["present"], "default": "present"},
        },
        supports_check_mode=True,
    )
    outcome, goal = Outcome(), ""
    try:
        wish = Wish.of(module.params)
        run = Replication(wish)
        outcome, goal = run.outcome, wish.goal
        run.foretell() if module.check_mode else run.carry_out()
    except (ReplicateError, OSError) as error:
        module.fail_json(msg=str(error), **answer(outcome, goal))
    module.exit_json(**answer(outcome, goal))


if __name__ == "__main__":
    main()
