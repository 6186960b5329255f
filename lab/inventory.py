# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: nas.assistant contributors
"""What a lab tells others: lab.json for programs, an inventory for Ansible."""

from __future__ import annotations

import json
import os
import shlex
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lab import image, paths, ssh
from lab.errors import LabError


@dataclass(frozen=True)
class Host:
    """One NAS of lab.json. `id` is its container's, so that a container made anew is noticed."""

    name: str
    container: str
    id: str
    ssh_host: str
    ssh_port: int
    ssh_user: str
    ssh_key: str
    disks: list[str]


def path(name: str) -> Path:
    """Where a lab's lab.json is."""
    return paths.lab(name) / "lab.json"


def read(name: str) -> list[Host]:
    """The hosts of a lab as they were when `up` last ended; none when it never did."""
    try:
        document = json.loads(path(name).read_text(encoding="utf-8"))
        return [Host(**host) for host in document["hosts"]]
    except (OSError, ValueError, KeyError, TypeError):
        return []


def write(name: str, debian: str, hosts: list[Host]) -> None:
    """Write a lab's lab.json."""
    document = {"name": name, "debian": debian, "hosts": [asdict(host) for host in hosts]}
    replace(path(name), json.dumps(document, indent=2) + "\n")


def write_ansible(target: Path, name: str, debian: str, hosts: list[Host]) -> None:
    """Write an Ansible inventory of a lab."""
    if target.is_dir() or target.suffix not in (".yml", ".yaml"):
        raise LabError(
            f"{str(target)!r} cannot be an inventory: name a .yml file, for example hosts.yml."
        )
    replace(target, ansible(name, debian, hosts))


def ansible(name: str, debian: str, hosts: list[Host]) -> str:
    """The text of a YAML inventory with these hosts in the group nas."""
    arguments = shlex.join(ssh.options(paths.lab(name)))
    lines = [f"# The lab {name}, written by `python3 -m lab up`.", "nas:", "  hosts:"]
    for host in hosts:
        values: dict[str, Any] = {
            "ansible_host": host.ssh_host,
            "ansible_port": host.ssh_port,
            "ansible_user": host.ssh_user,
            "ansible_ssh_private_key_file": host.ssh_key,
            "ansible_ssh_common_args": arguments,
        }
        lines.append(f"    {host.name}:")
        # A JSON string is a YAML string, and this runs before a YAML library is there.
        lines += [f"      {key}: {json.dumps(value)}" for key, value in values.items()]
    # Where the roles may keep what belongs to this lab, such as the keys that they make.
    lines += ["  vars:", f"    lab_dir: {json.dumps(str(paths.lab(name)))}"]
    lines += [f"    lab_base_image: {image.base_name(debian)}"]
    return "\n".join(lines) + "\n"


def replace(target: Path, text: str, mode: int = 0o644) -> None:
    """Write a file in one move, and leave it alone when it says that already."""
    if target.is_file() and target.read_text(encoding="utf-8") == text:
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    draft = target.with_name(f".{target.name}.{os.getpid()}")
    draft.touch(mode)
    draft.write_text(text, encoding="utf-8")
    draft.replace(target)
