#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: nas.assistant contributors
"""What the site playbook takes: of time, and of the controller, for 1, 3 and 10 NAS.

    python tests/bench/bench_fleet.py RESULT.json [FOLDER]

FOLDER has roles of others for hardening, engine and web server, as tests/bench/peers.py says; they
get a lab NAS of their own, and their runs and ours take turns. CPU is that of the controller's own
processes, memory what they share and have of their own (Pss), both divided by the hosts. The lab's
NAS are on the same machine, so the wall time of many grows with them: by how much is said, and not
judged. Ours have what is off unless asked for too, as far as the lab can have it: a pool of
storage, a copy of it on a disk, the console, a name that is announced; not a pool of NAS, nor ports
of a router. Targets: at most 0.3 of the others' time, and for each of ten hosts no more than 1.1 of
the CPU and the memory that one alone takes.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import peers  # noqa: E402
from site_lab import Lab, blank, pids  # noqa: E402

NAME = "benchfleet"
FLEET = 10
ROUNDS = 3
RATIO_TARGET = 0.3
FLAT_TARGET = 1.1
# The last NAS pays for what the controller makes once.
BLANK = {"1 from blank": "nas1", "3 from blank": "nas2:nas3:nas4"}
ALL = [f"nas{number}" for number in range(1, FLEET + 1)]
SIZES = {hosts: ":".join(ALL[:hosts]) for hosts in (1, 3, FLEET)}


class Memory(threading.Thread):
    """Looks at a run until it ends; ``most`` is the most memory that it had, in MiB."""

    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self._pid = pid
        self.ended = threading.Event()
        self.most = 0.0

    def run(self) -> None:
        """Add up twice a second."""
        while not self.ended.wait(0.5):
            total = 0
            for pid in pids(self._pid):
                with contextlib.suppress(OSError):
                    rollup = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii")
                    total += sum(map(int, re.findall(r"^Pss: +(\d+)", rollup, re.M)))
            self.most = max(self.most, total / 1024)


def play(command: list[str], environ: dict[str, str]) -> dict[str, float]:
    """Run a playbook; return what it took, and its tasks of all hosts together."""
    with tempfile.TemporaryFile("w+") as log:
        began = time.monotonic()
        run = subprocess.Popen(command, cwd=ROOT, env=environ, stdout=log, stderr=log)
        memory = Memory(run.pid)
        memory.start()
        _, status, usage = os.wait4(run.pid, 0)
        seconds = time.monotonic() - began
        run.returncode = os.waitstatus_to_exitcode(status)
        memory.ended.set()
        log.seek(0)
        said = log.read()
    if run.returncode != 0:
        raise SystemExit(said[-4000:])
    recaps = re.findall(r" ok=(\d+) +changed=(\d+) .*skipped=(\d+)", said)
    return {
        "hosts": len(recaps),
        "seconds": seconds,
        "cpu_per_host": (usage.ru_utime + usage.ru_stime) / len(recaps),
        "mib_per_host": memory.most / len(recaps),
        "tasks_per_host": sum(int(ok) for ok, _, _ in recaps) / len(recaps),
        "changed": sum(int(changed) for _, changed, _ in recaps),
    }


def site(lab: Lab, limit: str, *more: str) -> dict[str, float]:
    """Run our site."""
    return play(lab.command("--limit", limit, *more), dict(os.environ))


def median(rows: list[dict[str, float]]) -> dict[str, float]:
    """The median of each figure."""
    return {name: round(statistics.median(row[name] for row in rows), 1) for name in rows[0]}


def switch_on(lab: Lab) -> None:
    """Have the inventory want more of each of our NAS."""
    folder = lab.inventory / "host_vars"
    folder.mkdir()
    for host in lab.hosts[:FLEET]:
        pool = {"name": "tank", "devices": host["disks"][:1], "format": True}
        copy = {"name": "usb", "device": {"path": host["disks"][1], "format": True}}
        wish = {
            "storage_pools": [
                pool | {"volumes": [{"name": "documents", "path": "/srv/documents"}]}
            ],
            "backup_sources": [{"volume": "tank/documents"}, {"folder": "/etc/nas-assistant"}],
            "backup_copies": [copy],
            "console_state": "present",
            "network_mdns": {"enabled": True},
        }
        (folder / f"{host['name']}.yml").write_text(json.dumps(wish), encoding="utf-8")


def measure(lab: Lab, folder: Path, others: Path | None) -> dict[str, Any]:
    """From blank, then runs that change nothing."""
    switch_on(lab)
    site(lab, f"nas{FLEET}")
    rows = {name: median([site(lab, limit)]) for name, limit in BLANK.items()}
    site(lab, ":".join(ALL[4:]))
    turns: dict[str, tuple[str, tuple[str, ...]]]
    turns = {f"{hosts} without change": (limit, ()) for hosts, limit in SIZES.items()}
    turns |= {f"{hosts} in check mode": (limit, ("--check",)) for hosts, limit in SIZES.items()}
    taken: dict[str, list[dict[str, float]]] = {name: [] for name in turns}
    for _ in range(ROUNDS):
        for name, (limit, more) in turns.items():
            taken[name].append(site(lab, limit, *more))
    rows |= {name: median(found) for name, found in taken.items()}
    if others:
        rows |= compare(lab, folder, others)
    return rows


def compare(lab: Lab, folder: Path, others: Path) -> dict[str, Any]:
    """Runs that change nothing, ours and others' in turn, each on a NAS of its own."""
    host = lab.hosts[FLEET]
    path = folder / "others.yml"
    path.write_text(peers.playbook(peers.SITE, host["name"]), encoding="utf-8")
    # They expect package lists, which a blank NAS has none of.
    lab.on(host, "apt-get --quiet update")
    command = ["ansible-playbook", "-i", str(lab.inventory), str(path)]
    for _ in range(2):  # what the first run leaves, the second changes again
        play(command, peers.environ(others))
    ours, theirs = [], []
    for _ in range(ROUNDS):
        theirs.append(play(command, peers.environ(others)))
        ours.append(site(lab, "nas1"))
    return {"others, without change": median(theirs), "beside them, ours": median(ours)}


def growth(rows: dict[str, Any], what: str) -> dict[str, float]:
    """What many hosts take, of what one takes: of the time in all, of the rest for each of them."""
    one, many = (rows[f"{hosts} {what}"] for hosts in (1, FLEET))
    return {figure: many[figure] / one[figure]
            for figure in ("seconds", "cpu_per_host", "mib_per_host")}  # fmt: skip


def verdict(ratio: float, target: float) -> str:
    """Whether a target is met."""
    return "met" if ratio <= target else f"MISSED (<= {target})"


def main() -> None:
    """Measure on many lab NAS, print a table, write the result."""
    target = Path(sys.argv[1]).resolve()
    others = Path(sys.argv[2]).resolve() if len(sys.argv) > 2 else None
    count = str(FLEET + bool(others))
    with tempfile.TemporaryDirectory() as scratch, blank(NAME, "--nas", count) as lab:
        rows = measure(lab, Path(scratch), others)
    target.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")
    for name, figures in rows.items():
        print(f"{name:24}" + "  ".join(f"{key} {value:g}" for key, value in figures.items()))
    for what in ("without change", "in check mode"):
        for figure, ratio in growth(rows, what).items():
            grown = f"{FLEET} {what}: {figure} {ratio:.2f} of that of one alone"
            print(grown if figure == "seconds" else f"{grown}: {verdict(ratio, FLAT_TARGET)}")
    if others:
        ratio = rows["beside them, ours"]["seconds"] / rows["others, without change"]["seconds"]
        print(f"ours takes {ratio:.2f} of the time: {verdict(ratio, RATIO_TARGET)}")


if __name__ == "__main__":
    main()
