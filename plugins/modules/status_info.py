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
  - Looks at the assistant, directly and through Nginx, its certificates, the room that is left,
    disks and pools, the age of snapshots and copies, services that failed, and packages that are to
    be upgraded.
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
    default:
      - /etc/nas-assistant/tls/server.crt
      - /etc/nas-assistant/tls/acme.pem
      - /etc/nas-assistant/tls/own.pem
      - /etc/nas-assistant/tls/member.crt
      - /etc/nas-assistant/tls/ca.crt
  front:
    description: >-
      Where clients come in, as the NAS itself asks there, by its own name; empty where there is no
      proxy.
    type: str
    default: https://127.0.0.1/readyz
  mounts:
    description: Folders at which something must be mounted, such as a volume of a pool.
    type: list
    elements: path
    default: []
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
  description: C(state) of the container (V(missing) where there is none, V(unknown) where Docker
    does not say, with the C(problem)), C(since) when, C(restarts), C(image), C(version); whether
    the service is C(ready), and the C(reason) why not; why it is C(degraded), such that a cloud
    answers in the place of its own model; its C(models); whether it is C(drained), and whether a
    rollout did not end and it is C(unproved).
  type: dict
  returned: success
front:
  description: C(status) that a client is answered with, 0 with a C(reason) where it is not.
  type: dict
  returned: success
certificates:
  description: Each with C(path); C(expires), 0 where it cannot be read; C(own), whether it signs
    itself; and its C(fingerprint) (SHA-256).
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
  description: Pools of Btrfs, md and ZFS, each with C(name), C(kind), what of it is C(missing), and
    C(errors) that were counted.
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
  description: Copies, each with C(name); when the last C(run) ended and the last C(success), the
    C(cause) of a failure, and when one was last C(due) by its timer, if it has one that runs;
    C(points), and how many of these are C(old), which retention drops; the same of drills
    (C(drill_run), C(drill_success), C(drill_cause), C(drill_due)).
  type: list
  elements: dict
  returned: success
failed_units:
  description: Units of systemd that failed.
  type: list
  elements: str
  returned: success
packages:
  description: When the lists of packages were last C(fetched), and packages last C(upgraded); names
    of those C(pending) by the lists, how many of these close holes (C(security)), and those that
    want a C(reboot).
  type: dict
  returned: success
not_mounted:
  description: Those of O(mounts) that nothing is mounted at.
  type: list
  elements: str
  returned: success
blind:
  description: Parts of this answer that could not be looked at, each with C(part) and C(why); they
    are empty.
  type: list
  elements: dict
  returned: success
kernel:
  description: The kernel's release.
  type: str
  returned: success
versions:
  description: Those of C(Debian), C(Docker), C(Nginx); empty where there is none.
  type: dict
  returned: success
"""

import os
import time
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.nas.assistant.plugins.module_utils import (
    _condition as condition,
    _drives as drives,
)

SNAPSHOTS = "/etc/nas-assistant/snapshots.json"
COPIES = "/etc/nas-assistant/backup.json"
TLS = "/etc/nas-assistant/tls"
CERTIFICATES = ("server.crt", "acme.pem", "own.pem", "member.crt", "ca.crt")


def look(params: dict[str, Any]) -> dict[str, object]:
    """Return what the module says. A part that cannot be looked at does not hide the others."""
    there = [path for path in params["certificates"] if os.path.exists(path)]
    parts: dict[str, Callable[[], Any]] = {
        "assistant": lambda: condition.assistant(params["container"], params["socket"]),
        "front": lambda: condition.front(params["front"]) if params["front"] else {},
        "certificates": lambda: [condition.certificate(path) for path in there],
        "rooms": lambda: [asdict(each) for each in drives.rooms(params["paths"])],
        "drives": lambda: [asdict(each) for each in drives.read()],
        "pools": condition.pools,
        "not_mounted": lambda: condition.not_mounted(params["mounts"]),
        "snapshots": lambda: condition.snapshots(condition.settings(SNAPSHOTS)),
        "copies": lambda: condition.copies(condition.settings(COPIES)),
        "failed_units": condition.failed_units,
        "packages": condition.packages,
        "versions": condition.versions,
    }
    found: dict[str, object] = {"now": int(time.time()), "kernel": os.uname().release}
    blind = []
    for part, read in parts.items():
        try:
            found[part] = read()
        except Exception as error:
            blind.append({"part": part, "why": f"{type(error).__name__}: {error}"})
            found[part] = {} if part in ("assistant", "front", "packages", "versions") else []
    return {**found, "blind": blind}


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "container": {"type": "str", "default": "nas-assistant"},
            "socket": {"type": "path", "default": "/var/lib/nas-assistant/run/gateway.sock"},
            "certificates": {
                "type": "list",
                "elements": "path",
                "default": [f"{TLS}/{name}" for name in CERTIFICATES],
            },
            "front": {"type": "str", "default": "https://127.0.0.1/readyz"},
            "mounts": {"type": "list", "elements": "path", "default": []},
            "paths": {"type": "list", "elements": "path", "default": ["/"]},
        },
        supports_check_mode=True,
    )
    module.exit_json(**look(module.params))


if __name__ == "__main__":
    main()
