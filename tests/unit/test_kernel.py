# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: nas.assistant contributors
"""The role kernel's parts: parameters, disks' queues, modules, swap."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible_collections.nas.assistant.plugins.filter import kernel
from ansible_collections.nas.assistant.plugins.filter.kernel import kernel_queues
from ansible_collections.nas.assistant.plugins.module_utils._swap import HEAD, Swap, ours, parse
from ansible_collections.nas.assistant.plugins.modules.kernel_modules import in_kernel
from ansible_collections.nas.assistant.plugins.modules.swap import wish_of
from expressions import ROLES, templar, trusted

WISH = {
    "hdd": "bfq",
    "ssd": "mq-deadline",
    "nvme": "none",
    "hdd_read_ahead_kib": 2048,
    "ssd_read_ahead_kib": 0,
    "nvme_read_ahead_kib": 512,
}
TURNS, STILL = {"rotational": "1"}, {"rotational": "0"}


@pytest.mark.parametrize(
    ("name", "device", "values"),
    [
        ("sda", TURNS, {"scheduler": "bfq", "read_ahead_kb": "2048"}),
        ("sdaa", STILL, {"scheduler": "mq-deadline"}),
        ("mmcblk0", STILL, {"scheduler": "mq-deadline"}),
        ("nvme0n1", STILL, {"scheduler": "none", "read_ahead_kb": "512"}),
        # Its host orders it; and no disks at all.
        ("vda", TURNS, {}),
        ("sda", {**TURNS, "model": "QEMU HARDDISK"}, {}),
        ("sda", {**TURNS, "model": "Virtual disk"}, {}),
        ("loop0", TURNS, {}),
        ("sr0", TURNS, {}),
        ("mmcblk0boot0", STILL, {}),
        ("md0", STILL, {}),
    ],
)
def test_queues(name: str, device: dict[str, Any], values: dict[str, str]) -> None:
    wanted = {f"/sys/block/{name}/queue/{key}": value for key, value in values.items()}
    assert kernel_queues({name: device}, WISH) == wanted


PARAMETERS = [
    ({}, 19),
    # One is left as the NAS has it, one is another, one is another one's partner, one is new.
    (
        {
            "kernel_sysctl": {
                "vm.swappiness": None,
                "net.core.somaxconn": 8192,
                "vm.dirty_bytes": 1 << 28,
                "net.ipv4.tcp_ecn": 1,
            }
        },
        19,
    ),
    ({"kernel_overcommit": "true"}, 20),
    ({"proxy_pool": ["nas1", "nas2"]}, 22),
]


@pytest.mark.parametrize(("given", "count"), PARAMETERS)
def test_parameters_are_as_many_as_preflight_says(given: dict[str, Any], count: int) -> None:
    facts = {"ansible_facts": {"memtotal_mb": 8000}}
    role = templar("kernel", [kernel.FilterModule()], **facts, **given)
    found = role.template(trusted("{{ __kernel_sysctl }}"))
    assert len(found) == count
    assert all(value is not None for value in found.values())
    owner = given.get("kernel_sysctl", {})
    assert {name: found.get(name) for name in owner} == owner
    assert not {"vm.dirty_bytes", "vm.dirty_ratio"} <= set(found)
    # As text, which preflight reads of the role beside it.
    of = {"kernel": yaml.safe_load((ROLES / "kernel/vars/main.yml").read_text())}
    told = templar("preflight", [kernel.FilterModule()], __preflight_of=of, **given)
    assert told.template(trusted("{{ __preflight_wanted.kernel.parameters }}")) == count


def test_modules_in_the_kernel() -> None:
    text = "tcp_bbr 20480 0 - Live 0x0000000000000000\nsch_fq 24576 2 - Live 0x0\n"
    assert in_kernel(text) == {"tcp_bbr", "sch_fq"}


@pytest.mark.parametrize("swap", [Swap("", 1 << 30), Swap("/srv/swap/file", 0)])
def test_a_unit_says_what_it_is_for(swap: Swap) -> None:
    assert parse(swap.text()) == swap


def test_units_of_others_are_not_ours(tmp_path: Path) -> None:
    (tmp_path / "their.swap").write_text("[Swap]\nWhat=/swapfile\n")
    (tmp_path / "linked.swap").symlink_to(tmp_path / "their.swap")
    (tmp_path / "nas-zram.service").write_text(Swap("", 4096).text())
    (tmp_path / "srv-file.swap").write_text(Swap("/srv/file", 0).text())
    (tmp_path / "folder.swap").mkdir()
    (tmp_path / "other.service").write_text(HEAD)
    assert ours(str(tmp_path)) == {
        "nas-zram.service": Swap("", 4096),
        "srv-file.swap": Swap("/srv/file", 0),
    }


@pytest.mark.parametrize(
    ("params", "reason"),
    [
        ({"kind": "file", "path": "/srv/x", "size": "much"}, "size='much' is no size"),
        ({"kind": "file", "path": "/srv/x", "size": "none"}, "size=none: swap of less than 1M"),
        ({"kind": "file", "path": "/srv/a b", "size": "1G"}, "path=/srv/a b is no path"),
        ({"kind": "file", "path": "/srv/../x", "size": "1G"}, "path=/srv/../x is no path"),
        ({"kind": "file", "path": "srv", "size": "1G"}, "path=srv is no path"),
    ],
)
def test_what_is_refused(params: dict[str, Any], reason: str) -> None:
    with pytest.raises(Exception, match=reason):
        wish_of(params)


def test_what_is_wanted() -> None:
    assert wish_of({"kind": "keep"}) is None
    assert wish_of({"kind": "zram", "size": "2G", "path": "/srv/x"}) == Swap("", 2 << 30)
    # Whole pages.
    assert wish_of({"kind": "file", "size": "1025K", "path": "/srv/x"}) == Swap("/srv/x", 1 << 20)
