#!/usr/bin/python
# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: nas.assistant contributors

from __future__ import annotations

DOCUMENTATION = r"""
module: guard
short_description: Has a NAS put an old state back by itself unless a change is confirmed over a
  new connection
version_added: 0.1.0
description:
  - A dead man's switch for changes that may lock their owner out - of SSH, of the firewall, of the
    network.
  - Arm it before such a change. The NAS keeps copies of the files that are named, and a timer of
    systemd
    puts them back and runs the commands that are given, unless the change is confirmed in time.
    The same
    happens at the next boot, before the network comes up, should the power fail in between.
  - A confirmation is a handshake of its own, with connection sharing off. That a connection which
    was there
    before still works proves nothing - firewalls let established connections pass, and sshd keeps
    the
    sessions that it has.
  - The NAS needs a shell and systemd for it, no more. It does not matter whether the controller
    lives.
  - M(nas.assistant.config_set) has it built in; this module guards changes that other modules make.
author:
  - The nas.assistant contributors
options:
  name:
    description: What the change is called; one of each name waits at a time.
    type: str
    required: true
  state:
    description:
      - V(armed) keeps the copies and starts the timer.
      - V(confirmed) stops it. The task fails when the NAS cannot be reached, after the old state
        is back.
      - V(reverted) puts the old state back now; nothing happens where nothing waits.
    type: str
    choices: [armed, confirmed, reverted]
    required: true
  files:
    description: Paths that the change will touch; those that do not exist are removed again.
    type: list
    elements: path
    default: []
  commands:
    description: What to run after the files are back, to make daemons and kernel use them.
    type: list
    elements: dict
    default: []
    suboptions:
      command:
        description: The program and its arguments.
        type: list
        elements: str
        required: true
      only_if:
        description: A command that must end with 0 for this one to be run.
        type: list
        elements: str
  applied_by:
    description:
      - With V(armed). Units of systemd that make the change after the answer, where it cuts the
        connection that it comes over.
      - V(confirmed) then waits, each time over a new connection, until none of them runs; what was
        confirmed before that would be the old state.
    type: list
    elements: str
    default: []
  seconds:
    description: How long the NAS waits.
    type: int
    default: 60
  token:
    description: What V(armed) returned; V(confirmed) needs it.
    type: str
    default: ""
  host:
    description: With V(confirmed). Address for the new connection; the present one unless given.
    type: str
  port:
    description: With V(confirmed). Port for the new connection; the present one unless given.
    type: int
  user:
    description: With V(confirmed). User for the new connection; the present one unless given.
    type: str
  remedy:
    description: With V(confirmed). What the message says to do when the NAS cannot be reached any
      more.
    type: str
attributes:
  check_mode:
    description: Arms, confirms and reverts nothing, since nothing is changed.
    support: full
  diff_mode:
    description: Changes nothing that could be shown.
    support: none
"""

EXAMPLES = r"""
- name: Change the address, or come back
  block:
    - name: Prepare the way back
      nas.assistant.guard:
        name: address
        state: armed
        files: [/etc/network/interfaces]
        commands:
          - command: [systemctl, restart, networking.service]
        applied_by: [new-address.timer, new-address.service]
        seconds: 90
      register: way_back

    - name: Write the new address
      ansible.builtin.template:
        src: interfaces.j2
        dest: /etc/network/interfaces
        mode: "0644"

    - name: Use it
      ansible.builtin.command:
        cmd: systemd-run --unit new-address --on-active=2 systemctl restart networking.service
      changed_when: true

    - name: Show the NAS that it can be reached there
      nas.assistant.guard:
        name: address
        state: confirmed
        token: "{{ way_back.token }}"
        host: 192.0.2.20
        seconds: 90
"""

RETURN = r"""
token:
  description: What confirms the change, with V(armed); empty in check mode.
  type: str
  returned: with V(armed)
reverted:
  description: Whether there was an old state to put back.
  type: bool
  returned: with V(reverted)
"""

from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.nas.assistant.plugins.module_utils._guard import (
    Command,
    GuardError,
    arm,
    confirm,
    revert,
)


def run(module: AnsibleModule) -> dict[str, Any]:
    """Carry out one step; return the module's result."""
    params = module.params
    state, name = params["state"], params["name"]
    if module.check_mode:
        return {"changed": False, "token": "", "reverted": False}
    if state == "armed":
        if params["seconds"] < 10:
            raise GuardError(
                f"seconds={params['seconds']}: a new connection takes some itself; give at least 10"
            )
        # What an earlier run left without a confirmation ends first: its old state is the old one.
        revert(name)
        commands = [Command.of(entry) for entry in params["commands"]]
        token = arm(name, params["files"], commands, params["seconds"], params["applied_by"])
        return {"changed": True, "token": token}
    if state == "confirmed":
        kept = confirm(name, params["token"])
        return {"changed": kept, "again": not kept}
    done = revert(name)
    return {"changed": done, "reverted": done}


def main() -> None:
    """Run the module."""
    command = {
        "command": {"type": "list", "elements": "str", "required": True},
        "only_if": {"type": "list", "elements": "str"},
    }
    module = AnsibleModule(
        argument_spec={
            "name": {"type": "str", "required": True},
            "state": {
                "type": "str",
                "choices": ["armed", "confirmed", "reverted"],
                "required": True,
            },
            "files": {"type": "list", "elements": "path", "default": []},
            "commands": {"type": "list", "elements": "dict", "default": [], "options": command},
            "applied_by": {"type": "list", "elements": "str", "default": []},
            "seconds": {"type": "int", "default": 60},
            "token": {"type": "str", "default": "", "no_log": False},
            "host": {"type": "str"},
            "port": {"type": "int"},
            "user": {"type": "str"},
            "remedy": {"type": "str"},
        },
        supports_check_mode=True,
    )
    try:
        module.exit_json(**run(module))
    except (GuardError, OSError) as error:
        module.fail_json(msg=str(error))


if __name__ == "__main__":
    main()
