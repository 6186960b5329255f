# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: nas.assistant contributors
"""One at a time.

Two commands on the same lab, or two builds of the same image, wait for each other.
"""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager

from lab import paths
from lab.progress import say


@contextmanager
def held(name: str, *, quiet: bool = False) -> Iterator[None]:
    """Hold a lock of this checkout. The kernel frees it when the process ends, however it ends."""
    folder = paths.home() / "locks"
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / name).open("w", encoding="utf-8") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if not quiet:
                say(f"waiting for another command that works on {name}")
            fcntl.flock(stream, fcntl.LOCK_EX)
        yield
