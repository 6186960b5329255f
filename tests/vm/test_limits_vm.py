# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: nas.assistant contributors
"""What the assistant may have, under cgroups v2 as Debian 12 and 13 boot with them, and what comes
of it when memory runs out: in the container, and on the NAS.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator

import pytest
from site_lab import Lab, blank, check_answer, play, said, wait_for
from under_load import check_nothing_is_killed

NAME = f"limits{os.getpid()}"
PATIENCE = 900  # seconds; the model is warmed up on an emulated CPU, perhaps beside other work
SCOPE = "/sys/fs/cgroup/system.slice/docker-$(docker inspect -f '{{.Id}}' nas-assistant).scope"
SERVICES = "systemctl show ssh nginx docker --property=MainPID --value | xargs"
HOG = "python3 -c 'taken = [bytearray(b\"x\" * (1 << 24)) for _ in iter(int, 1)]'"
ENDED = "journalctl -k -b -o cat -g 'Out of memory: Killed' || true"
SLICE = "/sys/fs/cgroup/system.slice/system-nas_assistant.slice"
KILLS = f"sed -n 's/^oom_kill //p' {SCOPE}/memory.events"

On = Callable[[str], str]


@pytest.fixture(scope="module", params=["12", "13"])
def lab(request: pytest.FixtureRequest) -> Iterator[Lab]:
    with blank(NAME, "--debian", request.param, kind="vm") as lab:
        lab.site()
        yield lab


@pytest.fixture
def seen(on: On) -> Callable[[], dict[str, object]]:
    """What the container itself sees of its limits."""
    return lambda: dict(json.loads(on("docker exec nas-assistant /app/start.sh limits")))


def answers(lab: Lab) -> None:
    with lab.client(lab.hosts[0], PATIENCE) as client:
        wait_for(client, "/readyz", 200, PATIENCE)
        check_answer(client)


def test_limits_hold(on: On, seen: Callable[[], dict[str, object]]) -> None:
    assert on("stat --file-system --format %T /sys/fs/cgroup") == "cgroup2fs"
    assert on(f"cat {SCOPE}/memory.max") == str(1 << 30)
    # A reload makes systemd apply what it believes the limits to be.
    on("systemctl daemon-reload")
    assert on(f"cat {SCOPE}/memory.swap.max") == "4096"
    assert on(f"cat {SCOPE}/memory.max") == str(1 << 30)
    # The site has compared all of it already.
    limits = seen()
    assert (limits["version"], limits["memory"], limits["pids"]) == (2, 1 << 30, 256)
    assert (limits["cpuset"], limits["io_priority"], limits["oom_score_adj"]) == ("0-1", 2, 300)


def test_swap_without_a_limit_is_told(
    lab: Lab, on: On, seen: Callable[[], dict[str, object]]
) -> None:
    """As of a runtime that loses it; one that counts none would say nothing at all."""
    on(f"echo max >{SCOPE}/memory.swap.max")
    try:
        assert seen()["swap"] == -1
        told = said(play(lab, "assistant"))
    finally:
        on(f"echo 4096 >{SCOPE}/memory.swap.max")
    assert "swap: asked for was 4096, in force is no limit" in told


def test_nothing_is_killed_under_load(lab: Lab, on: On) -> None:
    """On an emulated CPU, clients leave before most of them are answered."""
    with lab.client(lab.hosts[0], PATIENCE) as client:
        check_nothing_is_killed(on, client, 120)
    answers(lab)


def test_what_takes_all_inside_ends_inside(lab: Lab, on: On) -> None:
    """Nothing else of the NAS ends, nor does it lose the memory that the container may not have."""
    before, kills = on(SERVICES), int(on(KILLS))
    assert on(f"docker exec nas-assistant {HOG}; echo $?").endswith("137")
    assert int(on(KILLS)) > kills
    assert "Memory cgroup out of memory: Killed" in on("journalctl -k -b -o cat -g 'Killed' -n 1")
    assert on(SERVICES) == before
    answers(lab)


@pytest.mark.parametrize("how", ["timeout 600 {}; true", "systemd-run --quiet --wait {} || true"])
def test_memory_that_runs_out_ends_one_program(lab: Lab, on: On, how: str) -> None:
    """Started by a session over SSH, which is sshd's own child, and as a service."""
    before, killed = on(SERVICES), on(ENDED).splitlines()
    on(how.format(HOG))
    (new,) = on(ENDED).splitlines()[len(killed) :]
    assert "(python3)" in new
    assert on(SERVICES) == before
    answers(lab)


def change(lab: Lab, **resources: object) -> None:
    extra = json.dumps({"assistant_resources": resources})
    lab.site("--extra-vars", extra, playbook="assistant")


def test_memory_is_worked_out(lab: Lab, on: On, seen: Callable[[], dict[str, object]]) -> None:
    """Three fifths of what the NAS has, in steps of 64 MiB."""
    change(lab, memory="auto")
    (total,) = re.findall(r"^MemTotal: +(\d+) kB", on("cat /proc/meminfo"), re.MULTILINE)
    limit = seen()["memory"]
    assert isinstance(limit, int)
    assert 0 <= int(total) * 1024 * 0.6 - limit < 64 << 20
    assert on(f"cat {SCOPE}/memory.max") == str(limit)
    answers(lab)


def test_all_of_them_can_be_set(lab: Lab, on: On, seen: Callable[[], dict[str, object]]) -> None:
    """The role reads them back, and fails where the kernel has others."""
    wish = {
        "memory": "900m",
        "memory_reservation": "256m",
        "swap": "64m",
        "cpuset_cpus": "1",
        "cpus": 0.9,
        "cpu_shares": 512,
        "pids": 200,
        "oom_score_adj": 400,
        "io_priority": 3,
        "blkio_weight": 500,
        "ulimits": {"nofile": 2048, "stack": 16 << 20, "core": 0},
    }
    on("modprobe bfq && echo bfq >/sys/block/vda/queue/scheduler")
    change(lab, **wish)
    limits = seen()
    assert (limits["memory"], limits["swap"]) == (900 << 20, 64 << 20)
    assert limits["memory_reservation"] == 256 << 20
    assert (limits["cpuset"], limits["cpus"]) == ("1", 0.9)
    assert limits["cpu_weight"] in (20, 59)
    assert (limits["pids"], limits["oom_score_adj"], limits["io_priority"]) == (200, 400, 3)
    on("systemctl daemon-reload")
    assert seen() == limits
    assert on(f"cat {SLICE}/io.bfq.weight") == "default 500"
    assert int(on(f"cat {SLICE}/cpu.weight")) == 59
    assert on(f"cat {SLICE}/memory.low") == str(256 << 20)
    answers(lab)


def test_a_weight_that_is_given_up(lab: Lab, on: On) -> None:
    """The container goes back to where the others are, and the slice is gone."""
    change(lab)
    assert on(f"cat {SCOPE}/memory.max") != ""
    assert on("systemctl cat system-nas_assistant.slice 2>&1 || true").startswith("No files")
    answers(lab)


def test_a_weight_that_nobody_heeds_is_told(lab: Lab, on: On) -> None:
    on("echo none >/sys/block/vda/queue/scheduler")
    told = said(play(lab, "assistant", assistant_resources={"blkio_weight": 500}))
    assert "no disk of this NAS heeds it, as one with the scheduler bfq does" in told
