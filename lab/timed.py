# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: nas.assistant contributors
"""`lab timed NAME -- COMMAND`.

Run a command as it is and record its seconds beside the lab's own steps.
"""

from __future__ import annotations

import subprocess
import time
from collections.abc import Sequence

from lab.errors import LabError
from lab.progress import record, say


def timed(name: str, command: Sequence[str]) -> None:
    """Run the command with its output on this terminal; raise LabError when it fails."""
    if not command:
        raise LabError("no command to time: python3 -m lab timed NAME -- COMMAND")
    say(f"{name} …")
    began = time.monotonic()
    try:
        code = subprocess.run(list(command), check=False).returncode
    except FileNotFoundError:
        raise LabError(f"{command[0]!r} is not installed. `make setup` installs it.") from None
    seconds = time.monotonic() - began
    if code != 0:
        raise LabError(
            f"{name} failed (exit code {code}) after {seconds:.0f} s; the lines above say why. "
            "Mend it and run the same command again: it goes on from here."
        )
    say(f"{name}: {seconds:.1f} s")
    record(name, seconds)
