# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: nas.assistant contributors
"""What the container may use: memory and CPU limits of the control group, version 1 or 2."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

# More threads than this gain nothing: a token is bound by memory bandwidth, which a few cores
# exhaust.
_MOST_USEFUL_THREADS = 8
# Version 1 writes "no limit" as the largest whole number of pages.
_NO_LIMIT = 1 << 60


@dataclass(frozen=True)
class Limits:
    """``memory`` in bytes, ``cpus`` as a fraction; None means: not limited."""

    memory: int | None
    cpus: float | None


def read_limits(root: Path = Path("/")) -> Limits:
    """The tightest limits on this process's groups; ``root`` is where proc and sys are."""
    memory: list[int] = []
    cpus: list[float] = []
    for controllers, folder in groups(root):
        if "memory" in controllers:
            for name in ("memory.max", "memory.limit_in_bytes"):
                value = number(folder / name)
                if value is not None:
                    memory.append(value)
        if "cpu" in controllers:
            quota = quota_of(folder)
            if quota is not None:
                cpus.append(quota)
    return Limits(min(memory, default=None), min(cpus, default=None))


def available_memory(root: Path = Path("/")) -> tuple[int, str]:
    """Bytes of memory this process may use, and where that figure is from."""
    for line in text(root / "proc/meminfo").splitlines():
        if line.startswith("MemTotal:"):
            total = int(line.split()[1]) * 1024
            break
    else:
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = read_limits(root).memory
    if limit is not None and limit < total:
        return limit, "the container's memory limit"
    return total, "the machine's memory"


def used_memory(root: Path = Path("/")) -> int:
    """Bytes of the container's memory in use, without pages of files that are not in use: the
    kernel drops these when somebody else needs room. 0 where the kernel does not say.
    """
    for controllers, folder in groups(root):
        if "memory" in controllers:
            for current, unused in (
                ("memory.current", "inactive_file"),
                ("memory.usage_in_bytes", "total_inactive_file"),
            ):
                used = number(folder / current)
                if used is not None:
                    lines = (line.split() for line in text(folder / "memory.stat").splitlines())
                    return max(0, used - sum(int(n) for name, n in lines if name == unused))
    return 0


def usable_threads(root: Path = Path("/")) -> int:
    """The engine threads that pay off: CPUs of the cpuset, less by a quota, up to a cap."""
    # The affinity already reflects a cpuset of either version.
    cpus = len(os.sched_getaffinity(0))
    quota = read_limits(root).cpus
    if quota is not None:
        cpus = min(cpus, int(quota))
    return max(1, min(cpus, _MOST_USEFUL_THREADS))


def groups(root: Path) -> Iterator[tuple[frozenset[str], Path]]:
    """The folders that may limit this process, each with the controllers it stands for; the nearest
    first.
    """
    mount = root / "sys/fs/cgroup"
    for line in text(root / "proc/self/cgroup").splitlines():
        hierarchy, _, rest = line.partition(":")
        names, _, path = rest.partition(":")
        if hierarchy == "0":
            controllers, base = frozenset(("memory", "cpu", "pids", "blkio")), mount
        else:
            controllers = frozenset(names.split(","))
            base = mount / names
        # In a container the path may be the host's and not exist here; the mount's root is then the
        # own group.
        inner = Path(path.lstrip("/"))
        for part in (inner, *inner.parents):
            folder = base / part
            if folder.is_dir():
                yield controllers, folder


def quota_of(folder: Path) -> float | None:
    """The CPUs that a group may use, as a fraction; None where it may use all."""
    if (folder / "cpu.max").exists():
        quota, _, period = text(folder / "cpu.max").partition(" ")
    else:
        quota, period = (
            text(folder / "cpu.cfs_quota_us"),
            text(folder / "cpu.cfs_period_us"),
        )
    if not quota.isdigit() or not period.isdigit() or int(period) == 0:
        return None
    return int(quota) / int(period)


def number(path: Path) -> int | None:
    """What a file says, None where there is none, or it says that there is no limit."""
    said = text(path)
    return int(said) if said.isdigit() and int(said) < _NO_LIMIT else None


def text(path: Path) -> str:
    """What a file says, without the blanks around it; empty where it cannot be read."""
    try:
        return path.read_text(encoding="ascii", errors="replace").strip()
    except OSError:
        return ""
