#!/usr/bin/python
# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: nas.assistant contributors

from __future__ import annotations

DOCUMENTATION = r"""
---
module: status_info
short_description: How a NAS is that was built with this collection
version_added: 0.1.0
description:
  - Looks at the assistant, its certificate, the room that is left, disks and pools, the age of
    snapshots and copies, services that failed, and how old the packages are.
  - Needs no key and no package, and wakes no disk. What a role did not set up is left out of the
    answer.
author:
  - The nas.assistant contributors
extends_documentation_fragment: [nas.assistant.looks_only]
options:
  container:
    description: Name of the assistant's container.
    type: str
    default: nas-assistant
  socket:
    description: The service's Unix socket on the NAS.
    type: path
    default: /var/lib/nas-assistant/run/gateway.sock
  certificates:
    description: Certificates on the NAS. One that is not there is left out.
    type: list
    elements: path
    default: [/etc/nas-assistant/tls/server.crt]
  paths:
    description: Folders whose filesystems are of interest.
    type: list
    elements: path
    default: [/]
"""

EXAMPLES = r"""
- name: Look how the NAS is
  nas.assistant.status_info:
    paths: [/, /var/lib/docker, /var/lib/nas-assistant]
  register: status
"""

RETURN = r"""
now:
  description: The NAS's own time. All times are seconds since the epoch; 0 stands for never.
  type: int
  returned: success
assistant:
  description: C(state) of the container (V(missing) where there is none), C(since) when,
    C(restarts), C(image), C(version); whether the service is C(ready), and the C(reason) why not;
    its C(models).
  type: dict
  returned: success
certificates:
  description: Each with C(path), and C(expires), 0 where it cannot be read.
  type: list
  elements: dict
  returned: success
rooms:
  description: Filesystems that O(paths) lie in, as of M(nas.assistant.nas_info).
  type: list
  elements: dict
  returned: success
drives:
  description: Disks, as of M(nas.assistant.nas_info).
  type: list
  elements: dict
  returned: success
pools:
  description: Pools of Btrfs, md and ZFS, each with C(name), C(kind), and its C(problems).
  type: list
  elements: dict
  returned: success
snapshots:
  description: Volumes with a schedule, each with C(volume), C(every) so many seconds, C(count),
    C(newest).
  type: list
  elements: dict
  returned: success
copies:
  description: Copies, each with C(name); whether it is C(full), on a disk of its own; when the last
    C(run) ended and the last C(success), and the C(cause) of a failure; C(points); the same of
    drills (C(drill_run), C(drill_success), C(drill_cause)).
  type: list
  elements: dict
  returned: success
failed_units:
  description: Units of systemd that failed.
  type: list
  elements: str
  returned: success
packages:
  description: When packages were last C(changed) and their lists C(fetched), and those that want a
    C(reboot).
  type: dict
  returned: success
kernel:
  description: The kernel's release.
  type: str
  returned: success
"""

import os
import time
from dataclasses import asdict
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.nas.assistant.plugins.module_utils import (
    _condition as condition,
    _drives as drives,
)
from ansible_collections.nas.assistant.plugins.module_utils._btrfs import BtrfsError

SNAPSHOTS = "/etc/nas-assistant/snapshots.json"
COPIES = "/etc/nas-assistant/backup.json"


def look(params: dict[str, Any]) -> dict[str, object]:
    """Return what the module says."""
    there = [path for path in params["certificates"] if os.path.exists(path)]
    return {
        "now": int(time.time()),
        "assistant": condition.assistant(params["container"], params["socket"]),
        "certificates": [condition.certificate(path) for path in there],
        "rooms": [asdict(each) for each in drives.rooms(params["paths"])],
        "drives": [asdict(each) for each in drives.read()],
        "pools": condition.pools(),
        "snapshots": condition.snapshots(condition.settings(SNAPSHOTS)),
        "copies": condition.copies(condition.settings(COPIES)),
        "failed_units": condition.failed_units(),
        "packages": condition.packages(),
        "kernel": os.uname().release,
    }


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "container": {"type": "str", "default": "nas-assistant"},
            "socket": {"type": "path", "default": "/var/lib/nas-assistant/run/gateway.sock"},
            "certificates": {
                "type": "list",
                "elements": "path",
                "default": ["/etc/nas-assistant/tls/server.crt"],
            },
            "paths": {"type": "list", "elements": "path", "default": ["/"]},
        },
        supports_check_mode=True,
    )
    try:
        module.exit_json(**look(module.params))
    except (BtrfsError, OSError, ValueError) as error:
        module.fail_json(msg=str(error))


if __name__ == "__main__":
    main()
