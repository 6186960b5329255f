# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: nas.assistant contributors
"""Commands that prepare and ask what the modules work on."""

from __future__ import annotations

import os
import subprocess

# Of a test's own pool: a lab that runs beside it may have one that is called tank.
LABEL = f"tank{os.getpid()}"


def sh(*argv: str) -> str:
    """Run a command that must succeed; return what it prints."""
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{argv}: {done.stderr}"
    return done.stdout
