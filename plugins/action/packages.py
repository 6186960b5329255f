# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: nas.assistant contributors
"""Controller's side of packages: Ansible's own module, with what every role wants of it."""

from __future__ import annotations

from typing import Any

from ansible.errors import AnsibleActionFail
from ansible.plugins.action import ActionBase

Variables = dict[str, Any]
Result = dict[str, Any]
SETTINGS = {
    "install_recommends": False,
    "update_cache": True,
    "cache_valid_time": 86400,
    # The system's own updates may be at work; they are done within minutes.
    "lock_timeout": 300,
}


class ActionModule(ActionBase):
    """See the module's documentation."""

    TRANSFERS_FILES = False

    def run(self, tmp: str | None = None, task_vars: Variables | None = None) -> Result:
        """Install what is missing; say in check mode whether anything is."""
        result: Result = super().run(tmp, task_vars)
        names = self._task.args.get("name")
        if set(self._task.args) != {"name"} or not isinstance(names, str | list) or not names:
            raise AnsibleActionFail(f"packages: name={names!r}: give a list of packages")
        checking = bool(self._task.check_mode)
        answer: Result = self._execute_module(
            module_name="ansible.builtin.apt",
            module_args={"name": names, **SETTINGS},
            task_vars=task_vars,
        )
        # Check mode fetches no package lists, and a fresh system may have none: that is a plan.
        if checking and answer.get("failed") and "No package matching" in answer.get("msg", ""):
            answer = {"changed": True}
        return result | answer | {"planned": checking and bool(answer.get("changed"))}
