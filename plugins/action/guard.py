# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: nas.assistant contributors
"""Controller's side of guard: a confirmation goes over a new connection, never over the old one."""

from __future__ import annotations

from typing import Any

from ansible.plugins.action import ActionBase
from ansible_collections.nas.assistant.plugins.plugin_utils._door import confirm

Variables = dict[str, Any]
Result = dict[str, Any]


class ActionModule(ActionBase):
    """See the module's documentation."""

    TRANSFERS_FILES = False

    def run(self, tmp: str | None = None, task_vars: Variables | None = None) -> Result:
        """Arm or revert on the NAS; confirm from here."""
        result: Result = super().run(tmp, task_vars)
        arguments = dict(self._task.args)
        if arguments.get("state") != "confirmed":
            answer: Result = self._execute_module(
                module_name="nas.assistant.guard", module_args=arguments, task_vars=task_vars
            )
            return result | answer
        if self._task.check_mode:
            return result | {"changed": False}
        undone: Result = confirm(
            self, task_vars or {}, str(arguments["name"]), str(arguments.get("token")), arguments
        )
        return result | {"changed": False} | undone
