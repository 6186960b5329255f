# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: nas.assistant contributors
"""How often a run goes to the NAS: over a slow line, that is what it takes."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

from conftest import INVENTORY

PlaybookIn = Callable[..., subprocess.CompletedProcess[str]]
#: Of a run without change, with all roles.
BUDGET = 60
#: Of them, for what is off unless asked for: the console, and the name that is announced.
LEFT = 3


def trips(playbook_in: PlaybookIn, folder: Path, **variables: Any) -> list[str]:
    """Run the site, which must change nothing. Each trip is a program that Ansible starts; one that
    counts stands before it.
    """
    log = folder / "log"
    environ = {}
    for name in ("ssh", "sftp", "scp"):
        program = folder / name
        # One line each; what it is for is long, and goes over several.
        program.write_text(
            f'#!/bin/sh\necho "{name} $1 $2" >> {log}\nexec {shutil.which(name)} "$@"\n'
        )
        program.chmod(0o755)
        environ[f"ANSIBLE_{name.upper()}_EXECUTABLE"] = str(program)
    done = playbook_in(INVENTORY, environ, "site", "--extra-vars", json.dumps(variables))
    assert done.returncode == 0, done.stdout
    assert re.search(r"^nas\d .* changed=0 ", done.stdout, re.M), done.stdout
    # Not counted: what ends the connection that a run shares.
    return [line for line in log.read_text().splitlines() if " -O " not in f"{line} "]
