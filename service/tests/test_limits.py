# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: nas.assistant contributors
"""What the kernel says it holds a container to, under both versions of control groups."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from nas_assistant.limits import parse_ionice, parse_limits, read

from .service_process import SOURCE
from .test_machine import make_tree

LIMITS = """Limit                     Soft Limit           Hard Limit           Units
Max core file size        0                    0                    bytes
Max processes             unlimited            unlimited            processes
Max open files            65536                65536                files
Max locked memory         8388608              8388608              bytes
"""
PROCESS = {
    "proc/self/cgroup": "0::/\n",
    "proc/1/oom_score_adj": "300\n",
    "proc/1/limits": LIMITS,
    "proc/self/status": "Name:\tpython\nCpus_allowed:\te\nCpus_allowed_list:\t1-3\n",
}
V2 = {
    "sys/fs/cgroup/cgroup.controllers": "cpuset cpu io memory pids\n",
    "sys/fs/cgroup/memory.max": "2147483648\n",
    "sys/fs/cgroup/memory.low": "1610612736\n",
    "sys/fs/cgroup/memory.swap.max": "4096\n",
    "sys/fs/cgroup/cpu.max": "150000 100000\n",
    "sys/fs/cgroup/cpu.weight": "39\n",
    "sys/fs/cgroup/pids.max": "256\n",
    "sys/fs/cgroup/io.bfq.weight": "default 100\n8:16 200\n",
}
V1 = {
    "sys/fs/cgroup/memory/memory.limit_in_bytes": "2147483648\n",
    "sys/fs/cgroup/memory/memory.memsw.limit_in_bytes": "2147487744\n",
    "sys/fs/cgroup/memory/memory.soft_limit_in_bytes": "1610612736\n",
    "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "150000\n",
    "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
    "sys/fs/cgroup/cpu/cpu.shares": "1024\n",
    "sys/fs/cgroup/pids/pids.max": "256\n",
    "sys/fs/cgroup/blkio/blkio.bfq.weight": "100\n",
    "proc/self/cgroup": "4:memory:/a/b\n3:cpu:/a/b\n2:pids:/a/b\n1:blkio:/a/b\n",
}


@pytest.mark.parametrize(("files", "version", "weight"), [(V2, 2, 39), (V1, 1, 1024)])
def test_all_that_there_is(
    tmp_path: Path, files: dict[str, str], version: int, weight: int
) -> None:
    found = read(make_tree(tmp_path, PROCESS | files))
    assert (found.version, found.cpu_weight) == (version, weight)
    assert (found.memory, found.memory_reservation, found.swap) == (2 << 30, 3 << 29, 4096)
    assert (found.cpus, found.cpuset, found.pids, found.io_weight) == (1.5, "1-3", 256, 100)
    assert found.oom_score_adj == 300
    assert found.ulimits == {"core": 0, "nproc": None, "nofile": 65536, "memlock": 8388608}


def test_a_group_below_that_of_the_host(tmp_path: Path) -> None:
    """As with Docker's cgroupns mode ``host``."""
    inner = {name.replace("sys/fs/cgroup/", "sys/fs/cgroup/a.scope/"): V2[name] for name in V2}
    top = {
        "proc/self/cgroup": "0::/a.scope\n",
        "sys/fs/cgroup/cgroup.controllers": "memory\n",
        "sys/fs/cgroup/pids.max": "9\n",
    }
    found = read(make_tree(tmp_path, PROCESS | inner | top))
    assert (found.version, found.memory, found.pids) == (2, 2 << 30, 256)


def test_nothing_is_limited(tmp_path: Path) -> None:
    found = read(
        make_tree(
            tmp_path,
            {
                "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",
                "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n",
                "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
                "sys/fs/cgroup/pids/pids.max": "max\n",
            },
        )
    )
    assert (found.memory, found.swap, found.cpus, found.pids) == (None, None, None, None)
    assert (found.cpuset, found.oom_score_adj, found.ulimits) == ("", 0, {})


@pytest.mark.parametrize(
    ("text", "priority"),
    [("best-effort: prio 2\n", 2), ("none: prio 0\n", None), ("idle\n", None), ("", None)],
)
def test_ionice(text: str, priority: int | None) -> None:
    assert parse_ionice(text) == priority


def test_an_empty_list_of_limits() -> None:
    assert parse_limits("") == {}


def test_the_command_needs_no_configuration() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "nas_assistant", "limits", "--config", "/none"],
        env={"PYTHONPATH": str(SOURCE), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=True,
    )
    found = json.loads(done.stdout)
    assert found["cpuset"]
    assert found["version"] in (1, 2)
