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
from multiprocessing.connection import Connection
from threading import BrokenBarrierError
from typing import Any

_LARGEST = 64 << 20  # bytes that each process reads: more than caches of a NAS hold
_SECONDS = 0.3
_PATIENCE = 20  # seconds until all are ready, and once more until all are done
_THREADS = 8  # the engine's, at most, unless the inventory says otherwise


def measure(cpus: Sequence[int], available: int) -> int:
    """Return bytes a second that these CPUs together read, those of them that may be used here.

    :param cpus: one for each core; the first of them count, as many as the engine has threads.
    :param available: bytes of memory that may be had; a small part of them is taken.
    :raises RuntimeError: there is too much else to do to begin together, or a process was ended,
        as the kernel does it where memory runs out.
    """
    used = sorted(set(cpus) & os.sched_getaffinity(0))[:_THREADS]
    processes = len(used)
    if not processes:
        return 0
    size = min(_LARGEST, available // 8 // processes)
    context = get_context("fork")
    # All begin when the last one is ready: alone, one has the memory to itself.
    start = context.Barrier(processes)
    deadline = time.monotonic() + 2 * _PATIENCE
    # No pool: one waits for ever for the answer of a process that was killed.
    readers = []
    try:
        for cpu in used:
            ours, theirs = context.Pipe(duplex=False)
            reader = context.Process(target=_read, args=(cpu, size, start, theirs))
            readers.append((reader, ours))
            reader.start()
            # Else nobody would see that the process is gone.
            theirs.close()
        return sum(_answer(ours, deadline) for _, ours in readers)
    finally:
        for reader, ours in readers:
            if reader.pid:
                reader.kill()
                reader.join()
            ours.close()


def _answer(ours: Connection, deadline: float) -> int:
    try:
        if ours.poll(max(0, deadline - time.monotonic())):
            return int(ours.recv())
    except EOFError:
        raise RuntimeError("a process that reads memory was ended") from None
    raise RuntimeError("the processes that read memory take too long")


def _read(cpu: int, size: int, start: Any, theirs: Connection) -> None:
    with suppress(OSError):
        os.sched_setaffinity(0, {cpu})
    with suppress(BrokenBarrierError, MemoryError):
        # Written first, or the kernel gives the same page of zeros for all of it. The search for a
        # byte that is not there is as fast as memory: the C library does it with the widest
        # registers.
        filled = b"\2" * size
        start.wait(_PATIENCE)
        began, done = time.perf_counter(), 0
        while (took := time.perf_counter() - began) < _SECONDS:
            filled.find(b"\1")
            done += size
        theirs.send(int(done / took))
