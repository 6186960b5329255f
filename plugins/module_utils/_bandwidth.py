# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: nas.assistant contributors
"""How fast the processor reads memory: what a model's speed hangs on, since each token reads all of
its weights."""

from __future__ import annotations

import time
from multiprocessing import get_context

_LARGEST = 64 << 20  # bytes that each process reads: more than caches of a NAS hold
_ROUNDS = 5


def measure(processes: int, available: int) -> int:
    """Return bytes a second that so many processes read at the same time, in all.

    :param available: bytes of memory that may be had; a small part of them is taken.
    """
    size = min(_LARGEST, available // 8 // processes)
    with get_context("fork").Pool(processes) as pool:
        return sum(pool.map(_read, [size] * processes, chunksize=1))


def _read(size: int) -> int:
    # Written first, or the kernel gives the same page of zeros for all of it. The search for a byte
    # that is not there is as fast as memory: the C library does it with the widest registers.
    filled = b"\2" * size
    best = float("inf")
    for _ in range(_ROUNDS):
        started = time.perf_counter()
        filled.find(b"\1")
        best = min(best, time.perf_counter() - started)
    return int(size / best)
