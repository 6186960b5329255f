# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: nas.assistant contributors
"""What dpkg is asked, and how often in a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from ansible.plugins.action import ActionBase
from ansible_collections.nas.assistant.plugins.action import packages

ROWS = ["installed nginx", "installed openssl", "config-files avahi-daemon"]
# Of two architectures, of which one was removed.
ROWS += ["installed libc6", "deinstall libc6"]


class Nas(packages.ActionModule):  # type: ignore[misc]
    """One that has packages; ``asked`` counts the trips to it, ``apt`` those for apt."""

    def __init__(self, *rows: str, check: bool = False) -> None:
        self.rows, self.asked, self.apt = rows, 0, 0
        self._check = check

    def _low_level_execute_command(self, *_: Any, **__: Any) -> dict[str, Any]:
        self.asked += 1
        return {"rc": 0 if self.rows else 127, "stdout": "\n".join(self.rows)}

    def _execute_module(self, **_: Any) -> dict[str, Any]:
        self.apt += 1
        self.rows = (*self.rows, "installed certbot")
        return {"changed": True}

    def wants(self, *names: str, host: str = "nas1") -> dict[str, Any]:
        """What the task says."""

        class Task:
            args, check_mode = {"name": list(names)}, self._check

        self._task = Task()
        said: dict[str, Any] = self.run(None, {"inventory_hostname": host})
        return said


@pytest.fixture(autouse=True)
def run_of_ansible(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packages.constants, "DEFAULT_LOCAL_TMP", str(tmp_path))
    monkeypatch.setattr(ActionBase, "run", lambda *_: {})


def test_dpkg_is_asked_once_in_a_run() -> None:
    nas = Nas(*ROWS)
    for names in (("nginx",), ("openssl", "nginx"), ("nginx",)):
        assert nas.wants(*names) == {"changed": False, "planned": False}
    assert (nas.asked, nas.apt) == (1, 0)
    other = Nas(*ROWS)
    other.wants("nginx", host="nas/2")
    assert other.asked == 1


@pytest.mark.parametrize("name", ["avahi-daemon", "libc6", "nothing", "nginx=1.22"])
def test_what_is_not_there_is_for_apt(name: str) -> None:
    nas = Nas(*ROWS)
    assert nas.wants("nginx", name) == {"changed": True, "planned": False}
    assert nas.apt == 1


def test_what_was_installed_is_known_afterwards() -> None:
    nas = Nas(*ROWS)
    for changed in (False, True, False):
        assert nas.wants("nginx" if not nas.asked else "certbot")["changed"] is changed
    assert (nas.asked, nas.apt) == (2, 1)


def test_check_mode_knows_what_is_to_come() -> None:
    nas = Nas(*ROWS, check=True)
    assert nas.wants("certbot") == {"changed": True, "planned": True}


def test_a_system_without_dpkg_is_for_apt() -> None:
    assert Nas().wants("nginx")["changed"]
