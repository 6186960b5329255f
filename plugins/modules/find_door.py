#!/usr/bin/python
# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: nas.assistant contributors

from __future__ import annotations

DOCUMENTATION = r"""
module: find_door
short_description: Finds the SSH port and user by which a NAS lets Ansible in
version_added: 0.1.0
description:
  - A NAS that was hardened answers on another port, to another user. This action tries the doors
    that it
    should have, and then the one that the inventory names, and returns the first that opens.
  - It runs on the controller. A closed port costs a millisecond, one that does not answer
    O(timeout).
  - The host key is always checked. Where it is not known under the new port, it is looked up under
    the
    name by which it was known before, since moving a port changes no key.
  - The connection that it opens is the one that the tasks after it share.
author:
  - The nas.assistant contributors
extends_documentation_fragment: [nas.assistant.looks_only]
options:
  doors:
    description: Doors that the NAS should have, best first, each with any of C(host), C(port) and
      C(user).
    type: list
    elements: dict
    required: true
  remembered:
    description:
      - A file on the controller with the door that was open last, as JSON with C(host), C(port)
        and C(user). It is tried after O(doors), so that a port or an account can be changed again.
    type: path
    default: ""
  addresses:
    description: Addresses to which the NAS may have moved; each door is tried there at last.
    type: list
    elements: str
    default: []
  timeout:
    description: Seconds for each attempt; a small NAS that is busy takes a few to greet.
    type: int
    default: 8
"""

EXAMPLES = r"""
- name: Find the door
  nas.assistant.find_door:
    doors:
      - {port: 2222, user: nasadmin}
  register: door

- name: Use it from here on
  ansible.builtin.set_fact:
    ansible_host: "{{ door.host }}"
    ansible_port: "{{ door.port }}"
    ansible_user: "{{ door.user }}"
    ansible_ssh_common_args: "{{ door.common_args }}"
"""

RETURN = r"""
moved:
  description: Whether the door is another one than the inventory names.
  type: bool
  returned: always
host:
  description: Its address.
  type: str
  returned: with SSH
port:
  description: Its port.
  type: int
  returned: with SSH
user:
  description: Its user.
  type: str
  returned: with SSH
common_args:
  description: What C(ansible_ssh_common_args) must be, for the host key to be found.
  type: str
  returned: with SSH
seen_as:
  description: The address that the NAS sees the controller by; empty when its SSH daemon does not
    say.
  type: str
  returned: with SSH
reached_at:
  description: The NAS's own address that the connection came to; empty when its SSH daemon does
    not say.
  type: str
  returned: with SSH
inventory:
  description: The door that the inventory names - C(host), C(port), C(user), empty where it names
    none.
  type: dict
  returned: with SSH
seconds:
  description: How long it took.
  type: float
  returned: with SSH
"""
