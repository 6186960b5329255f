#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: nas.assistant contributors
"""Time a run that changes nothing: hardening and firewall, against the roles of devsec.hardening.

    python tests/bench/bench_base.py RESULT.json [FOLDER]

FOLDER has devsec.hardening, as tests/bench/peers.py says; without it only our own roles are timed.
Each side has a lab NAS of its own, made of the same image, and they are timed in turn. Also said
are the hardening index of lynis and what ssh-audit calls a failure. Target: a third of the other
side's time, a higher index, no failure.
"""

from __future__ import annotations

import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import peers  # noqa: E402
from site_lab import Lab, blank  # noqa: E402

from lab import ssh  # noqa: E402

NAME = "benchbase"
ROUNDS = 3
RATIO_TARGET = 1 / 3


def play(lab: Lab, arguments: list[str], collections: Path | None) -> tuple[float, str]:
    """Run a playbook; return the seconds it took and what it printed."""
    environ = peers.environ(collections) if collections else dict(os.environ)
    command = ["ansible-playbook", "-i", str(lab.inventory), *arguments]
    started = time.monotonic()
    done = subprocess.run(command, cwd=ROOT, env=environ, capture_output=True, text=True)
    seconds = time.monotonic() - started
    if done.returncode != 0:
        raise SystemExit(done.stdout[-4000:] + done.stderr)
    return seconds, done.stdout


def tasks_of(recap: str) -> int:
    """How many tasks reached the NAS or the controller, by Ansible's own count."""
    (ok,) = re.findall(r"ok=(\d+)", recap)
    return int(ok)


def audit(lab: Lab, host: dict[str, Any], port: int) -> dict[str, Any]:
    """What lynis and ssh-audit say."""
    lab.on(host, "apt-get install --yes --quiet --no-install-recommends lynis")
    lab.on(host, "lynis audit system --quick --no-colors --quiet || true")
    index = lab.on(host, "sed -n 's/^hardening_index=//p' /var/log/lynis-report.dat")
    said = subprocess.run(
        ["ssh-audit", "--no-colors", "--port", str(port), host["ssh_host"]],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    return {"lynis index": int(index), "ssh-audit failures": said.stdout.count("[fail]")}


def measure(lab: Lab, folder: Path, collections: Path | None) -> dict[str, Any]:
    """Converge each side once, then time runs that change nothing, in turn."""
    sides: dict[str, tuple[list[str], Path | None]] = {
        "ours": (["nas.assistant.base", "--limit", "nas1"], None)
    }
    if collections:
        text = peers.playbook(peers.HARDENING, "nas2")
        (folder / "devsec.yml").write_text(text, encoding="utf-8")
        sides["devsec"] = ([str(folder / "devsec.yml")], collections)
        # Its roles expect package lists, which a blank NAS has none of.
        lab.on(lab.hosts[1], "apt-get --quiet update")
    for arguments, where in sides.values():
        play(lab, arguments, where)
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    result: dict[str, Any] = {name: {} for name in sides}
    for _ in range(ROUNDS):
        for name, (arguments, where) in sides.items():
            took, out = play(lab, arguments, where)
            seconds[name].append(took)
            recap = next(line for line in out.splitlines() if " ok=" in line)
            result[name] |= {"tasks": tasks_of(recap), "changed": recap.split("changed=")[1][:2]}
    for (name, figures), host in zip(result.items(), lab.hosts, strict=False):
        figures["seconds"] = round(statistics.median(seconds[name]), 1)
        door = ssh.door(lab.folder, host["ssh_host"])
        assert door
        figures |= audit(lab, host, door.port)
    return result


def main() -> None:
    """Measure on two lab NAS, print a table, write the result."""
    target = Path(sys.argv[1]).resolve()
    collections = Path(sys.argv[2]).resolve() if len(sys.argv) > 2 else None
    with tempfile.TemporaryDirectory() as scratch, blank(NAME, "--nas", "2") as lab:
        result = measure(lab, Path(scratch), collections)
    target.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    for name, figures in result.items():
        print(f"{name:8}" + "  ".join(f"{key} {value}" for key, value in figures.items()))
    if collections:
        ratio = result["ours"]["seconds"] / result["devsec"]["seconds"]
        met = "met" if ratio <= RATIO_TARGET else f"MISSED (<= {RATIO_TARGET:.2f})"
        print(f"ours takes {ratio:.2f} of the time: {met}")


if __name__ == "__main__":
    main()
