#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: nas.assistant contributors
"""How long nobody gets in by SSH while a program takes all memory, with the pages that were used
last kept for a second, as the role `kernel` has it, and without.

    python tests/bench/bench_pressure.py RESULT.json

On a virtual machine, whose memory is its own. It is asked for its SSH greeting every half second,
which takes a new process there; what counts is the longest time without one until the kernel ends
the program. Both take turns. The CPU is an emulated one: trust the ratios.
"""

from __future__ import annotations

import json
import socket
import statistics
import sys
import threading
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from site_lab import Lab, blank  # noqa: E402

NAME = "benchpressure"
ROUNDS = 3
PATIENCE = 600  # seconds
SWAP = {
    "no swap": "true",
    "zram": "modprobe zram; zramctl --algorithm zstd --size 1G /dev/zram0; "
    "mkswap -q /dev/zram0; swapon /dev/zram0",
    "file": "fallocate -l 1G /swap; chmod 600 /swap; mkswap -q /swap; swapon /swap",
}
NO_SWAP = "swapoff -a; rm -f /swap; test ! -e /dev/zram0 || zramctl --reset /dev/zram0"
KEEP = {
    "as it comes": "echo n >enabled; echo 0 >min_ttl_ms",
    "kept": "echo y >enabled; echo 1000 >min_ttl_ms",
}
# Half of each page is noise, which does not vanish where memory is compressed.
HOG = (
    "import os; page = os.urandom(2048) + b'x' * 2048; taken = [page * 2048 for _ in iter(int, 1)]"
)


class Caller(threading.Thread):
    """Rings at the door until told to stop; ``longest`` is the longest silence in seconds."""

    def __init__(self, address: str) -> None:
        super().__init__(daemon=True)
        self._address = address
        self.stopped = threading.Event()
        self.longest = 0.0

    def run(self) -> None:
        """Ask for a greeting again and again."""
        answered = time.monotonic()
        while not self.stopped.wait(0.5):
            try:
                with socket.create_connection((self._address, 22), timeout=5) as stream:
                    greeted = stream.recv(4) == b"SSH-"
            except OSError:
                greeted = False
            if greeted:
                self.longest = max(self.longest, time.monotonic() - answered)
                answered = time.monotonic()


def fill(lab: Lab) -> tuple[float, float]:
    """Take all memory; return the longest silence, and how long the program lasted."""
    host = lab.hosts[0]
    lab.on(host, f'systemd-run --quiet --unit=hog python3 -c "{HOG}"')
    caller, started = Caller(host["ssh_host"]), time.monotonic()
    caller.start()
    state = ""
    while "failed" not in state:
        assert time.monotonic() - started < PATIENCE, "it goes on"
        time.sleep(2)
        try:
            state = lab.on(host, "systemctl is-failed hog.service || true")
        except AssertionError:  # nobody gets in
            continue
    lasted = time.monotonic() - started
    caller.stopped.set()
    caller.join()
    assert "oom-kill" in lab.on(host, "systemctl show --property=Result hog.service")
    lab.on(host, "systemctl reset-failed hog.service")
    return caller.longest, lasted


def measure(lab: Lab) -> dict[str, Any]:
    """Each kind of swap with both, in turns; seconds."""
    host = lab.hosts[0]
    found: dict[str, Any] = {}
    for swap, made in SWAP.items():
        silences: dict[str, list[float]] = {name: [] for name in KEEP}
        lasted: dict[str, list[float]] = {name: [] for name in KEEP}
        for _ in range(ROUNDS):
            for name, command in KEEP.items():
                lab.on(host, f"{NO_SWAP}; {made}; cd /sys/kernel/mm/lru_gen; {command}")
                silence, seconds = fill(lab)
                silences[name].append(round(silence, 1))
                lasted[name].append(round(seconds, 1))
                print(f"{swap:8} {name:12} silent {silence:6.1f} s of {seconds:6.1f} s", flush=True)
        found[swap] = {
            name: {
                "silent": silences[name],
                "median": statistics.median(silences[name]),
                "lasted": statistics.median(lasted[name]),
            }
            for name in KEEP
        }
    return found


def main() -> int:
    """Measure, and write the result."""
    with blank(NAME, kind="vm") as lab:
        found = measure(lab)
    Path(sys.argv[1]).write_text(f"{json.dumps(found, indent=2)}\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
