# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: nas.assistant contributors
"""All that the kernel holds this container to, as it says so itself, seen from inside."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from nas_assistant.cgroup import groups, number, quota_of, text

_FOLDER = "sys/fs/cgroup"
_UNLIMITED = -1
# What the kernel calls that which Docker can set, by Docker's name.
_ULIMITS = {
    "core file size": "core",
    "cpu time": "cpu",
    "data size": "data",
    "file size": "fsize",
    "file locks": "locks",
    "locked memory": "memlock",
    "msgqueue size": "msgqueue",
    "nice priority": "nice",
    "open files": "nofile",
    "processes": "nproc",
    "resident set": "rss",
    "realtime priority": "rtprio",
    "realtime timeout": "rttime",
    "pending signals": "sigpending",
    "stack size": "stack",
}


@dataclass(frozen=True)
class Limits:
    """Bytes, CPUs, numbers; None where there is no limit, or the kernel does not say.

    ``version``: of the control groups. ``swap``: without the memory; -1 where there is no limit,
    None where the kernel counts none, so that the two can be told apart. ``cpuset``: such as
    ``1-3``.
    ``cpu_weight``: shares under version 1, a weight under 2. ``io_weight_file``: where that weight
    is from, since each file has a scale of its own. ``io_priority``: of the first process; None for
    the kernel's own. ``ulimits`` and ``hard_ulimits``: of the first process, by Docker's names.
    """

    version: int
    memory: int | None
    memory_reservation: int | None
    swap: int | None
    cpus: float | None
    cpuset: str
    cpu_weight: int | None
    pids: int | None
    oom_score_adj: int
    io_weight: int | None
    io_weight_file: str
    io_priority: int | None
    ulimits: dict[str, int | None] = field(default_factory=dict)
    hard_ulimits: dict[str, int | None] = field(default_factory=dict)


def read(root: Path = Path("/")) -> Limits:
    """Ask the kernel; ``root`` is where proc and sys are."""
    version = 2 if (root / _FOLDER / "cgroup.controllers").exists() else 1
    own: dict[str, Path] = {}
    for controllers, folder in groups(root):
        for each in controllers:
            own.setdefault(each, folder)
    memory, cpu, pids, disks = (
        own.get(each, root / _FOLDER / (each if version == 1 else ""))
        for each in ("memory", "cpu", "pids", "blkio")
    )
    process = root / "proc/1"
    soft, hard = parse_limits(text(process / "limits"))
    # Where there are several, in the order in which runc looks for them.
    weight_file, weight = _first(
        disks,
        ("blkio.weight", "blkio.bfq.weight") if version == 1 else ("io.bfq.weight", "io.weight"),
    )
    both = {
        "cpuset": _cpuset(text(root / "proc/self/status")),
        "oom_score_adj": int(text(process / "oom_score_adj") or 0),
        "io_priority": parse_ionice(_ionice()),
        "io_weight": weight,
        "io_weight_file": weight_file,
        "ulimits": soft,
        "hard_ulimits": hard,
    }
    if version == 2:
        return Limits(
            version=2,
            memory=number(memory / "memory.max"),
            memory_reservation=number(memory / "memory.low"),
            swap=_swap(memory / "memory.swap.max", 0),
            cpus=quota_of(cpu),
            cpu_weight=number(cpu / "cpu.weight"),
            pids=number(pids / "pids.max"),
            **both,  # type: ignore[arg-type]
        )
    limit = number(memory / "memory.limit_in_bytes")
    return Limits(
        version=1,
        memory=limit,
        memory_reservation=number(memory / "memory.soft_limit_in_bytes"),
        swap=_swap(memory / "memory.memsw.limit_in_bytes", limit or 0),
        cpus=quota_of(cpu),
        cpu_weight=number(cpu / "cpu.shares"),
        pids=number(pids / "pids.max"),
        **both,  # type: ignore[arg-type]
    )


def _swap(path: Path, memory: int) -> int | None:
    """Return the limit in a file, less the memory that it counts too."""
    limit = number(path)
    if limit is not None:
        return limit - memory
    return _UNLIMITED if text(path) else None


def parse_limits(table: str) -> tuple[dict[str, int | None], dict[str, int | None]]:
    """Return the soft and the hard limits of ``/proc/PID/limits`` by the names that Docker has for
    them.
    """
    soft: dict[str, int | None] = {}
    hard: dict[str, int | None] = {}
    for line in table.splitlines():
        matched = re.match(r"Max (.+?) {2,}(\S+) +(\S+)", line)
        name = _ULIMITS.get(matched[1]) if matched else None
        if matched and name:
            soft[name], hard[name] = (
                int(each) if each.isdigit() else None for each in matched.group(2, 3)
            )
    return soft, hard


def parse_ionice(said: str) -> int | None:
    """Return the place that was given to the first process; None where it has none of its own."""
    matched = re.match(r"best-effort: prio (\d)", said)
    return int(matched[1]) if matched else None


def _ionice() -> str:
    try:
        done = subprocess.run(["ionice", "-p", "1"], capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return ""
    return done.stdout


def _cpuset(status: str) -> str:
    matched = re.search(r"^Cpus_allowed_list:\s*(\S+)", status, re.MULTILINE)
    return matched[1] if matched else ""


def _first(folder: Path, names: Sequence[str]) -> tuple[str, int | None]:
    """Return the first file that there is, and the number in it; empty and None where none is.

    Of a line such as ``default 100``, which lines for single disks may follow, that one.
    """
    for name in names:
        matched = re.match(r"(?:default )?(\d+)\s*$", text(folder / name), re.MULTILINE)
        if matched:
            return name, int(matched[1])
    return "", None
