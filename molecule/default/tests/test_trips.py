# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: nas.assistant contributors
"""How often a run goes to the NAS: over a slow line, that is what it takes."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

from conftest import INVENTORY, LONG

PlaybookIn = Callable[..., subprocess.CompletedProcess[str]]
BUDGET = 60


@LONG
def test_a_run_without_change_makes_few_trips(playbook_in: PlaybookIn, tmp_path: Path) -> None:
    """Each trip is a program that Ansible starts; one that counts stands before it."""
    log = tmp_path / "log"
    environ = {}
    for name in ("ssh", "sftp", "scp"):
        program = tmp_path / name
        # One line each; what it is for is long, and goes over several.
        program.write_text(
            f'#!/bin/sh\necho "{name} $1 $2" >> {log}\nexec {shutil.which(name)} "$@"\n'
        )
        program.chmod(0o755)
        environ[f"ANSIBLE_{name.upper()}_EXECUTABLE"] = str(program)
    done = playbook_in(INVENTORY, environ, "site")
    assert done.returncode == 0, done.stdout
    assert re.search(r"^nas\d .* changed=0 ", done.stdout, re.M), done.stdout
    # Not counted: what ends the connection that a run shares.
    trips = [line for line in log.read_text().splitlines() if " -O " not in f"{line} "]
    assert len(trips) <= BUDGET, f"{len(trips)} of {os.linesep.join(sorted(set(trips)))}"
