#!/usr/bin/python
# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: nas.assistant contributors

from __future__ import annotations

DOCUMENTATION = r"""
module: sysctl_set
short_description: Sets many kernel parameters in one step, reads them back, and can put them all
  back
version_added: 0.1.0
description:
  - Writes all parameters into one file of C(/etc/sysctl.d) and into the running kernel, and reads
    each back.
  - M(ansible.posix.sysctl) does the same for one parameter a task, believes what the file says,
    and keeps no
    note of what was before. Here the file holds, as comments, the value that each parameter had.
  - What the kernel does not know or does not let be set is reported in RV(refused); with O(strict)
    it is an error.
author:
  - The nas.assistant contributors
options:
  path:
    description: The file, in C(/etc/sysctl.d). A higher number in its name is read later, and wins.
    type: path
    required: true
  values:
    description: Parameters by name, with dots or slashes. Several numbers are one string.
    type: dict
    default: {}
  state:
    description: V(absent) removes the file and sets each parameter to what it was before.
    type: str
    choices: [present, absent]
    default: present
  strict:
    description: Fails, before anything changes, when the kernel lacks a parameter or cannot set it.
    type: bool
    default: false
attributes:
  check_mode:
    description: Compares file and kernel; whether the kernel would refuse a value is not known
      then.
    support: full
  diff_mode:
    description: Shows the file, and the kernel's values.
    support: full
"""

EXAMPLES = r"""
- name: Let no core dump hold secrets
  nas.assistant.sysctl_set:
    path: /etc/sysctl.d/95-nas.conf
    values:
      fs.suid_dumpable: 0
      net.ipv4.tcp_rmem: 4096 131072 16777216
"""

RETURN = r"""
changed_values:
  description: Parameters whose value in the kernel was changed, each with the values before and
    after.
  type: dict
  returned: always
refused:
  description: A sentence for each parameter that the kernel lacks or refuses.
  type: list
  elements: str
  returned: always
"""

import os
import re
from dataclasses import dataclass, field

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.nas.assistant.plugins.module_utils._files import replace

PROC = "/proc/sys"
NAME = re.compile(r"[a-zA-Z0-9_*@-]+([./][a-zA-Z0-9_*:@-]+)+")
BEFORE = "# before: "
HEAD = "# Written by nas.assistant.sysctl_set; the values before are what absent puts back.\n"


class SysctlError(Exception):
    """The parameters cannot be set; one sentence with the name, the value and the remedy."""


@dataclass
class Kernel:
    """What was read of the kernel, and what it refused."""

    values: dict[str, str] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)


def proc_path(name: str, root: str = PROC) -> str:
    """Return the file of a parameter. With a slash in its name, dots stand for themselves."""
    return os.path.join(root, name if "/" in name else name.replace(".", "/"))


def normal(value: object) -> str:
    """Return a value as the kernel prints it: numbers by one blank, no end of line."""
    if isinstance(value, bool):
        return str(int(value))
    return " ".join(str(value).split())


def parse_before(text: str) -> dict[str, str]:
    """Return what the file says the parameters were before it was first written."""
    found = {}
    for line in text.splitlines():
        if line.startswith(BEFORE):
            name, _, value = line.removeprefix(BEFORE).partition(" = ")
            found[name] = value
    return found


def render(values: dict[str, str], before: dict[str, str]) -> str:
    """Return the file's text: each parameter, below it what it was before."""
    lines = []
    for name in sorted(values):
        # A minus: one that this kernel lacks is passed over at boot.
        lines.append(f"-{name} = {values[name]}")
        if name in before:
            lines.append(f"{BEFORE}{name} = {before[name]}")
    return HEAD + "\n".join(lines) + "\n"


def read(names: list[str], root: str = PROC) -> Kernel:
    """Read the parameters from the kernel."""
    kernel = Kernel()
    for name in names:
        try:
            with open(proc_path(name, root), encoding="ascii") as stream:
                kernel.values[name] = normal(stream.read())
        except FileNotFoundError:
            kernel.refused[name] = f"{name}: this kernel has no such parameter"
        except OSError as error:
            kernel.refused[name] = f"{name}: cannot be read ({error.strerror})"
    return kernel


def write(name: str, value: str, root: str = PROC) -> str:
    """Set a parameter and read it back; return why that did not work, or nothing."""
    path = proc_path(name, root)
    try:
        with open(path, "w", encoding="ascii") as stream:
            stream.write(value)
        with open(path, encoding="ascii") as stream:
            found = normal(stream.read())
    except OSError as error:
        return f"{name} = {value}: the kernel refuses it ({error.strerror})"
    return "" if found == value else f"{name} = {value}: the kernel made it {found}"


def run(module: AnsibleModule) -> dict[str, object]:
    """Bring file and kernel to the wanted state; return the module's result."""
    path: str = module.params["path"]
    try:
        with open(path, encoding="utf-8") as stream:
            old = stream.read()
    except FileNotFoundError:
        old = ""
    before = parse_before(old)
    absent = module.params["state"] == "absent"
    values = {str(name): normal(value) for name, value in module.params["values"].items()}
    odd = [name for name in values if not NAME.fullmatch(name) or ".." in name]
    if odd:
        raise SysctlError(
            f"values: {', '.join(odd)} is no parameter's name, such as net.core.rmem_max"
        )
    wanted = before if absent else values
    kernel = read(sorted({*wanted, *before}))
    if module.params["strict"] and kernel.refused:
        raise SysctlError(f"{'; '.join(kernel.refused.values())}. Nothing was changed")
    # One that the inventory no longer names goes back to what it was.
    dropped = {name: value for name, value in before.items() if name not in wanted}
    target = {**wanted, **dropped}
    differ = {
        name: value for name, value in target.items() if kernel.values.get(name, value) != value
    }
    kept = {name: before.get(name, kernel.values[name]) for name in values if name in kernel.values}
    text = "" if absent else render(values, kept)
    changes: dict[str, list[str]] = {}
    refused = dict(kernel.refused)
    if not module.check_mode:
        # The file first: it is what remembers the values before.
        if text != old and not absent:
            replace(path, text.encode(), 0, 0, 0o644)
        for name, value in differ.items():
            reason = write(name, value)
            if reason:
                refused[name] = reason
            else:
                changes[name] = [kernel.values[name], value]
        if text != old and absent:
            os.unlink(path)
    else:
        # Whether the kernel takes it shows only when tried, save where nothing can be written.
        changes = {
            name: [kernel.values[name], value]
            for name, value in differ.items()
            if os.access(proc_path(name), os.W_OK)
        }
    shown = [{"before_header": path, "after_header": path, "before": old, "after": text}]
    for name, (was, now) in sorted(changes.items()):
        shown.append({"before": f"{name} = {was}\n", "after": f"{name} = {now}\n"})
    return {
        "changed": text != old or bool(changes),
        "changed_values": changes,
        "refused": sorted(refused.values()),
        "diff": shown,
    }


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "path": {"type": "path", "required": True},
            "values": {"type": "dict", "default": {}},
            "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
            "strict": {"type": "bool", "default": False},
        },
        supports_check_mode=True,
    )
    try:
        module.exit_json(**run(module))
    except (SysctlError, OSError) as error:
        module.fail_json(msg=str(error))


if __name__ == "__main__":
    main()
