#!/usr/bin/python
# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: nas.assistant contributors

from __future__ import annotations

DOCUMENTATION = r"""
module: controller_file
short_description: Writes a file on the controller, where its owner finds it
version_added: 0.1.0
description:
  - What M(ansible.builtin.copy) with C(delegate_to=localhost) does, and the folder, without a
    program that is started on the controller for each; a run over many NAS hands over much.
  - The file is written beside its place and renamed, so that who reads it has the old one or the
    new one. It belongs to whoever runs Ansible, or keeps its owner where it has one already.
author:
  - The nas.assistant contributors
options:
  dest:
    description: Path on the controller.
    type: path
    required: true
  content:
    description: What is in it; for a template, C(lookup('ansible.builtin.template', ...)).
    type: str
    required: true
  mode:
    description: Octal mode, quoted.
    type: str
    default: "0600"
  folder_mode:
    description: Octal mode of its folder, quoted; one that is there gets it too.
    type: str
    default: "0700"
attributes:
  check_mode:
    description: Compares and writes nothing.
    support: full
  diff_mode:
    description: Shows the file.
    support: full
"""

EXAMPLES = r"""
- name: Hand the certificate to the owner
  nas.assistant.controller_file:
    dest: "{{ inventory_dir }}/.credentials/{{ inventory_hostname }}.crt"
    content: "{{ made.certificate }}"
    mode: "0644"
"""

RETURN = r"""
dest:
  description: The file, by its whole path.
  type: str
  returned: always
"""
