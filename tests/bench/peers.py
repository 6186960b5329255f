# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: nas.assistant contributors
"""Roles of others for the same concerns, to compare with. None is part of this project.

They are in one folder: ansible_collections/devsec/hardening, roles/geerlingguy.docker and
roles/geerlingguy.nginx.
"""

from __future__ import annotations

import os
from pathlib import Path

# What would lock us out, or cannot be done in a container, is off; the engine is Debian's, as ours.
_VARIABLES = """\
    ssh_permit_root_login: without-password
    os_auditd_enabled: false
    os_mnt_dev_enabled: false
    os_mnt_dev_shm_enabled: false
    os_mnt_run_enabled: false
    docker_add_repo: false
    docker_obsolete_packages: []
    docker_packages: [docker.io]
    docker_install_compose_plugin: false
    docker_daemon_options: {log-driver: json-file, log-opts: {max-size: 10m}}
    nginx_vhosts: [{server_name: nas.example.com, root: /var/www/html}]
"""
HARDENING = ("devsec.hardening.os_hardening", "devsec.hardening.ssh_hardening")
SITE = (*HARDENING, "geerlingguy.docker", "geerlingguy.nginx")


def playbook(roles: tuple[str, ...], host: str) -> str:
    """A playbook of these roles for one host."""
    listed = "".join(f"    - {role}\n" for role in roles)
    return f"- hosts: {host}\n  become: true\n  vars:\n{_VARIABLES}  roles:\n{listed}"


def environ(folder: Path) -> dict[str, str]:
    """The environment of a run that finds them."""
    return {
        **os.environ,
        "ANSIBLE_COLLECTIONS_PATH": str(folder),
        "ANSIBLE_ROLES_PATH": str(folder / "roles"),
        # They read facts as variables, as Ansible has it unless told otherwise.
        "ANSIBLE_INJECT_FACT_VARS": "1",
    }
