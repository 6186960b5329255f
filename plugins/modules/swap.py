#!/usr/bin/python
# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: nas.assistant contributors

from __future__ import annotations

DOCUMENTATION = r"""
---
module: swap
short_description: Swap in a file, on Btrfs too, or in compressed memory
version_added: 0.1.0
description:
  - Makes swap, has systemd use it now and at boot, and takes away what it made before and is no
    longer wanted. Swap that it did not make is left alone.
  - A file on Btrfs is without copy-on-write and compression, in a subvolume of its own, since one
    that holds swap in use cannot be snapshotted. Before an old one goes, the kernel has taken the
    new one.
  - Memory is compressed by C(zram), set up by util-linux. The configuration of a package made for
    it would stay in force after the module has taken its own away.
  - M(community.general.filesize) makes a file, and nothing of the rest.
author:
  - The nas.assistant contributors
options:
  kind:
    description:
      - V(file), or V(zram), a part of the memory that is compressed.
      - V(keep) leaves the NAS with the swap that it has of its own.
    type: str
    choices: [keep, file, zram]
    required: true
  size:
    description: Its size, such as V(2G) or V(512M). Needed unless O(kind=keep).
    type: str
  path:
    description: The file. Needed with O(kind=file). What is there and was not made by this module
      is refused.
    type: path
attributes:
  check_mode:
    description: Says what would be made and taken away. Whether the kernel takes a file shows only
      when it is made.
    support: full
  diff_mode:
    description: Shows swap of the module's own before and after.
    support: full
"""

EXAMPLES = r"""
- name: Swap to memory that is compressed
  nas.assistant.swap:
    kind: zram
    size: 2G

- name: Swap to a file
  nas.assistant.swap:
    kind: file
    path: /var/lib/nas-assistant/swap/file
    size: 2G
"""

RETURN = r"""
unit:
  description: The unit of systemd that uses it; empty where there is none of ours.
  type: str
  returned: success
"""

import os
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.nas.assistant.plugins.module_utils import _swap as swap
from ansible_collections.nas.assistant.plugins.module_utils._commands import run
from ansible_collections.nas.assistant.plugins.module_utils._sizes import bytes_of
from ansible_collections.nas.assistant.plugins.module_utils._swap import Swap, SwapError
from ansible_collections.nas.assistant.plugins.module_utils._systemd import (
    SystemdError,
    carry_out,
    loaded_at,
    newer_than,
    plan,
    plan_off,
    show,
    systemctl,
)


def wish_of(params: dict[str, Any]) -> Swap | None:
    """Return the swap that is wanted, if any.

    :raises SwapError: an option is missing or wrong.
    """
    if params["kind"] == "keep":
        return None
    try:
        size = bytes_of(params["size"])
    except ValueError as error:
        raise SwapError(f"size={error}") from None
    if size < 1 << 20:
        raise SwapError(f"size={params['size']}: swap of less than 1M is of no use")
    # Whole pages, since that is what a file comes out as.
    size -= size % 4096
    path = params["path"] if params["kind"] == "file" else ""
    if path and (not swap.PATH.fullmatch(path) or {".", ".."} & set(path.split("/"))):
        raise SwapError(f"path={path} is no path of letters, digits, dots and dashes from / on")
    return Swap(path, size)


def refuse(wish: Swap, have: dict[str, Swap], fresh: bool) -> None:
    """Look at what is there before anything changes.

    :param fresh: whether it would be made.
    :raises SwapError: it is somebody else's, or the machine cannot have it.
    """
    if run(["systemd-detect-virt", "--container", "--quiet"]).returncode == 0:
        raise SwapError("kind: this NAS is a container, and swap is its host's. Take kind=keep")
    claimed = wish.path in {each.path for each in have.values()}
    if wish.kind == "zram":
        others = [path for path in swap.in_use() if os.path.basename(path).startswith("zram")]
        if others and not claimed:
            raise SwapError(
                f"kind=zram: something else swaps to {others[0]} already. Take away what set it up "
                "(such as systemd-zram-generator or zram-tools), or take kind=keep"
            )
        if not swap.has_zram():
            raise SwapError("kind=zram: this kernel has no zram. Take kind=file, or kind=keep")
        return
    if os.path.lexists(wish.path) and not claimed:
        raise SwapError(
            f"path={wish.path}: it is there, and not made by this module. Move it away, or take "
            "another path"
        )
    folder = os.path.dirname(wish.path)
    if os.path.realpath(folder) != folder:
        raise SwapError(
            f"path={wish.path}: {folder} is a link, and systemd knows swap by its real path. Take "
            f"{os.path.realpath(folder)}/{os.path.basename(wish.path)}"
        )
    if fresh:
        swap.refuse_place(wish.path, wish.size)


def bring(params: dict[str, Any], check_mode: bool) -> dict[str, Any]:
    """Bring swap to what is wanted; return the module's result."""
    wish, have = wish_of(params), swap.ours()
    fresh = bool(wish and wish.path and swap.size_of(wish.path) != wish.size)
    if wish:
        refuse(wish, have, fresh)
    name = swap.unit(wish) if wish else ""
    gone = {unit: each for unit, each in have.items() if unit != name}
    again = fresh or bool(
        wish and (not swap.is_written(wish, name) or _is_outdated(name) or _is_gone(wish, name))
    )
    changed = bool(gone or again or (wish and _verbs(name)))
    if changed and not check_mode:
        _change(wish, name, gone, fresh, again)
    return {
        "changed": changed,
        "unit": name,
        "diff": {
            "before": "".join(f"{unit}: {_spoken(each)}\n" for unit, each in have.items()),
            "after": f"{name}: {_spoken(wish)}\n" if wish else "",
        },
    }


def _change(wish: Swap | None, name: str, gone: dict[str, Swap], fresh: bool, again: bool) -> None:
    """Make what is wanted, take away what is not, and use it.

    :param fresh: whether the file is to be made.
    :param again: whether what is in use under that name goes out of use first.
    """
    if wish and again:
        # First of all, so that whatever a run leaves that is cut off is known for ours.
        swap.write_unit(wish, name)
        systemctl("daemon-reload")
    if wish and fresh:
        swap.make(wish.path, wish.size)
    for unit, each in gone.items():
        _off(unit, each)
        if each.path:
            swap.remove(each.path)
        os.unlink(os.path.join(swap.UNITS, unit))
    if gone:
        systemctl("daemon-reload")
    if wish and again:
        _off(name, wish)
    if wish and fresh:
        swap.put(wish.path)
    if wish:
        carry_out(name, _verbs(name), "")


def _verbs(unit: str) -> list[str]:
    return list(plan(show([unit])[unit], [], "restart"))


def _is_outdated(unit: str) -> bool:
    """Whether it came into use before its file was written, by a run that was cut off then."""
    found = show([unit])[unit]
    newer = newer_than([os.path.join(swap.UNITS, unit)], loaded_at(found, ""))
    return found["ActiveState"] == "active" and bool(newer)


def _is_gone(wish: Swap, unit: str) -> bool:
    """Whether somebody has switched it off, which systemd sees of a file only."""
    if wish.kind != "zram" or show([unit])[unit]["ActiveState"] != "active":
        return False
    return not any(os.path.basename(path).startswith("zram") for path in swap.in_use())


def _off(unit: str, each: Swap) -> None:
    """Have it out of use; whatever systemd says, the kernel is asked."""
    carry_out(unit, plan_off(show([unit])[unit]), "")
    used = [
        path
        for path in swap.in_use()
        if (path == each.path if each.path else os.path.basename(path).startswith("zram"))
    ]
    if used:
        raise SwapError(
            f"{used[0]} cannot go: what is in it finds no room in memory. End some programs, or "
            "restart the NAS, and run this again"
        )


def _spoken(each: Swap) -> str:
    return f"{each.kind} {each.path} {each.size or swap.size_of(each.path)}".replace("  ", " ")


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "kind": {"type": "str", "choices": ["keep", "file", "zram"], "required": True},
            "size": {"type": "str"},
            "path": {"type": "path"},
        },
        required_if=[("kind", "file", ["path", "size"]), ("kind", "zram", ["size"])],
        supports_check_mode=True,
    )
    try:
        module.exit_json(**bring(module.params, module.check_mode))
    except (SwapError, SystemdError, OSError) as error:
        module.fail_json(msg=str(error))


if __name__ == "__main__":
    main()
