#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: nas.assistant contributors
"""What the front costs: the assistant asked directly, through Nginx, and through a pool of two NAS.

    python tests/bench/bench_front.py RESULT.json

The client runs on the first lab NAS, keeps its connections, and asks for the list of models, which
costs the assistant next to nothing. Target: the front adds less than 1 ms to the median.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from site_lab import Lab, blank  # noqa: E402

NAME = "benchfront"
ROUNDS = 5
TARGET_MS = 1.0
POOL = {"proxy_pool": ["nas1", "nas2"]}
# Argument: the key. Prints milliseconds of 300 requests of one client, and requests a second of 8.
CLIENT = """
import http.client, json, socket, ssl, sys, threading, time

class Direct(http.client.HTTPConnection):
    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.connect("/var/lib/nas-assistant/run/gateway.sock")

def front():
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return http.client.HTTPSConnection("127.0.0.1", context=context)

def ask(connection):
    connection.request("GET", "/v1/models", headers={"Authorization": "Bearer " + sys.argv[1]})
    answer = connection.getresponse()
    answer.read()
    assert answer.status == 200, answer.status

def measure(make):
    one = make()
    ask(one)
    times = []
    for _ in range(300):
        began = time.perf_counter()
        ask(one)
        times.append(1000 * (time.perf_counter() - began))
    counts, over = [0] * 8, time.perf_counter() + 3
    failed = []
    def work(number):
        try:
            own = make()
            while time.perf_counter() < over:
                ask(own)
                counts[number] += 1
        except Exception as error:
            failed.append(error)
    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed, failed
    return {"p50": sorted(times)[150], "p99": sorted(times)[297], "per_second": sum(counts) / 3}

print(json.dumps({"direct": measure(lambda: Direct("localhost")), "front": measure(front)}))
"""


def rounds(lab: Lab) -> dict[str, dict[str, float]]:
    """Medians of several rounds, of both ways in."""
    key = (lab.folder / "credentials/api_key.owner").read_text().strip()
    container = lab.hosts[0]["container"]
    command = ["docker", "exec", container, "python3", "-c", CLIENT, key]
    found: list[dict[str, Any]] = []
    for _ in range(ROUNDS):
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        found.append(json.loads(done.stdout))
    return {
        way: {
            figure: round(statistics.median(each[way][figure] for each in found), 2)
            for figure in found[0][way]
        }
        for way in found[0]
    }


def measure(lab: Lab) -> dict[str, Any]:
    """Alone, then as a pool; the direct way each time, since the machine is not the same."""
    lab.site()
    result = {"alone": rounds(lab)}
    lab.site("--extra-vars", json.dumps(POOL), playbook="base")
    lab.site("--extra-vars", json.dumps(POOL), playbook="proxy")
    return result | {"pool": rounds(lab)}


def main() -> None:
    """Measure on two lab NAS, print a table, write the result."""
    target = Path(sys.argv[1]).resolve()
    with blank(NAME, "--nas", "2") as lab:
        result = measure(lab)
    target.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    for name, ways in result.items():
        added = ways["front"]["p50"] - ways["direct"]["p50"]
        met = "met" if added < TARGET_MS else f"MISSED (< {TARGET_MS:g} ms)"
        print(f"{name:6} adds {added:.2f} ms to the median: {met}")
        for way, figures in ways.items():
            print(f"  {way:7}" + "  ".join(f"{key} {value:g}" for key, value in figures.items()))


if __name__ == "__main__":
    main()
