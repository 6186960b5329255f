#!/usr/bin/python
# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: nas.assistant contributors

from __future__ import annotations

DOCUMENTATION = r"""
---
module: backup_prune
short_description: Delete old restore points of a NAS, from where the NAS has no say
version_added: 0.1.0
description:
  - Deletes what retention drops, and only once all data that stay were read and found sound. What
    a run that was cut off left to delete goes with the next one.
  - Runs where restic is and where the repository may be written to, as on the server that holds it,
    or on the controller with a key that the NAS does not have.
  - A repository that is a folder is pruned only by the user who owns it.
  - Points that are dated after now never count, nor do incomplete ones. Whatever O(keep) says, the
    last three complete ones stay. Choose C(within) longer than it may take until somebody notices
    that a NAS sends junk.
author:
  - The nas.assistant contributors
options:
  host:
    description: The NAS, by the name that its points carry.
    type: str
    required: true
  repository:
    description: The repository, as restic takes it. It may hold a password.
    type: str
    required: true
  password:
    description: What opens it.
    type: str
    required: true
  environment:
    description: Variables for restic, such as keys of a store.
    type: dict
    default: {}
  ca:
    description: Certificate of the server, in PEM. The system's, unless given.
    type: str
    default: ""
  keep:
    description: Retention, as of M(nas.assistant.btrfs_snapshot).
    type: dict
    required: true
  verify:
    description: Percent of the data that are read before anything is deleted.
    type: int
    default: 100
attributes:
  check_mode:
    description: Says what would be deleted, and reads no data.
    support: full
  diff_mode:
    description: Shows the points.
    support: full
"""

EXAMPLES = r"""
- name: Keep three points, and all of the last month
  nas.assistant.backup_prune:
    host: nas1
    repository: /srv/backups/nas1
    password: "{{ lookup('ansible.builtin.file', 'credentials/backup.nas1') }}"
    keep: {last: 3, within: 30d}
  delegate_to: backup.example.com
"""

RETURN = r"""
kept:
  description: Ids of the points that stay, the oldest first.
  type: list
  elements: str
  returned: success
deleted:
  description: Ids of those that do not.
  type: list
  elements: str
  returned: success
"""

import os
import pwd
import tempfile
import time
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.nas.assistant.plugins.module_utils import (
    _backup_plan as plan,
    _snapshot_plan as snapshot_plan,
)
from ansible_collections.nas.assistant.plugins.module_utils._restic import (
    BackupError,
    Point,
    Repository,
)


def shown(points: list[Point]) -> str:
    """Return points as lines of a diff."""
    return "".join(f"{each.short} {snapshot_plan.stamp(each.time)}\n" for each in points)


def check_owner(repository: str) -> None:
    """Refuse to write into a folder of another user's: its server could not read that.

    :raises BackupError: says which user it must be.
    """
    if not os.path.isdir(repository):
        return
    owner = os.stat(repository).st_uid
    if owner != os.geteuid():
        try:
            name = pwd.getpwuid(owner).pw_name
        except KeyError:
            name = str(owner)
        raise BackupError(
            "failed",
            f"repository={repository} belongs to {name}, who could not read what "
            f"{pwd.getpwuid(os.geteuid()).pw_name} leaves there. Give prune.user={name}",
        )


def prune(
    params: dict[str, Any], folder: str, now: int, check: bool
) -> tuple[list[Point], list[Point], bool]:
    """Return the points that there were, those that go, or would, and whether data of earlier ones
    went.

    :param folder: for the password and restic's cache.
    """
    check_owner(params["repository"])
    key, ca = os.path.join(folder, "key"), os.path.join(folder, "ca.pem")
    for path, text in ((key, params["password"]), (ca, params["ca"])):
        with open(os.open(path, os.O_WRONLY | os.O_CREAT, 0o600), "w", encoding="utf-8") as stream:
            stream.write(text)
    repository = Repository(
        location=params["repository"],
        password_file=key,
        cache=os.path.join(folder, "cache"),
        environment={name: str(value) for name, value in params["environment"].items()},
        options=["--cacert", ca] if params["ca"] else [],
    )
    points = repository.points(params["host"])
    gone = plan.drop(points, params["keep"], now)
    if check or not points:
        return points, gone, False
    repository.run("unlock")
    if not gone:
        # What another run deleted that came to no end, as where there was no room.
        return points, gone, repository.delete([])
    share = params["verify"]
    if share:
        words = "--read-data" if share == 100 else f"--read-data-subset={share}%"
        repository.run("check", words)
    try:
        repository.delete([each.id for each in gone])
    except BackupError as error:
        left = {each.id for each in repository.points(params["host"])}
        names = ", ".join(each.short for each in gone if each.id not in left) or "none"
        raise BackupError(
            error.cause, f"{error} Points that were deleted: {names}. Run it again for the rest"
        ) from None
    return points, gone, False


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "host": {"type": "str", "required": True},
            "repository": {"type": "str", "required": True, "no_log": True},
            "password": {"type": "str", "required": True, "no_log": True},
            "environment": {"type": "dict", "default": {}, "no_log": True},
            "ca": {"type": "str", "default": ""},
            "keep": {"type": "dict", "required": True},
            "verify": {"type": "int", "default": 100},
        },
        supports_check_mode=True,
    )
    if not 0 <= module.params["verify"] <= 100:
        module.fail_json(msg=f"verify={module.params['verify']}: give 0 to 100")
    try:
        with tempfile.TemporaryDirectory(dir=module.tmpdir) as folder:
            points, gone, tidied = prune(module.params, folder, int(time.time()), module.check_mode)
    except (BackupError, OSError) as error:
        module.fail_json(msg=str(error))
    kept = [each for each in points if each not in gone]
    module.exit_json(
        changed=bool(gone) or tidied,
        kept=[each.id for each in kept],
        deleted=[each.id for each in gone],
        diff={"before": shown(points), "after": shown(kept)},
    )


if __name__ == "__main__":
    main()
