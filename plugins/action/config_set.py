# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: nas.assistant contributors
"""Controller's side of config_set: confirms a guarded change over a new connection."""

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
        """Have the NAS make the change, and show it that its owner can still come in."""
        result: Result = super().run(tmp, task_vars)
        arguments = dict(self._task.args)
        result |= self._execute_module(
            module_name="nas.assistant.config_set", module_args=arguments, task_vars=task_vars
        )
        token = str(result.pop("token", ""))
        if token and not result.get("failed"):
            result |= confirm(
                self, task_vars or {}, str(arguments["name"]), token, arguments["guard"]
            )
        return result
