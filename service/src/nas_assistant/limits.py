# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: nas.assistant contributors
"""All that the kernel holds this container to, as it says so itself, seen from inside."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

_FOLDER = "sys/fs/cgroup"
# Version 1 writes "no limit" as the largest whole number of pages.
_NO_LIMIT = 1 << 60


@dataclass(frozen=True)
class Limits:
    """Bytes, CPUs, numbers; None where there is no limit, or the kernel does not say.

    ``version``: of the control groups. ``swap``: without the memory. ``cpuset``: such as ``1-3``.
    ``cpu_weight``: shares under version 1, a weight under 2. ``ulimits``: soft limits of the first
    process by the kernel's names. ``io_priority``: of the first process; None for the kernel's own.
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
    io_priority: int | None
    ulimits: dict[str, int | None] = field(default_factory=dict)


def read(root: Path = Path("/")) -> Limits:
    """Ask the kernel; ``root`` is where proc and sys are. The group at the top is the own one."""
    group = root / _FOLDER
    version = 2 if (group / "cgroup.controllers").exists() else 1
    process = root / "proc/1"
    both = {
        "cpuset": _cpuset(_text(root / "proc/self/status")),
        "oom_score_adj": int(_text(process / "oom_score_adj") or 0),
        "io_priority": parse_ionice(_ionice()),
        "ulimits": parse_limits(_text(process / "limits")),
    }
    if version == 2:
        return Limits(
            version=2,
            memory=_number(group / "memory.max"),
            memory_reservation=_number(group / "memory.low"),
            swap=_number(group / "memory.swap.max"),
            cpus=_share(_text(group / "cpu.max").split()),
            cpu_weight=_number(group / "cpu.weight"),
            pids=_number(group / "pids.max"),
            io_weight=_first(group, ("io.bfq.weight", "io.weight")),
            **both,  # type: ignore[arg-type]
        )
    memory = _number(group / "memory/memory.limit_in_bytes")
    total = _number(group / "memory/memory.memsw.limit_in_bytes")
    return Limits(
        version=1,
        memory=memory,
        memory_reservation=_number(group / "memory/memory.soft_limit_in_bytes"),
        swap=total - memory if total is not None and memory is not None else None,
        cpus=_share([_text(group / f"cpu/cpu.cfs_{name}_us") for name in ("quota", "period")]),
        cpu_weight=_number(group / "cpu/cpu.shares"),
        pids=_number(group / "pids/pids.max"),
        io_weight=_first(group / "blkio", ("blkio.bfq.weight", "blkio.weight")),
        **both,  # type: ignore[arg-type]
    )


def parse_limits(text: str) -> dict[str, int | None]:
    """Return the soft limits of ``/proc/PID/limits`` by the names that Docker has for them."""
    names = {"Max open files": "nofile", "Max core file size": "core", "Max processes": "nproc"}
    names["Max locked memory"] = "memlock"
    found: dict[str, int | None] = {}
    for line in text.splitlines():
        for long, short in names.items():
            if line.startswith(long):
                value = line.removeprefix(long).split()[0]
                found[short] = int(value) if value.isdigit() else None
    return found


def parse_ionice(text: str) -> int | None:
    """Return the place that was given to the first process; None where it has none of its own."""
    matched = re.match(r"best-effort: prio (\d)", text)
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


def _share(words: Sequence[str]) -> float | None:
    if len(words) != 2 or not all(word.isdigit() for word in words):
        return None
    return int(words[0]) / int(words[1])


def _first(folder: Path, names: Sequence[str]) -> int | None:
    """Return the number in the first file that there is; of ``default 100``, that."""
    for name in names:
        words = _text(folder / name).split()
        if words:
            return int(words[-1] if words[0] == "default" and len(words) == 2 else words[0])
    return None


def _number(path: Path) -> int | None:
    text = _text(path)
    return int(text) if text.isdigit() and int(text) < _NO_LIMIT else None


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii", errors="replace").strip()
    except OSError:
        return ""
