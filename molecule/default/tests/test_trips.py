# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: nas.assistant contributors
"""How often a run goes to a NAS with more switched on; test_proxy.py counts it as it is."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

from conftest import INVENTORY, LONG
from trips import BUDGET, trips

PlaybookIn = Callable[..., subprocess.CompletedProcess[str]]
MORE = {"console_state": "present", "network_mdns": {"enabled": True}}


@LONG
def test_a_run_without_change_makes_few_trips(playbook_in: PlaybookIn, tmp_path: Path) -> None:
    off = {"console_state": "absent", "network_mdns": {"enabled": False}}
    try:
        made = playbook_in(INVENTORY, {}, "site", "--extra-vars", json.dumps(MORE))
        assert made.returncode == 0, made.stdout
        found = trips(playbook_in, tmp_path, **MORE)
    finally:
        back = playbook_in(INVENTORY, {}, "site", "--extra-vars", json.dumps(off))
    assert back.returncode == 0, back.stdout
    assert len(found) <= BUDGET, f"{len(found)} of {os.linesep.join(sorted(set(found)))}"
