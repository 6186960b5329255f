# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: nas.assistant contributors
"""What the container may have of a machine, and whether the kernel holds it to that."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible.errors import AnsibleFilterError
from ansible_collections.nas.assistant.plugins.filter.assistant import assistant_limits, spoken
from ansible_collections.nas.assistant.plugins.module_utils._weights import (
    cpu_weights,
    heeded,
    io_weight,
    weight_of,
)
from ansible_collections.nas.assistant.plugins.modules.container_limits import (
    differences,
    uncounted,
)

ROLE = Path(__file__).parents[2] / "roles/assistant"
DEFAULTS = yaml.safe_load((ROLE / "vars/main.yml").read_text())["__assistant_resources_defaults"]
GIB = 1 << 30


def machine(
    siblings: list[list[int]], efficient: tuple[int, ...] = (), total: int = 8 * GIB
) -> dict[str, Any]:
    cpus = sum(map(len, siblings))
    return {
        "cpu": {"siblings": siblings, "efficient": efficient, "count": cpus},
        "memory": {"total": total},
    }


DUAL = machine([[0], [1]])
QUAD = machine([[0], [1], [2], [3]])
THREADS = machine([[0, 4], [1, 5], [2, 6], [3, 7]])
HYBRID = machine([[0, 1], [2, 3], *([each] for each in range(4, 12))], tuple(range(4, 12)))
# One fast core: Pentium Gold 8505, and one of three slow ones.
ONE_FAST = machine([[0, 1], [2], [3], [4], [5]], (2, 3, 4, 5))
ONE_OF_THREE = machine([[0], [1], [2]], (1, 2))
BIG_LITTLE = machine([[each] for each in range(8)], (0, 1, 2, 3))


@pytest.mark.parametrize(
    ("cpus", "wish", "value"),
    [
        (DUAL, "auto", "0-1"),
        (QUAD, "auto", "1-3"),
        (THREADS, "auto", "1-3,5-7"),
        # Two fast cores of four threads: none to spare.
        (HYBRID, "auto", "0-3"),
        # That one is left to the NAS and its interrupts; three cores are all needed.
        (ONE_FAST, "auto", "2-5"),
        (ONE_OF_THREE, "auto", "0-2"),
        # The slow ones are the NAS's.
        (BIG_LITTLE, "auto", "4-7"),
        (QUAD, "0,2-3", "0,2-3"),
        (QUAD, "3", "3"),
        (QUAD, 3, "3"),
    ],
)
def test_cpus(cpus: dict[str, Any], wish: object, value: str) -> None:
    assert assistant_limits({**DEFAULTS, "cpuset_cpus": wish}, cpus)["cpuset_cpus"] == value


@pytest.mark.parametrize(
    ("cpus", "text"), [([], ""), ([3], "3"), ([2, 0, 1, 5], "0-2,5"), ([1, 3, 4], "1,3-4")]
)
def test_spoken(cpus: list[int], text: str) -> None:
    assert spoken(cpus) == text


def test_memory_is_shared() -> None:
    made = assistant_limits(DEFAULTS, machine([[0]], total=4 * GIB - 200 * 4096))
    # Three fifths in steps, and a page for no swap.
    assert made["memory"] == 38 * (64 << 20)
    assert made["memory_reservation"] == 0
    assert made["memory_swap"] == made["memory"] + 4096
    given = {"memory": "3g", "memory_reservation": "1g", "swap": "512m"}
    made = assistant_limits({**DEFAULTS, **given}, QUAD)
    assert (made["memory"], made["memory_reservation"]) == (3 * GIB, GIB)
    assert made["memory_swap"] == 3 * GIB + (512 << 20)
    assert made["ulimits"] == ["core:0:0", "nofile:4096:4096"]


@pytest.mark.parametrize(
    ("wish", "reason"),
    [
        ({"memory": "2x"}, "memory=2x: it is a whole number with m or g such as 2g, or auto"),
        ({"memory": "0m"}, "memory=0m: it is"),
        ({"memory": "1g", "memory_reservation": "2g"}, "memory_reservation=2g: it is above memory"),
        ({"swap": "much"}, "swap=much: it is a whole number with m or g such as 2g, or none"),
        ({"cpuset_cpus": "0-4"}, "cpuset_cpus=0-4: it is auto, or some of 0-3"),
        ({"cpuset_cpus": "3-1"}, "cpuset_cpus=3-1: it is auto"),
        ({"cpuset_cpus": "0-999999"}, "cpuset_cpus=0-999999: it is auto, or some of 0-3"),
        ({"cpuset_cpus": "0-9999999999"}, "cpuset_cpus=0-9999999999: it is auto"),
        ({"cpuset_cpus": "1;2"}, "cpuset_cpus=1;2: it is auto"),
        ({"cpus": 5}, "cpus=5: it is a number from 0 to 4"),
        ({"cpus": "two"}, "cpus=two: it is a number"),
        ({"memory_reservation": "auto"}, "memory_reservation=auto: it is .* 2g, or none"),
        ({"cpu_shares": 1}, "cpu_shares=1: it is a whole number from 2 to 262144"),
        ({"pids": 8}, "pids=8: it is a whole number from 32"),
        ({"oom_score_adj": -5}, "oom_score_adj=-5: it is a whole number from 0 to 1000"),
        ({"io_priority": 8}, "io_priority=8: it is a whole number from 0 to 7"),
        ({"blkio_weight": 5}, "blkio_weight=5: it is a whole number from 10 to 1000"),
        ({"ulimits": ["nofile"]}, "ulimits=.* it is a dictionary such as"),
        ({"ulimits": {"nofile": "x"}}, "ulimits=.* it is a dictionary such as"),
        ({"restart_policy": "never"}, "restart_policy=never: it is one of no, always"),
    ],
)
def test_what_is_refused(wish: dict[str, Any], reason: str) -> None:
    with pytest.raises(AnsibleFilterError, match=f"assistant_resources.{reason}"):
        assistant_limits({**DEFAULTS, **wish}, QUAD)


def in_force(version: int) -> dict[str, Any]:
    """What a kernel says that holds to the defaults."""
    made = assistant_limits(DEFAULTS, QUAD)
    return {
        "version": version,
        "memory": made["memory"],
        "memory_reservation": made["memory_reservation"],
        "swap": 4096,
        "cpus": None,
        "cpuset": "1-3",
        "cpu_weight": 1024 if version == 1 else 39,
        "pids": 256,
        "oom_score_adj": 300,
        "io_weight": None,
        "io_weight_file": "",
        "io_priority": 2,
        "ulimits": {"nofile": 4096, "core": 0, "stack": 8 << 20, "nproc": None},
        "hard_ulimits": {"nofile": 4096, "core": 0, "stack": None, "nproc": None},
    }


@pytest.mark.parametrize("version", [1, 2])
def test_all_is_in_force(version: int) -> None:
    assert differences(assistant_limits(DEFAULTS, QUAD), in_force(version)) == []
    # With larger pages none at all, and a kernel that counts none.
    for none in (0, None):
        found = {**in_force(version), "swap": none}
        assert differences(assistant_limits(DEFAULTS, QUAD), found) == []


@pytest.mark.parametrize(
    ("wish", "found", "swap", "warned"),
    [
        ({}, None, ["/dev/zram0", "/swap"], True),
        ({}, None, [], False),
        ({}, 4096, ["/swap"], False),
        ({}, 0, ["/swap"], False),
        # That is an error already.
        ({"swap": "1g"}, None, ["/swap"], False),
    ],
)
def test_swap_that_the_kernel_does_not_count(
    wish: dict[str, Any], found: int | None, swap: list[str], warned: bool
) -> None:
    asked = assistant_limits({**DEFAULTS, **wish}, QUAD)
    said = uncounted(asked, {**in_force(2), "swap": found}, swap)
    assert bool(said) is warned
    assert not warned or "may use the NAS's (/dev/zram0, /swap)" in said


@pytest.mark.parametrize(
    ("wish", "found", "said"),
    [
        # Raspberry Pi OS.
        ({}, {"memory": None}, "memory: asked for was 5100273664, in force is None"),
        ({}, {"cpuset": "0-3"}, "cpuset: asked for was 1-3, in force is 0-3"),
        ({"cpus": 1.5}, {}, "cpus: asked for was 1.5, in force is None"),
        # As after `docker update --memory-swap -1`.
        ({}, {"swap": -1}, "swap: asked for was 4096, in force is no limit"),
        ({"swap": "1g"}, {"swap": None}, "swap: asked for was 1073741824, in force is None"),
        (
            {"cpu_shares": 2048},
            {"cpu_weight": 512},
            "cpu_shares: asked for was 2048, in force is 512",
        ),
        (
            {"memory_reservation": "1g"},
            {"memory_reservation": None},
            "memory_reservation: asked for was 1073741824, in force is None",
        ),
        ({}, {"io_priority": None}, "io_priority: asked for was 2, in force is None"),
        (
            {},
            {"ulimits": {"nofile": 1024, "core": 0}},
            "ulimits.nofile: asked for was 4096:4096, in force is 1024:4096",
        ),
        (
            {},
            {"hard_ulimits": {"nofile": 65536, "core": 0}},
            "ulimits.nofile: asked for was 4096:4096, in force is 4096:65536",
        ),
        # Beyond the default ones.
        (
            {"ulimits": {"stack": 8 << 20}},
            {},
            "ulimits.stack: asked for was 8388608:8388608, in force is 8388608:-1",
        ),
        (
            {"ulimits": {"rtprio": 5}},
            {},
            "ulimits.rtprio: asked for was 5:5, it cannot be read back",
        ),
        ({"blkio_weight": 500}, {}, "blkio_weight: asked for was 500, this kernel has none"),
        # Docker drops it where the kernel has that of BFQ only.
        (
            {"blkio_weight": 900},
            {"io_weight": 100, "io_weight_file": "blkio.bfq.weight"},
            "blkio_weight: asked for was 900, in force is 100",
        ),
    ],
)
def test_what_is_not_in_force(wish: dict[str, Any], found: dict[str, Any], said: str) -> None:
    asked = assistant_limits({**DEFAULTS, **wish}, QUAD)
    assert differences(asked, {**in_force(1), **found}) == [said]


# What runc and crun make of shares, as their own tests and documents have it.
@pytest.mark.parametrize(
    ("shares", "weights"),
    [
        (2, (1, 1)),
        (512, (20, 59)),
        (1024, (39, 100)),
        (2000, (77, 170)),
        (4096, (157, 303)),
        (262144, (10000, 10000)),
    ],
)
def test_weights_of_shares(shares: int, weights: tuple[int, int]) -> None:
    assert cpu_weights(shares) == weights


FOUR = "cpu_shares: asked for was 4096, which is a weight of 157 or 303, in force is"
MUCH = "blkio_weight: asked for was 900"
UNHEEDED = "no disk of this NAS heeds it, as one with the scheduler bfq does (kernel_io)"


@pytest.mark.parametrize(
    ("wish", "found", "said"),
    [
        # Not asked for: any is right.
        ({}, {"cpu_weight": 100, "io_weight": 100, "io_weight_file": "io.weight"}, []),
        ({"cpu_shares": 4096}, {"cpu_weight": 157}, []),
        ({"cpu_shares": 4096}, {"cpu_weight": 303}, []),
        ({"cpu_shares": 4096}, {"cpu_weight": 302}, []),
        # A default that stayed, and no controller.
        ({"cpu_shares": 4096}, {"cpu_weight": 100}, [f"{FOUR} 100"]),
        ({"cpu_shares": 4096}, {"cpu_weight": None}, [f"{FOUR} None"]),
        ({"blkio_weight": 900}, {"io_weight": 900, "io_weight_file": "io.bfq.weight"}, []),
        (
            {"blkio_weight": 900},
            {"io_weight": 100, "io_weight_file": "io.bfq.weight"},
            [f"{MUCH}, in force is 100"],
        ),
        # As systemd stretches it.
        ({"blkio_weight": 750}, {"io_weight": 7250, "io_weight_file": "io.weight"}, []),
        ({"blkio_weight": 100}, {"io_weight": 100, "io_weight_file": "io.weight"}, []),
        (
            {"blkio_weight": 900},
            {"io_weight": 100, "io_weight_file": "io.weight"},
            [f"{MUCH}, which is a weight of 8900, in force is 100"],
        ),
        (
            {"blkio_weight": 900},
            {"io_weight": 900, "io_weight_file": "io.bfq.weight", "io_weight_heeded": False},
            [f"{MUCH}, {UNHEEDED}"],
        ),
        ({"blkio_weight": 900}, {}, [f"{MUCH}, this kernel has none"]),
        ({"ulimits": {"nproc": -1}}, {}, []),
    ],
)
def test_weights_under_version_2(
    wish: dict[str, Any], found: dict[str, Any], said: list[str]
) -> None:
    asked = assistant_limits({**DEFAULTS, **wish}, QUAD)
    assert differences(asked, {**in_force(2), **found}) == said


@pytest.mark.parametrize(("asked", "weight"), [(10, 10), (100, 100), (500, 4500), (1000, 10000)])
def test_weights_of_a_slice(asked: int, weight: int) -> None:
    assert io_weight(asked) == weight


def test_a_slice_is_read_from_outside(tmp_path: Path) -> None:
    folder = tmp_path / "system.slice/system-nas_assistant.slice"
    folder.mkdir(parents=True)
    name = "system-nas_assistant.slice"
    assert weight_of(name, str(tmp_path)) == ("", None)
    (folder / "io.weight").write_text("default 4500\n8:0 200\n")
    assert weight_of(name, str(tmp_path)) == ("io.weight", 4500)
    (folder / "io.bfq.weight").write_text("default 500\n")
    assert weight_of(name, str(tmp_path)) == ("io.bfq.weight", 500)


@pytest.mark.parametrize(
    ("scheduler", "cost", "expected"),
    [
        ("mq-deadline kyber [bfq] none", "", True),
        ("[mq-deadline] bfq none", "8:0 enable=0 ctrl=auto", False),
        ("[none] mq-deadline", "8:0 enable=0\n8:16 enable=1 ctrl=user", True),
    ],
)
def test_who_heeds_weights(tmp_path: Path, scheduler: str, cost: str, expected: bool) -> None:
    (tmp_path / "sda").write_text(scheduler)
    (tmp_path / "io.cost.qos").write_text(cost)
    assert heeded(str(tmp_path), f"{tmp_path}/sd*") == expected


def test_an_older_image_reads_soft_limits_only() -> None:
    older = in_force(1)
    del older["hard_ulimits"], older["io_weight_file"]
    assert differences(assistant_limits(DEFAULTS, QUAD), older) == []
