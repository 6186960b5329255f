#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: nas.assistant contributors
"""Time copies of a volume, and a restore of it against plain cp of the same tree.

    python tests/bench/bench_backup.py RESULT.json

A volume of 20,000 small files and 12 large ones on a Btrfs on a loop device, copied to a server on
this machine that deletes nothing; needs root, restic, rclone. Measured are the first copy, one
after which nothing had changed, and one after a change of 8 MiB in 100 files, with the bytes that
the server gained; then restores, with and without our proof, and cp -a, in turn: trust the ratios.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT)]

from lab import disks, paths  # noqa: E402

SMALL, LARGE, ROUNDS = 20_000, 12, 3
CHANGED, CHANGE = 100, 8 << 20
# Of the bytes that changed; what is added to them is lists of files.
BYTES_TARGET = 1.5
# Each file is decrypted, written, and read once more.
RESTORE_TARGET = 5.0
RUN = """
import runpy, sys
program = runpy.run_path(sys.argv.pop(1))
program["main"].__globals__["SETTINGS"] = sys.argv.pop(1)
sys.exit(program["main"]())
"""
RESTORE = """
import json, sys
from ansible.module_utils.testing import patch_module_args
from ansible_collections.nas.assistant.plugins.modules import backup_restore
with patch_module_args(json.loads(sys.argv[1])):
    backup_restore.main()
"""


@contextlib.contextmanager
def pool(folder: Path) -> Iterator[Path]:
    """A Btrfs on a loop device, mounted, with the volume."""
    shutil.rmtree(folder, ignore_errors=True)
    (device,) = disks.ensure([folder / "disk.img"], 12 << 30)
    point = folder / "tank"
    point.mkdir()
    try:
        subprocess.run(["mkfs.btrfs", "-q", device], check=True, stdout=subprocess.DEVNULL)
        subprocess.run(["mount", device, point], check=True)
        call("btrfs", "subvolume", "create", str(point / "data"))
        (point / ".snapshots").mkdir(mode=0o700)
        fill(point / "data")
        yield point
    finally:
        subprocess.run(["umount", point], check=False)
        disks.detach(disks.below(folder, disks.attached()))
        shutil.rmtree(folder)


@contextlib.contextmanager
def server(folder: Path) -> Iterator[str]:
    """An append-only server on the loopback address; its address."""
    folder.mkdir()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    command = ["rclone", "serve", "restic", "--append-only", "--addr", address, str(folder)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    time.sleep(2)
    try:
        yield f"rest:http://{address}/bench/"
    finally:
        process.terminate()
        process.wait()


def fill(folder: Path) -> None:
    """Files that nothing can compress."""
    for number in range(SMALL):
        inside = folder / f"{number % 100:02}"
        inside.mkdir(exist_ok=True)
        (inside / f"{number}").write_bytes(os.urandom(random.randrange(1024, 16384)))  # noqa: S311
    for number in range(LARGE):
        (folder / f"large{number}").write_bytes(os.urandom(64 << 20))


def call(*argv: str, environ: dict[str, str] | None = None) -> str:
    done = subprocess.run(
        argv, env={**os.environ, **(environ or {})}, capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        raise SystemExit(f"{argv}: {done.stdout}{done.stderr}")
    return done.stdout


def timed(work: Callable[[], Any]) -> float:
    """Seconds of some work, from cold caches."""
    os.sync()
    Path("/proc/sys/vm/drop_caches").write_text("3")
    started = time.monotonic()
    work()
    os.sync()
    return time.monotonic() - started


def size(folder: Path) -> int:
    return sum(each.stat().st_size for each in folder.rglob("*") if each.is_file())


def measure(folder: Path, point: Path, repository: str, kept: Path) -> dict[str, Any]:
    """Copy, change, copy; then restore in all ways in turn."""
    data, key, settings = point / "data", folder / "key", folder / "backup.json"
    key.write_text("correct horse battery staple\n")
    source = {"volume": "tank/data", "path": str(data), "folder": str(point / ".snapshots")}
    places = {name: str(folder / name) for name in ("state", "scratch", "metrics", "cache")}
    copies = [{"name": "offsite", "repository": repository, "keep": {"last": 3}}]
    found = {"host": "bench", "sources": [source], "copies": copies, "drill": 1 << 40}
    settings.write_text(json.dumps({**found, **places, "password_file": str(key)}))
    program = str(ROOT / "roles/backup/files/nas-backup")
    command = (sys.executable, "-c", RUN, program, str(settings), "run", "offsite")
    steps = {}

    def step(name: str) -> None:
        before = size(kept)
        steps[name] = {
            "seconds": round(timed(lambda: call(*command)), 1),
            "bytes": size(kept) - before,
        }

    step("first")
    step("nothing changed")
    for number in range(CHANGED):
        (data / f"00/{number * 100}").write_bytes(os.urandom(CHANGE // CHANGED))
    step("8 MiB changed")
    whole = size(data)
    given = {"settings": str(settings), "copy": "offsite", "sources": ["tank/data"]}
    environ = {"RESTIC_REPOSITORY": repository, "RESTIC_PASSWORD_FILE": str(key)}
    environ["RESTIC_CACHE_DIR"] = places["cache"]
    plain = str(point / "plain")

    def restore() -> None:
        name = json.loads(call(sys.executable, "-c", RESTORE, json.dumps(given)))
        snapshot = point / ".snapshots" / name["restored"][0]["snapshot"]
        call("btrfs", "subvolume", "delete", str(snapshot))

    ways: dict[str, Callable[[], Any]] = {
        "restore, proven": restore,
        "restic restore alone": lambda: call(
            "restic", "restore", "latest", "--target", plain, environ=environ
        ),
        "cp -a": lambda: call("cp", "-a", "--reflink=never", str(data), plain),
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(ROUNDS):
        for name, work in ways.items():
            seconds[name].append(timed(work))
            shutil.rmtree(plain, ignore_errors=True)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    return {
        "bytes": whole,
        "files": SMALL + LARGE,
        "cores": os.cpu_count(),
        "copies": steps,
        "bytes gained of those changed": round(steps["8 MiB changed"]["bytes"] / CHANGE, 2),
        "bytes target": BYTES_TARGET,
        "restores, seconds": {name: round(value, 1) for name, value in medians.items()},
        "ratio to cp": round(medians["restore, proven"] / medians["cp -a"], 2),
        "ratio target": RESTORE_TARGET,
        "rounds": {name: [round(value, 1) for value in values] for name, values in seconds.items()},
    }


def main() -> None:
    """Measure, print a table, write the result."""
    target = Path(sys.argv[1]).resolve()
    folder = paths.lab("benchbackup")
    with pool(folder) as point, server(folder / "server") as repository:
        result = measure(folder, point, repository, folder / "server/bench")
    target.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    mib = result["bytes"] / (1 << 20)
    print(f"a volume of {result['files']} files, {mib:.0f} MiB")
    for name, each in result["copies"].items():
        gained = each["bytes"] / (1 << 20)
        print(f"copy, {name:16} {each['seconds']:7.1f} s, {gained:8.1f} MiB gained")
    for name, value in result["restores, seconds"].items():
        print(f"{name:22} {value:7.1f} s, {mib / value:6.0f} MiB/s")
    for name, goal in (("bytes gained of those changed", "bytes"), ("ratio to cp", "ratio")):
        limit = result[f"{goal} target"]
        met = "met" if result[name] <= limit else f"MISSED (<= {limit})"
        print(f"{name}: {result[name]} {met}")


if __name__ == "__main__":
    main()
