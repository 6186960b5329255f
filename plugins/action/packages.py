# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: nas.assistant contributors
"""Controller's side of packages: Ansible's own module, with what every role wants of it."""

from __future__ import annotations

import contextlib
import re
import urllib.parse
from pathlib import Path
from typing import Any

from ansible import constants
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
_NAME = re.compile(r"[a-z0-9][a-z0-9+.-]+")
_LOOK = r"dpkg-query --show --showformat '${db:Status-Status} ${Package}\n'"


class ActionModule(ActionBase):
    """See the module's documentation."""

    TRANSFERS_FILES = False

    def run(self, tmp: str | None = None, task_vars: Variables | None = None) -> Result:
        """Install what is missing; say in check mode whether anything is."""
        result: Result = super().run(tmp, task_vars)
        names = self._task.args.get("name")
        if set(self._task.args) != {"name"} or not isinstance(names, str | list) or not names:
            raise AnsibleActionFail(f"packages: name={names!r}: give a list of packages")
        if self._installed([names] if isinstance(names, str) else names, task_vars):
            return result | {"changed": False, "planned": False}
        checking = bool(self._task.check_mode)
        self._noted(task_vars).unlink(missing_ok=True)
        answer: Result = self._execute_module(
            module_name="ansible.builtin.apt",
            module_args={"name": names, **SETTINGS},
            task_vars=task_vars,
        )
        # Check mode fetches no package lists, and a fresh system may have none: that is a plan.
        if checking and answer.get("failed") and "No package matching" in answer.get("msg", ""):
            answer = {"changed": True}
        return result | answer | {"planned": checking and bool(answer.get("changed"))}

    def _installed(self, names: list[str], task_vars: Variables | None) -> bool:
        """Ask dpkg, which answers at once, whether apt has anything to do; of all packages, so that
        it is asked once in a run.
        """
        if not all(_NAME.fullmatch(str(name)) for name in names):
            return False  # a version, or a pattern
        noted = self._noted(task_vars)
        with contextlib.suppress(OSError):
            return set(names) <= set(noted.read_text(encoding="utf-8").split())
        answer = self._low_level_execute_command(_LOOK, sudoable=False)
        rows = [line.split() for line in answer["stdout"].splitlines()] if not answer["rc"] else []
        # Of another architecture there may be one that was removed.
        gone = {row[-1] for row in rows if row[0] != "installed"}
        there = {row[-1] for row in rows if row[0] == "installed"} - gone
        if there:
            noted.write_text(" ".join(there), encoding="utf-8")
        return set(names) <= there

    def _noted(self, task_vars: Variables | None) -> Path:
        """The file that says what a host has. Ansible deletes its folder at the end of the run, and
        each task is a process of its own.
        """
        host = str((task_vars or {}).get("inventory_hostname", ""))
        name = f"nas.assistant.packages.{urllib.parse.quote(host, safe='')}"
        return Path(constants.DEFAULT_LOCAL_TMP, name)
