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

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.nas.assistant.plugins.module_utils._systemd import (
    SystemdError,
    carry_out,
    loaded_at,
    newer_than,
    plan,
    show,
    stamp_of,
)


def run(module: AnsibleModule) -> dict[str, object]:
    """Bring the service to where it should be; return the module's result."""
    name = module.params["name"]
    properties = show([name])[name]
    if properties.get("LoadState") == "not-found" and not module.check_mode:
        raise SystemdError(f"name={name}: systemd knows no such unit; install its package first")
    action = module.params["action"]
    stamp = stamp_of(name, action)
    newer = newer_than(module.params["files"], loaded_at(properties, stamp))
    verbs = plan(properties, newer, action, module.params["reload_first"])
    if not module.check_mode:
        carry_out(name, verbs, stamp)
    state = f"{name}: {properties.get('UnitFileState') or 'missing'}, {properties['ActiveState']}"
    return {
        "changed": bool(verbs),
        "done": verbs,
        "newer": newer,
        "diff": {
            "before": f"{state}\n" + "".join(f"not loaded yet: {path}\n" for path in newer),
            "after": f"{name}: enabled, active\n" if verbs else f"{state}\n",
        },
    }


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
    try:
        module.exit_json(**run(module))
    except SystemdError as error:
        module.fail_json(msg=str(error))


if __name__ == "__main__":
    main()
