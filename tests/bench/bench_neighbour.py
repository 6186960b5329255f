#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: nas.assistant contributors
"""How late answers are while the NAS is busy, with and without the container's CPU set and weights.

    python tests/bench/bench_neighbour.py RESULT.json

A lab NAS gets busy with programs that count and others that read more than fits beside them, and is
asked short questions all the while, one after the other. The limits are changed in the running
container by `docker update`, in turns, so that another load on the machine hits all of them. Trust
the ratios. The lab's memory is the whole machine's, so the reserve is tried by reading through a
control group that is as small as a NAS.
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
ROUNDS, QUESTIONS = 4, 15
TOKENS = 8
CPUS = os.cpu_count() or 1
# As many as there are CPUs, twice: more than the NAS has room for.
NEIGHBOURS = 2 * CPUS
EVERYWHERE = f"0-{CPUS - 1}"
# By `docker update`: weight of the container, its CPUs. 1024 is a service's.
SETTINGS = {
    "as it comes": (1024, EVERYWHERE),
    "four times the weight": (4096, EVERYWHERE),
    "a quarter of the weight": (256, EVERYWHERE),
    "one CPU fewer": (1024, f"1-{CPUS - 1}" if CPUS > 2 else str(CPUS - 1)),
    "both": (4096, f"1-{CPUS - 1}" if CPUS > 2 else str(CPUS - 1)),
}
BUSY = (
    "systemd-run --quiet --unit=busy-count@{n} sh -c 'while :; do sha256sum /dev/zero; done'; "
    "systemd-run --quiet --unit=busy-read@{n} sh -c "
    "'while :; do dd if=/srv/big of=/dev/null bs=1M iflag=direct; done'"
)


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


def measure(lab: Lab) -> dict[str, Any]:
    """All settings in turns, while the NAS is busy; and without any neighbour, to compare with."""
    host = lab.hosts[0]
    quiet = ask(lab)
    lab.on(host, "dd if=/dev/urandom of=/srv/big bs=1M count=512 status=none")
    for number in range(NEIGHBOURS):
        lab.on(host, BUSY.format(n=number))
    times: dict[str, list[float]] = {name: [] for name in SETTINGS}
    try:
        for _ in range(ROUNDS):
            for name, (shares, cpus) in SETTINGS.items():
                options = f"--cpu-shares {shares} --cpuset-cpus {cpus}"
                lab.on(host, f"docker update {options} nas-assistant")
                times[name] += ask(lab)
    finally:
        lab.on(host, "systemctl stop 'busy-*'")
    usual = statistics.median(times["as it comes"]), percentile(times["as it comes"], 0.99)
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
    found = {"cpus": CPUS, "neighbours": 2 * NEIGHBOURS, "latency": rows}
    for name, row in rows.items():
        print(f"{name:26} p50 {row['p50_ms']:6} ms {row['p50_ratio']:5}   "
              f"p99 {row['p99_ms']:6} ms {row['p99_ratio']:5}")  # fmt: skip
    Path(sys.argv[1]).write_text(f"{json.dumps(found, indent=2)}\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
