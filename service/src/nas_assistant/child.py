# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: nas.assistant contributors
"""Starts a child process that does not outlive its parent: ``python -m nas_assistant.child SIGNAL
PARENT COMMAND…``.

A container ends with its first process, but the same service started by hand would leave its engine
behind.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def die_with_parent(number: signal.Signals, parent: int) -> None:
    """Have the kernel send ``number`` to this process when its parent, of id ``parent``, ends."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(number), 0, 0, 0)
    if os.getppid() != parent:
        # It ended before the kernel was told.
        os.kill(os.getpid(), number)


def child_command(number: signal.Signals, command: list[str]) -> list[str]:
    """``command`` for a child that gets ``number`` when this process ends."""
    return [
        sys.executable,
        "-m",
        "nas_assistant.child",
        str(int(number)),
        str(os.getpid()),
        *command,
    ]


if __name__ == "__main__":
    die_with_parent(signal.Signals(int(sys.argv[1])), int(sys.argv[2]))
    os.execvp(sys.argv[3], sys.argv[3:])
