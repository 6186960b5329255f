#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: nas.assistant contributors
"""Time one run of btrfs_snapshot over many volumes, against a loop of community.general's module.

    python tests/bench/bench_snapshots.py RESULT.json

100 subvolumes with 50 snapshots each, on one Btrfs on a loop device; needs root. Each run of ours
makes one snapshot of each and deletes the oldest one of each: 200 changes by one task. The other
side needs a task for each change, of which 20 are measured; the time of all 200 is extrapolated
from those, without what ansible-playbook takes to start. Both sides run by ansible-playbook on this
machine, in turn; trust the ratio. Target: a twentieth of the other side's time. The other side
reads every Btrfs that is mounted, and fails while others come and go: run no tests beside it.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT)]

from ansible_collections.nas.assistant.plugins.module_utils import (  # noqa: E402
    _snapshot_plan as plan,
    _snapshots as snapshots,
)

from lab import disks, paths  # noqa: E402

VOLUMES, SNAPSHOTS, MEASURED, ROUNDS = 100, 50, 20, 3
CHANGES = 2 * VOLUMES
RATIO_TARGET = 1 / 20


@contextlib.contextmanager
def pool(folder: Path) -> Iterator[Path]:
    """A Btrfs on a loop device, mounted."""
    shutil.rmtree(folder, ignore_errors=True)
    (device,) = disks.ensure([folder / "disk.img"], 4 << 30)
    point = folder / "tank"
    point.mkdir()
    try:
        subprocess.run(["mkfs.btrfs", "-q", device], check=True, stdout=subprocess.DEVNULL)
        subprocess.run(["mount", device, point], check=True)
        yield point
    finally:
        subprocess.run(["umount", point], check=False)
        disks.detach(disks.below(folder, disks.attached()))
        shutil.rmtree(folder)


def play(folder: Path, name: str, tasks: list[dict[str, Any]]) -> float:
    """Run tasks on this machine; return the seconds that ansible-playbook took."""
    book = folder / f"{name}.yml"
    book.write_text(json.dumps([{"hosts": "localhost", "gather_facts": False, "tasks": tasks}]))
    command = ["ansible-playbook", "-i", "localhost,", "-c", "local", str(book)]
    environ = {**os.environ, "ANSIBLE_PYTHON_INTERPRETER": sys.executable}
    started = time.monotonic()
    done = subprocess.run(command, cwd=ROOT, env=environ, capture_output=True, text=True)
    seconds = time.monotonic() - started
    if done.returncode != 0:
        raise SystemExit(done.stdout[-4000:] + done.stderr)
    return seconds


def prepare(point: Path, volumes: list[dict[str, Any]]) -> None:
    """Make the subvolumes and their snapshots, one an hour up to now."""
    (point / "theirs").mkdir()
    for volume in volumes:
        command = ["btrfs", "subvolume", "create", volume["path"]]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        Path(volume["path"], "file").write_bytes(os.urandom(4096))
    began = int(time.time()) - SNAPSHOTS * 3600
    wishes = plan.wishes(volumes, "present")
    for number in range(SNAPSHOTS):
        moment = began + number * 3600
        snapshots.now = lambda moment=moment: moment
        for outcome in snapshots.carry_out(wishes, "present", "/nonexistent"):
            if not outcome.made:
                raise SystemExit(f"{outcome.wish.path}: {outcome.problems}")


def their_tasks(point: Path, count: int) -> list[dict[str, Any]]:
    """As many tasks, half of which make a snapshot, and half delete it."""
    common = {"filesystem_device": device_of(point)}
    names = [f"v{number}" for number in range(count // 2)]
    name = "/theirs/{{ item }}"
    return [
        {
            "community.general.btrfs_subvolume": {**common, "name": name, **options},
            "loop": names,
        }
        for options in ({"snapshot_source": "/{{ item }}"}, {"state": "absent"})
    ]


def device_of(point: Path) -> str:
    command = ["findmnt", "--noheadings", "--output", "SOURCE", str(point)]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def measure(folder: Path, point: Path, volumes: list[dict[str, Any]]) -> dict[str, Any]:
    """Time both sides in turn, and a playbook without tasks."""
    sides = {
        "start": [],
        "ours": [{"nas.assistant.btrfs_snapshot": {"volumes": volumes}}],
        "theirs": their_tasks(point, MEASURED),
    }
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(ROUNDS):
        for name, tasks in sides.items():
            seconds[name].append(play(folder, name, tasks))
    start, ours, theirs = (statistics.median(seconds[name]) for name in sides)
    each = (theirs - start) / MEASURED
    whole = start + each * CHANGES
    return {
        "volumes": VOLUMES,
        "snapshots of each": SNAPSHOTS,
        "changes": CHANGES,
        "cores": os.cpu_count(),
        "start of ansible-playbook, seconds": round(start, 2),
        "ours": {"tasks": 1, "seconds": round(ours, 2)},
        "theirs": {
            "tasks measured": MEASURED,
            "seconds measured": round(theirs, 2),
            "seconds a task": round(each, 3),
            "seconds extrapolated to all changes": round(whole, 1),
        },
        "ratio": round(ours / whole, 4),
        "ratio target": RATIO_TARGET,
        "rounds": {name: [round(value, 2) for value in values] for name, values in seconds.items()},
    }


def main() -> None:
    """Measure, print a table, write the result."""
    target = Path(sys.argv[1]).resolve()
    folder = paths.lab("benchsnapshots")
    with pool(folder) as point:
        volumes: list[dict[str, Any]] = [
            {
                "path": str(point / f"v{number}"),
                "folder": str(point / ".snapshots"),
                "keep": {"last": SNAPSHOTS},
            }
            for number in range(VOLUMES)
        ]
        prepare(point, volumes)
        result = measure(folder, point, volumes)
    target.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    ours, theirs = result["ours"], result["theirs"]
    print(f"ours     {ours['seconds']:7.1f} s for {CHANGES} changes by one task")
    print(
        f"theirs   {theirs['seconds extrapolated to all changes']:7.1f} s for {CHANGES} changes by "
        f"as many, extrapolated from {MEASURED}"
    )
    met = "met" if result["ratio"] <= RATIO_TARGET else f"MISSED (<= {RATIO_TARGET:.2f})"
    print(f"ours takes {result['ratio']:.3f} of the time: {met}")


if __name__ == "__main__":
    main()
