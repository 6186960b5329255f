#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: nas.assistant contributors
"""How late answers are while the NAS is busy, with and without the container's CPU set, weight,
rank at the disk and limit of CPU time.

    python tests/bench/bench_neighbour.py RESULT.json

A lab NAS gets busy with programs that count, read and write past the cache, more of them than it
has CPUs, and is asked short questions all the while, one after the other. What the container may
have is changed by the role (``assistant_resources``), so that the engine's threads follow it, and
the settings take turns, so that another load on the machine hits all of them. Trust the ratios. The
lab's control groups are version 1, and its memory is the whole machine's: how memory that runs out
is survived, tests/vm/test_limits_vm.py and bench_pressure.py show. The model is in memory by then;
what a rank brings to who reads it from the disk, bench_queue.py measures for each scheduler.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from site_lab import Lab, blank  # noqa: E402

NAME = "benchneighbour"
ROUNDS, QUESTIONS = 3, 50
TOKENS = 8
CPUS = os.cpu_count() or 1
# Of each kind as many as there are CPUs: more than the NAS has room for.
NEIGHBOURS = CPUS
FEWER = f"1-{CPUS - 1}" if CPUS > 2 else str(CPUS - 1)
# What a container has that nobody gave anything; Docker's weight is 1024, the usual rank 4.
PLAIN = {"cpuset_cpus": f"0-{CPUS - 1}", "cpu_shares": 1024, "io_priority": 4}
SETTINGS: dict[str, dict[str, Any]] = {
    "as Docker has it": PLAIN,
    "as the role has it": {},
    "four times the weight": {**PLAIN, "cpu_shares": 4096},
    "a quarter of the weight": {**PLAIN, "cpu_shares": 256},
    "a limit of one CPU fewer": {**PLAIN, "cpus": CPUS - 1},
    "one CPU fewer": {**PLAIN, "cpuset_cpus": FEWER},
    "one CPU fewer, four times": {**PLAIN, "cpuset_cpus": FEWER, "cpu_shares": 4096},
}
BUSY = {
    "count": "while :; do sha256sum /dev/zero; done",
    "read": "while :; do dd if=/srv/big of=/dev/null bs=1M iflag=direct; done",
    "write": "while :; do dd if=/dev/zero of=/srv/$0 bs=1M count=256 oflag=direct; done",
}


def percentile(values: list[float], share: float) -> float:
    """The value that ``share`` of all do not exceed."""
    return sorted(values)[min(len(values) - 1, int(len(values) * share))]


def ask(lab: Lab) -> list[float]:
    """Seconds of some short answers, one after the other."""
    found = []
    with lab.client(lab.hosts[0]) as client:
        for number in range(QUESTIONS):
            body = {
                "messages": [{"role": "user", "content": f"Say hello, please. ({number})"}],
                "max_tokens": TOKENS,
                "temperature": 0,
            }
            started = time.perf_counter()
            client.post("/v1/chat/completions", json=body).raise_for_status()
            found.append(time.perf_counter() - started)
    return found


def allow(lab: Lab, resources: dict[str, Any]) -> None:
    """Have the role give the container other limits than the lab's."""
    wish = {"assistant_resources": {"memory": "1g", **resources}}
    lab.site("--extra-vars", json.dumps(wish), playbook="assistant")


def measure(lab: Lab) -> dict[str, Any]:
    """All settings in turns, while the NAS is busy; and without any neighbour, to compare with."""
    host = lab.hosts[0]
    quiet = [seconds for _ in range(ROUNDS) for seconds in ask(lab)]
    lab.on(host, "dd if=/dev/urandom of=/srv/big bs=1M count=512 status=none")
    times: dict[str, list[float]] = {name: [] for name in SETTINGS}
    for _ in range(ROUNDS):
        for name, resources in SETTINGS.items():
            allow(lab, resources)
            for kind, what in BUSY.items():
                for number in range(NEIGHBOURS):
                    unit = f"busy-{kind}{number}"
                    lab.on(host, f"systemd-run -q --unit={unit} sh -c '{what}' {unit}")
            try:
                times[name] += ask(lab)
            finally:
                lab.on(host, "systemctl stop 'busy-*'")
    first = times[next(iter(SETTINGS))]
    usual = statistics.median(first), percentile(first, 0.99)
    rows = {"no neighbour": quiet, **times}
    return {
        name: {
            "p50_ms": round(statistics.median(values) * 1000),
            "p99_ms": round(percentile(values, 0.99) * 1000),
            "p50_ratio": round(statistics.median(values) / usual[0], 2),
            "p99_ratio": round(percentile(values, 0.99) / usual[1], 2),
        }
        for name, values in rows.items()
    }


def main() -> int:
    """Measure, print, and write the result."""
    with blank(NAME) as lab:
        lab.site()
        rows = measure(lab)
    found = {"cpus": CPUS, "neighbours": len(BUSY) * NEIGHBOURS, "latency": rows}
    for name, row in rows.items():
        print(f"{name:26} p50 {row['p50_ms']:6} ms {row['p50_ratio']:5}   "
              f"p99 {row['p99_ms']:6} ms {row['p99_ratio']:5}")  # fmt: skip
    Path(sys.argv[1]).write_text(f"{json.dumps(found, indent=2)}\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
