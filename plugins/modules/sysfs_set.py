#!/usr/bin/python
# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: nas.assistant contributors

from __future__ import annotations

DOCUMENTATION = r"""
---
module: sysfs_set
short_description: Sets values of the kernel's devices, now and at boot, and can put them back
version_added: 0.1.0
description:
  - Writes values such as a disk's scheduler below C(/sys), reads them back, and writes the file by
    which udev or systemd-tmpfiles sets them at boot. The file holds, as comments, the value that
    each had; a disk is named there as below C(/dev/disk/by-id), since C(sda) may be another one
    after the next boot.
  - What the kernel does not have or does not take is reported in RV(refused), and is no error.
  - No existing module does this; M(ansible.posix.sysctl) and M(nas.assistant.sysctl_set) know
    C(/proc/sys) alone.
author:
  - The nas.assistant contributors
options:
  path:
    description: The file that is read at boot, such as one in C(/etc/udev/rules.d) or
      C(/etc/tmpfiles.d).
    type: path
    required: true
  content:
    description: What is in it, apart from the comments. Needed unless it is to go.
    type: str
  values:
    description: Values by path. A path may be a pattern such as
      C(/sys/devices/system/cpu/cpufreq/policy*/scaling_governor). Of a file that lists choices,
      the value is the one in brackets. Where the kernel says which of a thing's parts are on, as a
      number such as C(0x0007), V(y) is all that this machine has, and content with any.
    type: dict
    default: {}
  state:
    description: V(absent) removes the file and sets each value to what it was before. A device
      that is gone is passed over; what the kernel does not take back is in RV(refused), and noted
      in the file until it does.
    type: str
    choices: [present, absent]
    default: present
attributes:
  check_mode:
    description: Compares file and kernel.
    support: full
  diff_mode:
    description: Shows the file, and the kernel's values.
    support: full
"""

EXAMPLES = r"""
- name: Let a disk that turns heed ionice
  nas.assistant.sysfs_set:
    path: /etc/udev/rules.d/61-queue.rules
    content: |
      KERNEL=="sda", ACTION=="add|change", ATTR{queue/scheduler}="bfq"
    values:
      /sys/block/sda/queue/scheduler: bfq
"""

RETURN = r"""
changed_values:
  description: Paths whose value was changed, each with the values before and after.
  type: dict
  returned: success
refused:
  description: A sentence for each value that the kernel does not have or does not take.
  type: list
  elements: str
  returned: success
"""

import glob
import os
import re
from collections.abc import Mapping

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.nas.assistant.plugins.module_utils._block import BY_ID, stable_name
from ansible_collections.nas.assistant.plugins.module_utils._files import replace

BEFORE = "# before: "
ROOT = "/sys/"
_OF_DISK = re.compile(r"/sys/block/([^/]+)/(.+)")


class SysfsError(Exception):
    """The values cannot be set; names the option and the value."""


def selected(text: str) -> str:
    """Return the value of a file: of ``none [bfq] kyber``, the one in brackets."""
    chosen = re.search(r"\[([^\]]+)\]", text)
    return chosen[1] if chosen else text.strip()


def parse_before(text: str) -> dict[str, str]:
    """Return what the file says the values were before it was first written."""
    notes = (line.removeprefix(BEFORE) for line in text.splitlines() if line.startswith(BEFORE))
    return {path: value for path, _, value in (note.partition(" = ") for note in notes)}


def render(content: str, before: Mapping[str, str]) -> str:
    """Return the file's text: what is read at boot, then the values before; empty where there is
    neither."""
    notes = [f"{BEFORE}{path} = {before[path]}" for path in sorted(before)]
    return "".join(f"{line}\n" for line in [*filter(None, [content.rstrip()]), *notes])


def lasting(path: str) -> str:
    """Return a name for a value that holds after the next boot too: of a disk's, the disk's own."""
    matched = _OF_DISK.fullmatch(path)
    stable = stable_name(f"/dev/{matched[1]}") if matched else ""
    return f"{stable} {matched[2]}" if matched and stable else path


def at_present(name: str) -> str:
    """Return the path that such a name stands for now; empty where the disk is not there."""
    device, _, rest = name.partition(" ")
    if not device.startswith(BY_ID):
        return name
    if not os.path.exists(device):
        return ""
    return f"/sys/block/{os.path.basename(os.path.realpath(device))}/{rest}"


def expand(values: Mapping[str, object]) -> tuple[dict[str, str], list[str]]:
    """Return the values by the paths that there are, and a sentence for each that there is not.

    :raises SysfsError: a path is elsewhere.
    """
    found, missing = {}, []
    for pattern, value in values.items():
        if not pattern.startswith(ROOT) or ".." in pattern.split("/"):
            raise SysfsError(f"values: {pattern} is no path below {ROOT}")
        paths = sorted(glob.glob(pattern))
        found.update(dict.fromkeys(paths, str(value)))
        if not paths:
            missing.append(f"{pattern}: this machine has none")
    return found, missing


def read(path: str) -> str | None:
    """Return the value in force; none where there is no such file, or it says nothing."""
    try:
        with open(path, encoding="ascii", errors="replace") as stream:
            return selected(stream.read())
    except OSError:
        return None


def same(found: str | None, wanted: str) -> bool:
    """Whether a value in force is the wanted one."""
    parts = re.fullmatch(r"0x[0-9a-f]+", found or "")
    return found == wanted or (wanted == "y" and parts is not None and int(parts[0], 16) > 0)


def write(path: str, value: str) -> str:
    """Set a value and read it back; return why that did not work, or nothing."""
    offered: list[str] = []
    try:
        with open(path, encoding="ascii") as stream:
            offered = stream.read().split()
        with open(path, "w", encoding="ascii") as stream:
            stream.write(value)
    except OSError as error:
        choice = f"; there are {', '.join(each.strip('[]') for each in offered)}"
        return (
            f"{path} = {value}: the kernel refuses it ({error.strerror}"
            f"{choice if len(offered) > 1 else ''})"
        )
    found = read(path)
    return "" if same(found, value) else f"{path} = {value}: the kernel made it {found}"


def run(module: AnsibleModule) -> dict[str, object]:
    """Bring file and kernel to the wanted state; return the module's result."""
    file: str = module.params["path"]
    try:
        with open(file, encoding="utf-8") as stream:
            old = stream.read()
    except FileNotFoundError:
        old = ""
    notes = parse_before(old)
    noted = {path: value for name, value in notes.items() if (path := at_present(name))}
    # Disks that are not there may come back.
    away = {name: value for name, value in notes.items() if not at_present(name)}
    absent = module.params["state"] == "absent"
    wanted, refused = ({}, []) if absent else expand(module.params["values"])
    now = {each: read(each) for each in {*wanted, *noted}}
    before = {
        lasting(each): noted.get(each, value) for each in wanted if (value := now[each]) is not None
    }
    # What is no longer named goes back to what it was.
    target = {**{each: value for each, value in noted.items() if each not in wanted}, **wanted}
    differ = {
        each: value
        for each, value in target.items()
        if now[each] is not None and not same(now[each], value)
    }
    content = "" if absent else module.params["content"]
    kept = {} if absent else {**away, **before}
    text = render(content, kept)
    # Until all is back that is no longer named: a run may end in between.
    back = {each: value for each, value in noted.items() if each in differ and each not in wanted}
    on_the_way = render(content, {**kept, **{lasting(each): back[each] for each in back}})
    if on_the_way == old:
        text = old  # the kernel refused it before
    changes: dict[str, list[str | None]] = {}
    if not module.check_mode:
        # The file first: it is what remembers the values before.
        if on_the_way != old and not absent:
            replace(file, on_the_way.encode(), 0, 0, 0o644)
        left: dict[str, str] = {}
        for each, value in sorted(differ.items()):
            reason = write(each, value)
            if reason:
                refused.append(reason)
                left |= {lasting(each): value} if each in back else {}
            else:
                changes[each] = [now[each], value]
        text = render(content, {**kept, **left})
        if text and text != (old if absent else on_the_way):
            replace(file, text.encode(), 0, 0, 0o644)
        elif old and not text:
            os.unlink(file)
    else:
        # Whether the kernel takes it shows only when tried, save where nothing can be written.
        changes = {
            each: [now[each], value]
            for each, value in sorted(differ.items())
            if os.access(each, os.W_OK)
        }
    shown = [{"before_header": file, "after_header": file, "before": old, "after": text}]
    for each, (was, value) in changes.items():
        shown.append({"before": f"{each} = {was}\n", "after": f"{each} = {value}\n"})
    return {
        "changed": text != old or bool(changes),
        "changed_values": changes,
        "refused": sorted(refused),
        "diff": shown,
    }


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "path": {"type": "path", "required": True},
            "content": {"type": "str"},
            "values": {"type": "dict", "default": {}},
            "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
        },
        required_if=[("state", "present", ["content"])],
        supports_check_mode=True,
    )
    try:
        module.exit_json(**run(module))
    except (SysfsError, OSError) as error:
        module.fail_json(msg=str(error))


if __name__ == "__main__":
    main()
