# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: nas.assistant contributors

# Its work is done by the action plugin of the same name, through ansible.builtin.apt.

from __future__ import annotations

DOCUMENTATION = r"""
---
module: packages
short_description: Install packages of Debian, and know in check mode that they are to come
version_added: 0.1.0
description:
  - M(ansible.builtin.apt) with the settings that the roles of this collection share. Nothing is
    installed beside what is named and what that needs, package lists are as new as a day, and
    updates that the system makes by itself meanwhile are waited for. Where all is installed
    already, C(dpkg) says so, which is faster, and is asked once in a run.
  - In check mode on a system that has no package lists yet, M(ansible.builtin.apt) fails; this one
    says that the packages would be installed.
author:
  - The nas.assistant contributors
options:
  name:
    description: Packages to be there, in whatever version.
    type: list
    elements: str
    required: true
attributes:
  check_mode:
    description: Says whether packages would be installed.
    support: full
  diff_mode:
    description: Shows what M(ansible.builtin.apt) shows.
    support: full
"""

EXAMPLES = r"""
- name: Install nftables
  nas.assistant.packages:
    name: nftables
  register: nftables

- name: Check rules, which needs it
  ansible.builtin.command: nft -c -f /etc/nftables.conf
  changed_when: false
  when: not nftables.planned
"""

RETURN = r"""
planned:
  description: Whether packages are only going to be installed, so that what needs them must wait.
    Always false outside of check mode.
  type: bool
  returned: success
"""
