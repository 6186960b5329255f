# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: nas.assistant contributors
"""Keeps the steps of a build out of the way of what the machine is for.

BuildKit has them run by the engine, each in a control group of its own: neither the priority of the
client nor the limits of any container reach them, and Debian 12's has no option for either. So they
are looked for among the engine's descendants while they run.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import threading
from collections.abc import Iterator

#: How often is looked; a step that is shorter is nobody's trouble.
PAUSE = 0.5
#: Files that hold a group to the least share of the CPUs, and to memory, of cgroups v2 and v1.
_WEIGHTS = (("cpu.weight", "1"), ("cpu.shares", "2"))
_LIMITS = ("memory.max", "memory.limit_in_bytes")


def _parents(root: str) -> dict[int, tuple[int, str]]:
    """Return each process with its parent and its name."""
    found = {}
    for name in filter(str.isdigit, os.listdir(f"{root}/proc")):
        with (
            contextlib.suppress(OSError),  # it ended meanwhile
            open(f"{root}/proc/{name}/stat", encoding="ascii", errors="replace") as stream,
        ):
            # A name may have spaces and brackets of its own.
            head, _, tail = stream.read().rpartition(")")
            found[int(name)] = int(tail.split()[1]), head.partition("(")[2]
    return found


def steps(engine: int, root: str = "") -> set[int]:
    """Return the processes of the build steps that run now.

    Each was started by a ``runc`` of the engine's own; those of containers are containerd's.
    """
    parents = _parents(root)
    found: set[int] = set()
    runners = {pid for pid, (parent, name) in parents.items()
               if parent == engine and "runc" in name}  # fmt: skip
    level = runners
    while level:
        level = {pid for pid, (parent, _) in parents.items() if parent in level}
        found |= level
    return found


def groups(pid: int, root: str = "") -> set[str]:
    """Return the folders of a process's control groups."""
    found = set()
    with (
        contextlib.suppress(OSError),
        open(f"{root}/proc/{pid}/cgroup", encoding="utf-8") as stream,
    ):
        for line in stream:
            _, controllers, path = line.rstrip("\n").split(":", 2)
            folder = f"{root}/sys/fs/cgroup"
            found.add(os.path.normpath(f"{folder}/{controllers.removeprefix('name=')}/{path}"))
    return found


def hold_back(pid: int, engine: int, memory: int, root: str = "") -> bool:
    """Have a step run when nobody else wants to, and with so many bytes of memory at most.

    Return whether it has a control group by now, which is made just before its program starts.
    """
    with contextlib.suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, pid, 19)
        subprocess.run(["ionice", "-c", "3", "-p", str(pid)], capture_output=True, check=False)
    # Never the engine's.
    own = groups(pid, root) - groups(engine, root)
    for folder in own:
        for name, value in (*_WEIGHTS, *((limit, str(memory)) for limit in _LIMITS)):
            path = os.path.join(folder, name)
            if os.path.exists(path):
                with contextlib.suppress(OSError), open(path, "w", encoding="ascii") as stream:
                    stream.write(value)
    return bool(own)


def engine_pid(path: str = "/run/docker.pid") -> int:
    """Return the engine's process; 0 where nobody says."""
    try:
        with open(path, encoding="ascii") as stream:
            return int(stream.read())
    except (OSError, ValueError):
        return 0


@contextlib.contextmanager
def held_back(memory: int) -> Iterator[None]:
    """Hold all steps back that run meanwhile."""
    over, engine = threading.Event(), engine_pid()
    seen: set[int] = set()

    def watch() -> None:
        while not over.wait(PAUSE):
            seen.update(pid for pid in steps(engine) - seen if hold_back(pid, engine, memory))

    watcher = threading.Thread(target=watch, daemon=True)
    if engine:
        watcher.start()
    try:
        yield
    finally:
        over.set()
        if engine:
            watcher.join()
