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

# As Linux 6.18 writes them, with another number in each.
LIMITS = """Limit                     Soft Limit           Hard Limit           Units
Max cpu time              101                  201                  seconds
Max file size             102                  202                  bytes
Max data size             103                  203                  bytes
Max stack size            8388608              unlimited            bytes
Max core file size        0                    0                    bytes
Max resident set          105                  205                  bytes
Max processes             unlimited            unlimited            processes
Max open files            4096                 65536                files
Max locked memory         107                  207                  bytes
Max address space         108                  208                  bytes
Max file locks            109                  209                  locks
Max pending signals       110                  210                  signals
Max msgqueue size         111                  211                  bytes
Max nice priority         12                   22
Max realtime priority     13                   23
Max realtime timeout      114                  214                  us
"""
READ = {
    "cpu": (101, 201),
    "fsize": (102, 202),
    "data": (103, 203),
    "stack": (8388608, None),
    "core": (0, 0),
    "rss": (105, 205),
    "nproc": (None, None),
    "nofile": (4096, 65536),
    "memlock": (107, 207),
    "locks": (109, 209),
    "sigpending": (110, 210),
    "msgqueue": (111, 211),
    "nice": (12, 22),
    "rtprio": (13, 23),
    "rttime": (114, 214),
}
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
    assert found.ulimits == {name: soft for name, (soft, _) in READ.items()}
    assert found.hard_ulimits == {name: hard for name, (_, hard) in READ.items()}


@pytest.mark.parametrize(
    ("files", "more", "weight"),
    [
        (V2, {}, ("io.bfq.weight", 100)),
        # runc sets the first of them.
        (V2, {"sys/fs/cgroup/io.weight": "default 4950\n"}, ("io.bfq.weight", 100)),
        (V1, {}, ("blkio.bfq.weight", 100)),
        (V1, {"sys/fs/cgroup/blkio/blkio.weight": "500\n"}, ("blkio.weight", 500)),
        (
            {name: V2[name] for name in V2 if "bfq" not in name},
            {"sys/fs/cgroup/io.weight": "default 4950\n8:16 200\n"},
            ("io.weight", 4950),
        ),
        ({name: V2[name] for name in V2 if "bfq" not in name}, {}, ("", None)),
    ],
)
def test_weight_of_io(
    tmp_path: Path, files: dict[str, str], more: dict[str, str], weight: tuple[str, int | None]
) -> None:
    found = read(make_tree(tmp_path, PROCESS | files | more))
    assert (found.io_weight_file, found.io_weight) == weight


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


SWAP_2 = "sys/fs/cgroup/memory.swap.max"
SWAP_1 = "sys/fs/cgroup/memory/memory.memsw.limit_in_bytes"


@pytest.mark.parametrize(
    ("files", "name", "said", "swap"),
    [
        (V2, SWAP_2, "0\n", 0),
        (V2, SWAP_2, "max\n", -1),
        (V1, SWAP_1, "2147483648\n", 0),
        (V1, SWAP_1, "9223372036854771712\n", -1),
        # A kernel that counts no swap has no such file.
        (V2, SWAP_2, "", None),
        (V1, SWAP_1, "", None),
    ],
)
def test_swap_without_a_limit_is_not_swap_that_nobody_counts(
    tmp_path: Path, files: dict[str, str], name: str, said: str, swap: int | None
) -> None:
    there = {key: value for key, value in files.items() if key != name}
    found = read(make_tree(tmp_path, PROCESS | there | ({name: said} if said else {})))
    assert found.swap == swap


@pytest.mark.parametrize(
    ("text", "priority"),
    [("best-effort: prio 2\n", 2), ("none: prio 0\n", None), ("idle\n", None), ("", None)],
)
def test_ionice(text: str, priority: int | None) -> None:
    assert parse_ionice(text) == priority


def test_an_empty_list_of_limits() -> None:
    assert parse_limits("") == ({}, {})


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
    # This kernel's own names for them.
    assert found["ulimits"].keys() == found["hard_ulimits"].keys() == READ.keys()
