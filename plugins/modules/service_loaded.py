#!/usr/bin/python
# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: nas.assistant contributors

from __future__ import annotations

DOCUMENTATION = r"""
module: service_loaded
short_description: Sees to it that a systemd service runs with the files as they are now
version_added: 0.1.0
description:
  - Starts and enables a service, and reloads or restarts it when one of its files was changed after
    the service last read them.
  - Takes the place of a handler. A handler is lost when a run ends between the change and the
    handler, and no later run notices; this module compares the time of the service's last start, or
    of the last reload that it made itself, with those of the files, so the next run puts it right.
author:
  - The nas.assistant contributors
options:
  name:
    description: The unit, such as C(nginx.service).
    type: str
    required: true
  files:
    description:
      - Files that the service reads when it starts or reloads. A folder stands for its list of
        entries.
      - The time of the last change of content, name, owner or mode (ctime) counts. What is missing
        is passed over.
    type: list
    elements: path
    default: []
  action:
    description: What makes the service read its files again.
    type: str
    choices: [reload, restart]
    default: reload
  reload_first:
    description: Reload before a restart, for what must be known by then (Docker's live restore).
    type: bool
    default: false
attributes:
  check_mode:
    description: A unit that does not exist yet counts as one that would be started.
    support: full
  diff_mode:
    description: Shows state and time of loading before and after.
    support: full
"""

EXAMPLES = r"""
- name: Run Nginx with the present site and certificate
  nas.assistant.service_loaded:
    name: nginx.service
    files:
      - /etc/nginx/conf.d/nas-assistant.conf
      - /etc/nas-assistant/tls/server.crt
"""

RETURN = r"""
done:
  description: What was done, in order.
  type: list
  elements: str
  returned: always
  sample: [enable, reload]
newer:
  description: Files that were changed after the service last read them.
  type: list
  elements: str
  returned: always
"""

import os
import time
from datetime import UTC, datetime

from ansible.module_utils.basic import AnsibleModule

PROPERTIES = ("LoadState", "ActiveState", "UnitFileState", "InactiveExitTimestamp")
TIME = "%a %Y-%m-%d %H:%M:%S.%f UTC"
# systemd forgets when a service was reloaded at its own next daemon-reload, so a stamp keeps it. In
# /run, since no reload outlives a boot.
STAMPS = "/run/nas-assistant/loaded"


def timestamp(text: str) -> float:
    """Return seconds since the epoch of a time as systemctl prints it (us+utc), 0 without one."""
    try:
        return datetime.strptime(text, TIME).replace(tzinfo=UTC).timestamp()
    except ValueError:
        return 0.0


def loaded_at(properties: dict[str, str], stamp: str) -> float:
    """Return when the service last began to read its files: its start, or a reload of ours.

    :param stamp: file whose modification time is that of the reload; it may be missing.
    """
    started = timestamp(properties.get("InactiveExitTimestamp", ""))
    return max(started, os.stat(stamp).st_mtime) if os.path.exists(stamp) else started


def newer_than(files: list[str], moment: float) -> list[str]:
    """Return the files that were changed after ``moment`` (seconds since the epoch)."""
    return [path for path in files if os.path.exists(path) and os.stat(path).st_ctime > moment]


def plan(
    properties: dict[str, str], newer: list[str], action: str, reload_first: bool = False
) -> list[str]:
    """Return the systemctl verbs that are needed, in order."""
    # "static", "generated" and the like need no enabling and take none.
    verbs = ["enable"] if properties.get("UnitFileState") in ("disabled", "") else []
    if properties.get("ActiveState") not in ("active", "reloading", "activating"):
        return [*verbs, "start"]
    if not newer:
        return verbs
    return [*verbs, "reload", action] if reload_first and action == "restart" else [*verbs, action]


def reload(module: AnsibleModule, stamp: str) -> None:
    """Reload the service and remember when that began."""
    os.makedirs(STAMPS, mode=0o755, exist_ok=True)
    began = time.time()
    systemctl(module, "reload", module.params["name"])
    with open(stamp, "w", encoding="ascii"):
        os.utime(stamp, (began, began))


def systemctl(module: AnsibleModule, *arguments: str) -> str:
    """Run systemctl; a failure ends the module with what systemctl and the journal say."""
    code, out, err = module.run_command(["systemctl", *arguments])
    if code != 0:
        name = module.params["name"]
        _, journal, _ = module.run_command(
            ["journalctl", "--unit", name, "--lines=10", "-o", "cat"]
        )
        module.fail_json(msg=f"systemctl {' '.join(arguments)}: {err.strip()}\n{journal.strip()}")
    return str(out)


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "name": {"type": "str", "required": True},
            "files": {"type": "list", "elements": "path", "default": []},
            "action": {"type": "str", "choices": ["reload", "restart"], "default": "reload"},
            "reload_first": {"type": "bool", "default": False},
        },
        supports_check_mode=True,
    )
    module.run_command_environ_update = {"LC_ALL": "C"}
    name = module.params["name"]
    shown = systemctl(
        module, "show", name, f"--property={','.join(PROPERTIES)}", "--timestamp=us+utc"
    )
    properties = dict(line.partition("=")[::2] for line in shown.splitlines())
    if properties.get("LoadState") == "not-found" and not module.check_mode:
        module.fail_json(msg=f"name={name}: systemd knows no such unit; install its package first")
    action = module.params["action"]
    # What only a restart makes the service read, no reload has made it read.
    stamp = os.path.join(STAMPS, name) if action == "reload" else ""
    newer = newer_than(module.params["files"], loaded_at(properties, stamp))
    verbs = plan(properties, newer, action, module.params["reload_first"])
    if not module.check_mode:
        for verb in verbs:
            if verb == "reload" and stamp:
                reload(module, stamp)
            else:
                systemctl(module, verb, name)
    state = f"{name}: {properties.get('UnitFileState') or 'missing'}, {properties['ActiveState']}"
    module.exit_json(
        changed=bool(verbs),
        done=verbs,
        newer=newer,
        diff={
            "before": f"{state}\n" + "".join(f"not loaded yet: {path}\n" for path in newer),
            "after": f"{name}: enabled, active\n" if verbs else f"{state}\n",
        },
    )


if __name__ == "__main__":
    main()
