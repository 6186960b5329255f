#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: nas.assistant contributors
"""Time `make demo` from nothing and again, in a fresh clone, split by step.

    python tests/bench/bench_demo.py RESULT.json

"Cold" is a new machine's: no virtual environment, images or models, though Docker may be installed.
The images are taken away for it and made anew, and the build cache of an engine that the lab
started. "Warm" is the same command right after; "no change" is the site playbook alone. Targets:
cold under 600 s, warm under 90 s, on two cores.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
OURS = re.compile(r"nas-assistant:[0-9a-f]{12}|nas-lab.*")
TARGETS = {"cold": 600, "warm": 90}  # seconds


def run(*command: str, cwd: Path) -> float:
    """Run a command, its output to the log of the bench; return the seconds it took."""
    started = time.monotonic()
    subprocess.run(command, cwd=cwd, check=True, stdout=sys.stderr)
    return time.monotonic() - started


def steps(clone: Path) -> list[dict[str, Any]]:
    """Return the steps that the lab has timed so far."""
    path = clone / ".lab/timings.json"
    return list(json.loads(path.read_text())) if path.exists() else []


def forget_images() -> None:
    """Remove the lab's images, and those built on them, so that the first run makes them anew."""
    there = ("docker", "ps", "--all", "--quiet", "--filter", "label=nas-lab")
    if subprocess.run(there, check=True, capture_output=True).stdout:
        raise SystemExit("a lab is up and uses the images: `make down`, then `make bench` again")
    listing = ("docker", "images", "--format", "{{.Repository}}:{{.Tag}}")
    names = subprocess.run(listing, check=True, capture_output=True, text=True).stdout.split()
    ours = [name for name in names if OURS.fullmatch(name)]
    if ours:
        subprocess.run(["docker", "rmi", *ours], check=True, stdout=sys.stderr)
    if (ROOT / ".lab/engine.json").exists():  # else others' builds are in that cache too
        subprocess.run(["docker", "builder", "prune", "--force"], check=True, stdout=sys.stderr)
    else:
        print("the engine is not the lab's own: its build cache stays", file=sys.stderr)


def measure(clone: Path) -> dict[str, dict[str, Any]]:
    """Return seconds and steps of each kind of run."""
    result: dict[str, dict[str, Any]] = {}
    site = "PATH=$PWD/.venv/bin:$PATH ansible-playbook -i inventories/lab nas.assistant.site"
    for name, command in (
        ("cold", ("make", "demo")),
        ("warm", ("make", "demo")),
        ("no change", ("sh", "-c", site)),
    ):
        before = len(steps(clone))
        seconds = run(*command, cwd=clone)
        result[name] = {"seconds": round(seconds, 1), "steps": steps(clone)[before:]}
    return result


def main() -> None:
    """Measure in a fresh clone, print a table, write the result."""
    target = Path(sys.argv[1]).resolve()
    forget_images()
    with tempfile.TemporaryDirectory() as folder:
        clone = Path(folder, "clone")
        run("git", "clone", "--quiet", str(ROOT), str(clone), cwd=ROOT)
        try:
            result = measure(clone)
        finally:
            # Images stay: they are shared with this checkout.
            run(sys.executable, "-m", "lab", "down", "--name", "demo", cwd=clone)
    target.write_text(json.dumps({"cores": os.cpu_count(), "runs": result}, indent=2) + "\n")
    for name, measured in result.items():
        limit = TARGETS.get(name)
        print(
            f"{name:10} {measured['seconds']:7.1f} s" + (f"  (target {limit} s)" if limit else "")
        )
        for step in measured["steps"]:
            print(f"    {step['seconds']:7.1f} s  {step['step']}")


if __name__ == "__main__":
    main()
