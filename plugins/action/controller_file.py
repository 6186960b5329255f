# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: nas.assistant contributors
"""Writes a file on the controller without starting a program there."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import Any

from ansible.errors import AnsibleActionFail
from ansible.plugins.action import ActionBase
from ansible_collections.nas.assistant.plugins.module_utils._files import (
    FilesError,
    Found,
    Wanted,
    apply,
    diff,
    differs,
    look,
)

Variables = dict[str, Any]
Result = dict[str, Any]


def steps(dest: str, content: str, mode: str, folder_mode: str) -> list[tuple[Wanted, Found]]:
    """Return what must change, the folder before the file, each with what is there now.

    Root leaves what is there with its owner, and gives what is new to the owner of the folder that
    it comes into; so nothing is taken from who runs Ansible without being root at other times.

    :raises FilesError: a mode is none, or there is a folder in the file's place.
    """
    entries = [
        {"dest": os.path.dirname(dest), "state": "directory", "mode": folder_mode},
        {"dest": dest, "content": content, "mode": mode},
    ]
    needed = []
    for wanted in map(Wanted.of, entries):
        try:
            found = look(wanted)
        except PermissionError:  # somebody else's file in a folder of our own
            found = Found(exists=False)
        uid, gid = _owner(wanted.path)
        mine = replace(wanted, uid=uid, gid=gid)
        # Whose it is does not count, as long as it is readable and right.
        if differs(replace(wanted, uid=found.uid, gid=found.gid), found):
            needed.append((mine, found))
    return needed


def _owner(path: str) -> tuple[int, int]:
    """Whose a file is to be: user and group."""
    if os.geteuid() != 0:
        return os.geteuid(), os.getegid()
    while not os.path.exists(path):
        path = os.path.dirname(path)
    status = os.stat(path)
    return status.st_uid, status.st_gid


class ActionModule(ActionBase):
    """See the module's documentation."""

    TRANSFERS_FILES = False

    def run(self, tmp: str | None = None, task_vars: Variables | None = None) -> Result:
        """Compare, and write what differs."""
        result: Result = super().run(tmp, task_vars)
        _, arguments = self.validate_argument_spec(
            argument_spec={
                "dest": {"type": "path", "required": True},
                "content": {"type": "str", "required": True},
                "mode": {"type": "str", "default": "0600"},
                "folder_mode": {"type": "str", "default": "0700"},
            }
        )
        dest = os.path.abspath(arguments["dest"])
        try:
            needed = steps(dest, arguments["content"], arguments["mode"], arguments["folder_mode"])
            for wanted, _ in needed if not self._task.check_mode else ():
                apply(wanted)
        except (FilesError, OSError) as error:
            raise AnsibleActionFail(f"{dest} on the controller: {error}") from error
        result |= {"changed": bool(needed), "dest": dest}
        if self._task.diff:
            result["diff"] = [
                diff(wanted, found) for wanted, found in needed if not wanted.directory
            ]
        return result
