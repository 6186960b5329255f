# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: nas.assistant contributors
"""How fast the processor reads memory: what a model's speed hangs on, since each token reads all of
its weights."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from contextlib import suppress
from multiprocessing import get_context
from typing import Any

_LARGEST = 64 << 20  # bytes that each process reads: more than caches of a NAS hold
_SECONDS = 0.3
_PATIENCE = 20  # seconds until all are ready
_THREADS = 8  # the engine's, at most, unless the inventory says otherwise


def measure(cpus: Sequence[int], available: int) -> int:
    """Return bytes a second that these CPUs together read, those of them that may be used here.

    :param cpus: one for each core; the first of them count, as many as the engine has threads.
    :param available: bytes of memory that may be had; a small part of them is taken.
    :raises RuntimeError: there is too much else to do to begin together.
    """
    used = sorted(set(cpus) & os.sched_getaffinity(0))[:_THREADS]
    processes = len(used)
    if not processes:
        return 0
    size = min(_LARGEST, available // 8 // processes)
    context = get_context("fork")
    # All begin when the last one is ready: alone, one has the memory to itself.
    start = context.Barrier(processes)
    with context.Pool(processes, _prepare, (start,)) as pool:
        return sum(pool.starmap(_read, [(cpu, size) for cpu in used], chunksize=1))


_start: Any = None


def _prepare(start: Any) -> None:
    global _start
    _start = start


def _read(cpu: int, size: int) -> int:
    with suppress(OSError):
        os.sched_setaffinity(0, {cpu})
    # Written first, or the kernel gives the same page of zeros for all of it. The search for a byte
    # that is not there is as fast as memory: the C library does it with the widest registers.
    filled = b"\2" * size
    _start.wait(_PATIENCE)
    began, done = time.perf_counter(), 0
    while (took := time.perf_counter() - began) < _SECONDS:
        filled.find(b"\1")
        done += size
    return int(done / took)
