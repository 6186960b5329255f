#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: nas.assistant contributors
"""How fast a model is read from a busy disk, by scheduler and rank: what ``io_priority`` brings.

    python tests/bench/bench_queue.py RESULT.json

As root. On a loop device with a filesystem of its own, which goes past the cache, some programs
read and write without end while one reads a file as large as a small model: all with the usual rank
(4), that one with the rank that the role assistant gives (2), and the others as backups and scrubs
run (idle). Schedulers and ranks take turns in one run. Trust the ratios.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

SIZE, MODEL = 1536, 128  # MiB
ROUNDS, NEIGHBOURS = 5, 3
SCHEDULERS = ("none", "mq-deadline", "bfq")
# Rank of who reads the model, and of the others.
RANKS = {
    "all alike": ("-c2 -n4", "-c2 -n4"),
    "the role's rank": ("-c2 -n2", "-c2 -n4"),
    "others idle": ("-c2 -n2", "-c3"),
}


def run(*command: str) -> str:
    """Run a command; return what it printed."""
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


@contextmanager
def disk(folder: Path) -> Iterator[tuple[str, Path]]:
    """A loop device of its own, mounted: its name, and where."""
    image, mounted = folder / "image", folder / "disk"
    mounted.mkdir()
    run("fallocate", "--length", f"{SIZE}MiB", str(image))
    device = run("losetup", "--find", "--show", "--direct-io=on", str(image))
    try:
        run("mkfs.ext4", "-q", device)
        run("mount", device, str(mounted))
        try:
            yield os.path.basename(device), mounted
        finally:
            run("umount", str(mounted))
    finally:
        run("losetup", "--detach", device)


@contextmanager
def neighbours(folder: Path, rank: str) -> Iterator[None]:
    """Programs that read, and one that writes, until the end."""
    reading = "while :; do dd if=$0 of=/dev/null bs=1M iflag=direct status=none; done"
    writing = "while :; do dd if=/dev/zero of=$0 bs=1M count=64 oflag=direct status=none; done"
    started = []
    try:
        for number in range(NEIGHBOURS):
            what, file = (writing, "written") if number == 0 else (reading, f"big{number}")
            command = ["ionice", *rank.split(), "sh", "-c", what, str(folder / file)]
            started.append(subprocess.Popen(command, start_new_session=True))
        time.sleep(0.5)
        yield
    finally:
        for process in started:
            os.killpg(process.pid, 15)
            process.wait()


def megabytes_per_second(folder: Path, rank: str) -> float:
    """How fast the model is read."""
    began = time.monotonic()
    read = ["dd", f"if={folder}/model", "of=/dev/null", "bs=1M", "iflag=direct", "status=none"]
    run("ionice", *rank.split(), *read)
    return MODEL * 1.048576 / (time.monotonic() - began)


def measure(device: str, folder: Path) -> dict[str, dict[str, float]]:
    """Each rank with each scheduler, in turns."""
    for name in ("model", *(f"big{number}" for number in range(1, NEIGHBOURS))):
        run("dd", "if=/dev/urandom", f"of={folder}/{name}", "bs=1M", f"count={MODEL}")
    speeds: dict[tuple[str, str], list[float]] = {}
    queue = Path("/sys/block", device, "queue/scheduler")
    for _ in range(ROUNDS):
        for scheduler in SCHEDULERS:
            queue.write_text(scheduler, encoding="ascii")
            for name, (ours, theirs) in RANKS.items():
                with neighbours(folder, theirs):
                    found = megabytes_per_second(folder, ours)
                speeds.setdefault((scheduler, name), []).append(found)
    usual = statistics.median(speeds[SCHEDULERS[0], "all alike"])
    return {
        scheduler: {
            name: round(statistics.median(speeds[scheduler, name]) / usual, 2) for name in RANKS
        }
        for scheduler in SCHEDULERS
    } | {"none, all alike, in MB/s": {"median": round(usual, 1)}}


def main() -> int:
    """Measure, print, and write the result."""
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(dir="/var/tmp", prefix="bench-"))
        device, mounted = stack.enter_context(disk(Path(folder)))
        found = measure(device, mounted)
    print(json.dumps(found, indent=2))
    Path(sys.argv[1]).write_text(f"{json.dumps(found, indent=2)}\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
