# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: nas.assistant contributors
"""Controller's side of config_set: confirms a guarded change over a new connection."""

from __future__ import annotations

import time
from typing import Any

from ansible.errors import AnsibleError
from ansible.module_utils.parsing.convert_bool import boolean
from ansible.plugins.action import ActionBase
from ansible_collections.nas.assistant.plugins.plugin_utils._door import (
    Door,
    confirm,
    reason_of,
    through,
)

Variables = dict[str, Any]
Result = dict[str, Any]
MODULE = "nas.assistant.config_set"
# Seconds until all that was applied after the answer must be in force: IPv6 addresses are tried
# for a second before they count, and the door may open before the last of them is there.
SETTLED = 15


class ActionModule(ActionBase):
    """See the module's documentation."""

    TRANSFERS_FILES = False

    def run(self, tmp: str | None = None, task_vars: Variables | None = None) -> Result:
        """Have the NAS make the change, and show it that its owner can still come in."""
        # Files may hold secrets, and the NAS's journal is not the place for them.
        task_vars = {**(task_vars or {}), "ansible_no_target_syslog": True}
        result: Result = super().run(tmp, task_vars)
        arguments = dict(self._task.args)
        result |= self._execute_module(
            module_name=MODULE, module_args=arguments, task_vars=task_vars
        )
        token = str(result.pop("token", ""))
        if token and not result.get("failed"):
            wish = arguments["guard"]
            result |= confirm(self, task_vars, str(arguments["name"]), token, wish)
            if boolean(wish.get("detached", False)) and not result.get("failed"):
                result |= self._settled(arguments, result["door"], task_vars)
        return result

    def _settled(self, arguments: Variables, opened: Result, task_vars: Variables) -> Result:
        """Wait until what was applied after the answer is in force; say what is not."""
        door = Door(opened["host"], opened["port"], opened["user"])
        deadline = time.monotonic() + SETTLED
        checking, self._task.check_mode = self._task.check_mode, True
        try:
            while True:
                try:
                    answer, _ = through(self, door, arguments, task_vars, module=MODULE)
                except AnsibleError as error:
                    answer = {"failed": True, "msg": reason_of(error)}
                if not answer.get("failed") and not answer.get("changed"):
                    return {}
                if time.monotonic() > deadline:
                    break
                time.sleep(1)
        finally:
            self._task.check_mode = checking
        reason = answer.get("msg") or "; ".join(
            f"there is {' and '.join(part['before'].splitlines()) or 'nothing'}, "
            f"and should be {' and '.join(part['after'].splitlines())}"
            for part in answer.get("diff", ())
        )
        name = arguments["name"]
        return {
            "failed": True,
            "msg": (
                f"{name}: the NAS answers at {door.host} and keeps the change, but not all of it "
                f"is in force after {SETTLED} s: {reason}. What went wrong there is in its journal "
                f"(journalctl -u nas-apply-{name})"
            ),
        }
