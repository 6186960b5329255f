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
missing:
  description: Modules that this kernel does not have.
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


def bring(path: str, names: Sequence[str], check_mode: bool) -> dict[str, object]:
    """Bring file and kernel to what is wanted; return the module's result."""
    places = {name: place(name) for name in names}
    there = sorted(name for name, found in places.items() if found not in ("", "(builtin)"))
    now = in_kernel(sysfs.text("/proc/modules"))
    needed = [name for name in there if name.replace("-", "_") not in now]
    text = HEAD + "".join(f"{name}\n" for name in there) if there else ""
    try:
        with open(path, encoding="utf-8") as stream:
            old = stream.read()
    except FileNotFoundError:
        old = ""
    if not check_mode:
        for name in needed:
            demand(["modprobe", name], ModulesError, package="kmod")
        if text != old and text:
            replace(path, text.encode(), 0, 0, 0o644)
        elif text != old:
            os.unlink(path)
    return {
        "changed": bool(needed) or text != old,
        "loaded": needed,
        "missing": [name for name in names if not places[name]],
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
    module.exit_json(**found)


if __name__ == "__main__":
    main()
