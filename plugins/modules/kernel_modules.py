#!/usr/bin/python
# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: nas.assistant contributors

from __future__ import annotations

DOCUMENTATION = r"""
---
module: kernel_modules
short_description: Loads the modules that a kernel has of a list, now and at boot
version_added: 0.1.0
description:
  - Loads those that there are, and lists them in a file of C(/etc/modules-load.d). One that the
    kernel does not have, or has built in, is not listed, since systemd counts a name that it does
    not find as a unit that failed.
  - A kernel that was upgraded and not started yet has taken the modules of the one that runs with
    it. Nothing can be looked up then, so the file keeps what it lists, and a reboot is asked for.
  - M(community.general.modprobe) takes one module a task, and fails where there is none.
author:
  - The nas.assistant contributors
options:
  path:
    description: The file.
    type: path
    required: true
  names:
    description: The modules. Those that the file lists and are not among them are no longer loaded
      at boot; nothing is unloaded.
    type: list
    elements: str
    default: []
attributes:
  check_mode:
    description: Looks which modules there are.
    support: full
  diff_mode:
    description: Shows the file, and what is loaded.
    support: full
"""

EXAMPLES = r"""
- name: Have a congestion control at hand
  nas.assistant.kernel_modules:
    path: /etc/modules-load.d/nas.conf
    names: [tcp_bbr]
"""

RETURN = r"""
loaded:
  description: Modules that were loaded.
  type: list
  elements: str
  returned: success
reboot:
  description: Whether a kernel that was upgraded waits for its first start.
  type: bool
  returned: success
missing:
  description: Modules that this kernel does not have, as far as they can be looked up.
  type: list
  elements: str
  returned: success
"""

import os
from collections.abc import Sequence

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.nas.assistant.plugins.module_utils import _sysfs as sysfs
from ansible_collections.nas.assistant.plugins.module_utils._commands import demand, run
from ansible_collections.nas.assistant.plugins.module_utils._files import replace

MODULES = "/lib/modules"
HEAD = "# Written by nas.assistant.kernel_modules.\n"


class ModulesError(Exception):
    """A module that is there cannot be loaded; says what modprobe said."""


def place(name: str) -> str:
    """Return the file of a module, ``(builtin)``, or nothing where the kernel has none."""
    try:
        done = run(["modinfo", "--field=filename", name])
    except FileNotFoundError:  # no kmod, as in a container: no modules either
        return ""
    return str(done.stdout).strip().splitlines()[0] if done.returncode == 0 else ""


def in_kernel(text: str) -> set[str]:
    """Return the names in ``/proc/modules``, which a kernel without modules does not have."""
    return {line.split()[0] for line in text.splitlines()}


def is_replaced(folder: str = MODULES, modules: str = "/proc/modules") -> bool:
    """Whether the modules of the kernel that runs are gone, and those of another one are there. A
    container has none, and so has a kernel that loads none."""
    if os.path.isdir(os.path.join(folder, os.uname().release)) or not os.path.exists(modules):
        return False
    return any(os.path.isdir(os.path.join(folder, name, "kernel")) for name in listed(folder))


def listed(folder: str) -> list[str]:
    """Return the names in a folder; none where there is no such folder."""
    try:
        return os.listdir(folder)
    except FileNotFoundError:
        return []


def bring(path: str, names: Sequence[str], check_mode: bool) -> dict[str, object]:
    """Bring file and kernel to what is wanted; return the module's result."""
    try:
        with open(path, encoding="utf-8") as stream:
            old = stream.read()
    except FileNotFoundError:
        old = ""
    now = in_kernel(sysfs.text("/proc/modules"))
    replaced = bool(names) and is_replaced()
    places: dict[str, str] = {}
    if replaced:
        known = {*old.splitlines(), *(name for name in names if name.replace("-", "_") in now)}
        there, needed = sorted(known & set(names)), []
    else:
        places = {name: place(name) for name in names}
        there = sorted(name for name, found in places.items() if found not in ("", "(builtin)"))
        needed = [name for name in there if name.replace("-", "_") not in now]
    text = HEAD + "".join(f"{name}\n" for name in there) if there else ""
    if not check_mode:
        for name in needed:
            demand(["modprobe", name], ModulesError, package="kmod")
        if text != old and text:
            replace(path, text.encode(), 0, 0, 0o644)
        elif text != old:
            os.unlink(path)
    return {
        "changed": bool(needed) or text != old,
        "reboot": replaced,
        "loaded": needed,
        "missing": [name for name in names if not replaced and not places[name]],
        "diff": [
            {"before_header": path, "after_header": path, "before": old, "after": text},
            *({"before": "", "after": f"{name}: loaded\n"} for name in needed),
        ],
    }


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "path": {"type": "path", "required": True},
            "names": {"type": "list", "elements": "str", "default": []},
        },
        supports_check_mode=True,
    )
    try:
        found = bring(module.params["path"], module.params["names"], module.check_mode)
    except (ModulesError, OSError) as error:
        module.fail_json(msg=str(error))
    if found["reboot"]:
        module.warn(
            f"the kernel that runs, {os.uname().release}, was upgraded, and its modules are gone: "
            "reboot, and run this again"
        )
    module.exit_json(**found)


if __name__ == "__main__":
    main()
